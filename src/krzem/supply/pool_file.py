"""Reads one ``[[pool]]`` of a goal file."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from krzem.errors import GoalError, InputError, KrzemError, UnknownNameError
from krzem.estimate import Basis, Estimate
from krzem.facts.table import RENTAL, Fact, price
from krzem.hardware.catalogue import device_row, find_id, load_device
from krzem.hardware.cluster_keys import KEYS, read_cluster_keys, read_devices
from krzem.hardware.cluster_reader import cluster_of, short_form
from krzem.hardware.machines import Machine, check_size, known_machine, machine
from krzem.keys import Key, anything, flag, read_keys
from krzem.quantity import (
    parse_count,
    parse_date,
    parse_devices,
    parse_money,
    parse_power,
    parse_price,
)
from krzem.supply.goal import FAR, Delivery, Grant, Pool
from krzem.supply.machines import Call, call_of
from krzem.supply.periods import MONTH_DAYS, add_months, later
from krzem.supply.readers import months, place, share, text

CONTEXT: dict[str, Any] = {"to": "", "domestic": "", "start": dt.date.min}
"""What a pool takes from the goal around it."""
MOST_SIZES = 8


POOL = {
    "name": Key(text, '"H800 in Hangzhou"', "how reports call it"),
    "on": Key(text, '"h800:4096"', "device and the most devices at once"),
    "machine": Key(text, '"lumi-g"', "a public supercomputer"),
    "nodes": Key(read_devices, "1024", "the most nodes of the machine at once"),
    "cluster": Key(anything, '{device = "h800", devices = 4096}', "the keys of a cluster file"),
    "sizes": Key(anything, "[1024, 2048, 4096]", "numbers of devices to choose from"),
    "rent": Key(parse_price, '"$2/h"', "per device and hour of use"),
    "buy": Key(parse_money, '"$25000"', "per device"),
    "running": Key(parse_price, '"$0.4/h"', "per device and hour of use, on top"),
    "from": Key(parse_date, "2027-03-01", "day of delivery"),
    "until": Key(parse_date, "2027-12-31", "day after the last"),
    "delivery": Key(anything, "[[pool.delivery]]", "devices by date"),
    "grant": Key(anything, "[[pool.grant]]", "node-hours to apply for"),
    "chance": Key(share, '"90%"', "that the pool becomes available"),
    "site_power": Key(parse_power, '"10 MW"', "limit of the site"),
    "to": Key(place, '"CN"', "where it stands"),
    "acquired": Key(parse_date, "2023-06-01", "day on which owned devices were obtained"),
    "domestic": Key(flag, "true", "counts towards the domestic share"),
    "precision": Key(text, '"bf16"', "arithmetic on this pool"),
    "engine": Key(text, '"mindspeed"', "training engine on this pool"),
}
DELIVERY = {
    "on": Key(parse_date, "2027-03-01", "day"),
    "devices": Key(read_devices, "4096", "devices there from then on, in all"),
}
GRANT = {
    "name": Key(text, '"extreme scale"', "how reports call it"),
    "call": Key(text, '"extreme"', "a row of the table of grants"),
    "least": Key(parse_count, "160000", "least node-hours of a request"),
    "most": Key(parse_count, "500000", "most node-hours of a request"),
    "from": Key(parse_date, "2027-03-01", "first day"),
    "until": Key(parse_date, "2028-03-01", "day after the last"),
    "applied": Key(parse_date, "2026-12-01", "day on which it is asked for"),
    "lead": Key(months, '"4-6 months"', "from asking for it to its first day"),
    "chance": Key(share, '"40%"', "of being given"),
    "price": Key(parse_price, '"$1/h"', "per node-hour, if any"),
}


def read_pool(
    table: object, index: int, context: Mapping[str, Any], faults: list[str]
) -> Pool | None:
    """The pool; None after a fault that leaves nothing to build."""
    label = f"pool {index + 1}"
    if isinstance(table, Mapping) and isinstance(table.get("name"), str):
        label = f"pool {table['name'][:40]!r}"
    found = read_keys(table, POOL, label, faults)
    before = len(faults)
    try:
        return _pool(found, label, context, faults)
    except KrzemError as error:
        if len(faults) == before:
            faults.append(f"{label}: {error}")
        return None


def _pool(found: dict[str, Any], label: str, context: Mapping[str, Any], faults: list[str]) -> Pool:
    where = machine(found["machine"]) if "machine" in found else _place(found.get("on", ""))
    given, most = _hardware(found, where, label)
    device = find_id(str(given["device"]))
    grants = _grants(found.get("grant", []), where, context, label, faults)
    rent, notes = _rent(found, given, grants)
    home = device_row(device)["country"]
    return Pool(
        name=found.get("name") or (where.name if where else f"{device}:{most}"),
        given=MappingProxyType(given),
        sizes=_sizes(found.get("sizes"), most, label),
        rent=rent,
        buy=_exact(found.get("buy")),
        running=found.get("running", 0.0),
        deliveries=_deliveries(found, label, faults),
        until=found.get("until", FAR),
        grants=grants,
        chance=found.get("chance", 1.0),
        site_power_w=found.get("site_power"),
        country=found.get("to") or (where.country if where else context["to"]),
        acquired=found.get("acquired"),
        domestic=found.get("domestic", bool(home) and home == context["domestic"]),
        precision=found.get("precision"),
        engine=found.get("engine"),
        notes=notes,
    )


def _hardware(
    found: Mapping[str, Any], where: Machine | None, label: str
) -> tuple[dict[str, Any], int]:
    """Keys of a cluster file without the count, and the count."""
    ways = [key for key in ("on", "machine") if key in found]
    if len(ways) > 1:
        raise GoalError("on and machine say the same: keep one")
    if not ways:
        if "cluster" not in found:
            raise GoalError('nothing says what it is: write on = "h800:4096"')
        return _cluster(found["cluster"], label)
    more = _overrides(found.get("cluster", {}), label)
    if "on" in found:
        return _named(found["on"], where, more)
    assert where is not None
    nodes = found.get("nodes", where.nodes)
    if nodes > where.nodes:
        raise GoalError(f"{nodes:,} nodes, but {where.name} has {where.nodes:,}")
    return dict(where.cluster) | more, nodes * where.devices_per_node


def _place(on: str) -> Machine | None:
    """The public machine that ``on`` names in place of a device."""
    name = on.partition(":")[0].strip()
    try:
        find_id(name)
    except UnknownNameError:
        return known_machine(name)
    return None


def _named(on: str, where: Machine | None, more: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """``h800:4096``, ``leonardo:64 nodes``: keys of a cluster file, and the number of devices."""
    if not on.partition(":")[2].strip():
        raise GoalError(f'on = "{on}": write the number of devices too, as in "h800:4096"')
    counted = short_form(on)
    given: dict[str, Any] = {"device": find_id(on.partition(":")[0])} if where is None else {}
    given |= {} if where is None else where.cluster
    given |= more
    size = {key: counted[key] for key in ("devices", "cards", "nodes") if key in counted}
    cluster = cluster_of(given | size, on)
    if where is not None:
        check_size(where, cluster.devices, cluster.devices_per_node, on)
    return given, cluster.devices


def _overrides(table: Any, label: str) -> dict[str, Any]:
    """Keys of a cluster file beside ``on`` or ``machine``; they say no device and no count."""
    if not isinstance(table, Mapping):
        raise GoalError('cluster: a table is needed, such as {restart_time = "10 min"}')
    said = sorted({"device", "devices", "nodes", "cards"} & set(table))
    if said:
        raise GoalError(f"cluster.{said[0]} is said by on or machine already: leave it out")
    read_cluster_keys(table, f"{label}.cluster")
    return dict(table)


def _cluster(table: Any, label: str) -> tuple[dict[str, Any], int]:
    if not isinstance(table, Mapping):
        raise GoalError('cluster: a table is needed, such as {device = "h800", devices = 4096}')
    keys = read_cluster_keys(table, f"{label}.cluster")
    if "device" not in keys:
        raise GoalError('cluster.device is missing: write device = "h800"')
    rest = {k: v for k, v in table.items() if k not in ("devices", "nodes", "cards")}
    device = load_device(keys["device"], keys.get("device_fraction"))
    per_node = keys.get("devices_per_node", device.devices_per_node)
    for key, factor in (("devices", 1), ("nodes", per_node),
                        ("cards", round(1 / device.fraction))):  # fmt: skip
        if key in keys and factor:
            return rest, int(keys[key]) * int(factor)
    raise GoalError(f"cluster.devices is missing, such as {KEYS['devices'].example}")


def _sizes(value: Any, most: int, label: str) -> tuple[int, ...]:
    if value is None:
        return tuple(sorted({most, most // 2, most // 4} - {0}))
    if not isinstance(value, list) or not 0 < len(value) <= MOST_SIZES:
        raise GoalError(f"sizes: a list of 1 to {MOST_SIZES} numbers of devices is needed")
    sizes = sorted({parse_devices(size) for size in value})
    if sizes[-1] > most:
        raise GoalError(f"sizes: {sizes[-1]:,} devices, but the pool has {most:,}")
    return tuple(sizes)


def _deliveries(found: Mapping[str, Any], label: str, faults: list[str]) -> tuple[Delivery, ...]:
    rows = found.get("delivery")
    if rows is None:
        return (Delivery(on=found["from"], devices=10**9),) if "from" in found else ()
    if "from" in found:
        raise GoalError("from and delivery say the same: keep one")
    if not isinstance(rows, list):
        raise GoalError("delivery: write [[pool.delivery]] with on and devices")
    read = [read_keys(row, DELIVERY, f"{label}.delivery", faults) for row in rows]
    if any(set(row) != {"on", "devices"} for row in read):
        raise GoalError("delivery: each needs on (a day) and devices (there in all)")
    return tuple(Delivery(**row) for row in sorted(read, key=lambda row: row["on"]))


def _grants(
    rows: Any, where: Machine | None, context: Mapping[str, Any], label: str, faults: list[str]
) -> tuple[Grant, ...]:
    if not isinstance(rows, list):
        raise GoalError("grant: write [[pool.grant]] with call, or with least and most")
    return tuple(
        _grant(read_keys(row, GRANT, f"{label}.grant", faults), where, context, k + 1)
        for k, row in enumerate(rows)
    )


def _grant(
    row: dict[str, Any], where: Machine | None, context: Mapping[str, Any], number: int
) -> Grant:
    call = None
    if "call" in row:
        if where is None:
            raise GoalError("grant.call needs a machine: the calls are those of public machines")
        call = call_of(row["call"], where.id)
    first, late, applied = _begins(row, call, context["start"])
    last = row.get("until") or add_months(first, call.months if call else 12)
    most = row.get("most", call.limit if call else None)
    if most is None:
        raise GoalError("grant.most is missing: the node-hours that can be had at most")
    least = row.get("least", (call.least if call else None) or 0)
    if least > most or last <= first:
        raise GoalError(
            f"grant: from {least:,.0f} to {most:,.0f} node-hours, {first} to {last}: the least is"
            " above the most, or the end before the start"
        )
    return Grant(
        name=row.get("name") or (call.call if call else str(number)),
        least=float(least),
        most=float(most),
        first=first,
        last=last,
        usd_per_node_hour=row.get("price", 0.0),
        chance=row.get("chance", 1.0),
        late_days=late,
        applied=applied,
        source=f"{call.source}, {call.date}" if call else "the goal file",
    )


def _begins(
    row: Mapping[str, Any], call: Call | None, start: dt.date
) -> tuple[dt.date, float, dt.date | None]:
    """First day of a grant, days by which it may shift, and the day on which it is asked for.

    A first day that is given counts; else the day of asking (the start of the plan, where it is
    not given) and the middle of the lead time, the call's where none is given.
    """
    lead = row.get("lead")
    if lead is None and call is not None and call.lead_months and "from" not in row:
        lead = months(call.lead_months)
    if "from" in row and "applied" in row:
        raise GoalError("grant: from and applied (with lead) say the same: keep one")
    if lead is None:
        if "applied" in row:
            raise GoalError('grant.lead is missing: applied needs it, such as lead = "4-6 months"')
        return row.get("from", start), 0.0, None
    late = (lead[1] - lead[0]) / 2 * MONTH_DAYS
    if "from" in row:
        return row["from"], late, None
    asked = row.get("applied", start)
    return later(asked, (lead[0] + lead[1]) / 2), late, asked


def _rent(
    found: Mapping[str, Any], given: Mapping[str, Any], grants: tuple[Grant, ...]
) -> tuple[Estimate | None, tuple[str, ...]]:
    """The rent given, else (where nothing else pays for the pool) the published one."""
    if "rent" in found:
        return _exact(found["rent"]), ()
    if grants or "buy" in found or "acquired" in found:
        return None, ()
    device = load_device(given["device"], given.get("device_fraction"))
    fact: Fact | None = price(device.id, RENTAL)
    if fact is None:
        raise InputError(
            f'nobody has published a rent of {device.id}: give rent = "$2/h", buy = "$25000",'
            " a [[pool.grant]], or acquired = 2023-06-01 for devices that are already owned"
        )
    part = fact.scaled(device.fraction)
    note = f"rent as published ({fact.date}, {fact.confidence} confidence): {fact.source}"
    return Estimate(part.low, part.mid, part.high, Basis.ESTIMATED), (note,)


def _exact(value: float | None) -> Estimate | None:
    return None if value is None else Estimate(value, value, value, Basis.MEASURED)
