"""Puts a cluster together from what is given and what the catalogue knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

from krzem.errors import ClusterError, UnknownFactError, UnknownNameError, nearest, shorten
from krzem.facts.table import RENTAL, Fact, price, published, read_table
from krzem.hardware.catalogue import (
    TABLE,
    Device,
    domain_in_node,
    find_id,
    load_device,
    system_class,
)
from krzem.hardware.cluster import FIELDS, Cluster, Site, assumed_of, by_field
from krzem.hardware.cluster_keys import (
    ARITHMETIC,
    KEYS,
    MOST_DEVICES,
    PEAK,
    notes_of,
    read_cluster_keys,
)
from krzem.hardware.machines import Machine, check_size, known_machine, machine, machines
from krzem.hardware.processors import CPU, processors
from krzem.quantity import format_flops

# The optional quantities of a cluster: as the user gives them, as published, or absent
# -------------------------------------------------------------------------------------

_GIVEN = {
    "failures_per_device_day": ("device_days_between_interruptions", "1/(device day)"),
    "restart_seconds": ("restart_time", "s"),
    "checkpoint_write_bytes_per_s": ("storage_bandwidth", "B/s"),
    "pue": ("pue", "1"),
    "system_power_ratio": ("system_power_ratio", "1"),
    "power_w": ("power", "W"),
    "usd_per_device_hour": ("price", "USD/h"),
}
"""Field of Cluster: the key that gives it, its unit."""

_PUBLISHED = {
    "restart_seconds": "restart_seconds",
    "checkpoint_write_bytes_per_s": "checkpoint_bytes_per_s",
    "pue": "pue",
    "system_power_ratio": "system_power_ratio",
}
"""Field of Cluster: its name in the table of operations."""


def optional_facts(
    given: Mapping[str, Any], device: Device, devices: int, where: str
) -> dict[str, Fact]:
    """Each known quantity by its field of Cluster, per device, with range and source."""
    found = {name: _stated(name, given, where) or _fact(name, device, devices) for name in _GIVEN}
    return {name: fact for name, fact in found.items() if fact is not None}


def _stated(name: str, given: Mapping[str, Any], where: str) -> Fact | None:
    key, unit = _GIVEN[name]
    value = given.get(key)
    if value is None:
        return None
    stated = Fact.given(name, value, unit, where)
    return stated.inverse(name, unit) if name == "failures_per_device_day" else stated


def _fact(name: str, device: Device, devices: int) -> Fact | None:
    """What is published, brought from a card to a device."""
    unit = _GIVEN[name][1]
    if name == "power_w":
        return _catalogued(name, device.power_w, unit, device)
    if name == "usd_per_device_hour":
        rent = price(device.id, RENTAL)
        listed = _catalogued(name, device.rental_usd_per_hour, unit, device)
        return rent.scaled(device.fraction) if rent else listed
    kind = f"class:{system_class(device)}"
    subjects = (device.id, device.family, device.vendor.lower(), kind)
    cards = max(1, round(devices * device.fraction))
    if name == "failures_per_device_day":
        days = published("device_days_per_interruption", subjects, cards)
        return days and days.inverse(name, unit, device.fraction)
    return published(_PUBLISHED[name], subjects, cards)


def _catalogued(name: str, value: float | None, unit: str, device: Device) -> Fact | None:
    if value is None:
        return None
    return Fact(
        what=name,
        low=value,
        mid=value,
        high=value,
        unit=unit,
        source=device.sources,
        confidence=device.confidence,
        notes=device.notes,
    )


# A chip that a cluster file describes whole: it needs no row in the catalogue
# ----------------------------------------------------------------------------

FAMILY = "own"
"""Family of a chip of which nobody says whose silicon it is like: nothing is known of it."""
NEEDED = ("memory", "memory_bandwidth")
_SIGNS = (*NEEDED, "vendor", "software", "family")


def own_chip(given: Mapping[str, Any], where: str, error: UnknownNameError) -> Device:
    """The device that ``given`` describes; ``error`` says that no catalogue knows its name.

    Raises ``error`` where nothing says that a chip of one's own is meant, and ClusterError where
    what is said of it is not whole.
    """
    name: str = given["device"]
    rates = {**_rates(given.get("measured", {})), **given.get("peak", {})}
    if not rates and not any(key in given for key in _SIGNS):
        raise _with_machines(name, error)
    lacking = [f"{key} = {KEYS[key].example}" for key in NEEDED if key not in given]
    if not {"bf16", "fp16"} & set(rates):
        lacking.append(f"[peak] bf16 = {PEAK['bf16'].example} (dense)")
    if lacking:
        raise ClusterError(
            f"{where}: {error} As a chip of your own {shorten(name, 40)!r} lacks"
            f" {', '.join(lacking)}. Links and nodes are assumed where they are not given."
        )
    if given.get("device_fraction", 1.0) != 1.0:
        raise ClusterError(f"{where}: device_fraction has no meaning for a chip of your own.")
    return Device(
        id=re.sub(r"[^a-z0-9._+-]+", "-", name.lower())[:60],
        vendor=given.get("vendor", "own"),
        name=name,
        family=FAMILY,
        memory_bytes=given["memory"],
        memory_bytes_per_s=given["memory_bandwidth"],
        power_w=given.get("power"),
        sources=where,
        notes=f"described by {where}",
    )


def _with_machines(name: str, error: UnknownNameError) -> UnknownNameError:
    """The same error, or one that offers the public machines that are spelt like it."""
    near = nearest(name, machines())
    if not near:
        return error
    hint = "`krzem devices` lists the devices; docs/machines.md the public machines."
    return UnknownNameError("device or machine", name, machines(), hint)


def as_said(device: Device, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Vendor, software stack and family that the file states, by field of Device.

    Raises ClusterError with those that are known.
    """
    for key, known in (("software", stacks()), ("family", families())):
        value = given.get(key)
        if value is not None and value not in known:
            near = nearest(value, known)
            offer = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ClusterError(
                f"{where}: {key} = {shorten(value, 40)!r}: no calibrated"
                f" {'stack' if key == 'software' else key} is called so.{offer}"
                f" Known: {', '.join(sorted(known))}. Leave it out where the chip is like none."
            )
    return {key: given[key] for key in ("vendor", "software", "family") if key in given}


@cache
def stacks() -> frozenset[str]:
    """Software stacks that chips of the catalogue run."""
    return frozenset(row["framework_device"] for row in read_table(TABLE)) - {""}


@cache
def families() -> frozenset[str]:
    """Families of the catalogue."""
    return frozenset(row["family"] for row in read_table(TABLE))


def _rates(measured: Mapping[str, float]) -> dict[str, float]:
    return {k.removesuffix("_flops"): v for k, v in measured.items() if k.endswith("_flops")}


# Puts a cluster together from what is given and what the catalogue knows
# -----------------------------------------------------------------------

MOST_OVER_PEAK = 1.1
"""Clocks boost a little above the one that a data sheet counts with."""


def build_cluster(given: Mapping[str, Any], where: str) -> Cluster:
    """The cluster of values in base units as read_cluster_keys returns them.

    ``where`` names their origin in messages.  Quantities that nobody published are assumed within
    the bounds of their class.  Raises ClusterError, UnknownNameError, and UnknownFactError where
    there is no 16-bit peak either, or nothing to bound a quantity with.
    """
    given, place = _placed(given, where)
    if given["device"] == CPU:
        return processors(
            given.get("measured", {}),
            devices=given.get("devices", 1),
            memory_bytes=given.get("memory"),
            name=given.get("name", where),
        )
    given = _with_measured_power(given)
    device, peaks = _with_peaks(_device(given, where), given, where)
    known = _known(given, device, where)
    devices = _count(given, device, known["devices_per_node"], where)
    _spare_unused_links(known, devices)
    missing = [key for key, value in known.items() if value is None]
    assumed = assumed_of(device, known, missing) if _has_peak(device) else []
    known |= {bounds.key: bounds.mid for bounds in assumed}
    if len(assumed) < len(missing):
        raise unknown(device, where, [key for key in missing if known[key] is None], devices)
    if place is not None:
        check_size(place, devices, known["devices_per_node"], where)
    facts = optional_facts(given, device, devices, where)
    settled = {FIELDS[key]: value for key, value in known.items()}
    settled |= {name: fact.mid for name, fact in facts.items()}
    host_memory = given.get("host_memory")
    return Cluster(
        device=device,
        devices=devices,
        oversubscription=given.get("oversubscription", 1.0),
        rails=given.get("rails"),
        host_memory_bytes_per_device=host_memory and host_memory / known["devices_per_node"],
        name=given.get("name", f"{device.id}:{devices}"),
        calibration=given.get("calibration", ""),
        measured=MappingProxyType(dict(given.get("measured", {}))),
        site=Site(**given.get("launch", {})),
        facts=MappingProxyType({**peaks, **facts}),
        assumed=by_field(assumed),
        notes=notes_of(given, device, devices, known, place),
        **settled,
    )  # fmt: skip


def _placed(given: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], Machine | None]:
    """The values with those of the public machine that is meant, if one is."""
    place = None
    if "machine" in given:
        if "device" in given:
            raise ClusterError(f"{where}: machine and device say the same: keep one of them.")
        place = machine(given["machine"])
    elif "device" not in given:
        raise ClusterError(f'{where}: device is missing: write device = "h800".')
    elif not _in_catalogue(given["device"]):
        place = known_machine(given["device"])
    if place is None:
        return given, None
    rest = {key: value for key, value in given.items() if key not in ("machine", "device")}
    if {"nics_per_node", "nic_bandwidth"} & set(rest):
        rest.setdefault("scale_out_bandwidth", None)
    merged = {**read_cluster_keys(place.cluster, place.name), **rest}
    return {key: value for key, value in merged.items() if value is not None}, place


def _in_catalogue(name: str) -> bool:
    if name == CPU:
        return True
    try:
        return bool(find_id(name))
    except UnknownNameError:
        return False


def _device(given: Mapping[str, Any], where: str) -> Device:
    """The catalogue's, or the one that the file describes whole, with what it says of either."""
    try:
        device = load_device(given["device"], given.get("device_fraction"))
    except UnknownNameError as error:
        device = own_chip(given, where, error)
    return replace(device, **as_said(device, given, where))


def _has_peak(device: Device) -> bool:
    return bool({"bf16", "fp16"} & set(device.peak_flops))


def _with_measured_power(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was measured while training is the better power of a device where none is stated."""
    power = given.get("measured", {}).get("power_w")
    return given if power is None or "power" in given else {**given, "power": power}


def _with_peaks(
    device: Device, given: Mapping[str, Any], where: str
) -> tuple[Device, dict[str, Fact]]:
    """The device with the peaks that are given, and these as facts.

    Where no peak is published, a measured rate stands in for it: MFU is then of what was measured.
    """
    stated: Mapping[str, float] = given.get("peak", {})
    measured = {
        kind: given["measured"][f"{kind}_flops"]
        for kind in ARITHMETIC
        if f"{kind}_flops" in given.get("measured", {})
    }
    peaks = {**measured, **device.peak_flops, **stated}
    for kind, rate in measured.items():
        if rate > MOST_OVER_PEAK * peaks[kind]:
            raise ClusterError(
                f"{where}: measured.{kind} is {format_flops(rate)}, more than the dense peak of "
                f"{format_flops(peaks[kind])}: measure without sparsity, or give [peak] {kind}."
            )
    new = {kind: rate for kind, rate in peaks.items() if device.peak_flops.get(kind) != rate}
    facts = {
        f"{kind}_peak": Fact.given(f"{kind} peak flops per device", rate, "FLOP/s", where)
        for kind, rate in new.items()
    }
    return replace(device, peak_flops=MappingProxyType(peaks)), facts


def _known(given: Mapping[str, Any], device: Device, where: str) -> dict[str, Any]:
    """Each quantity as given, else as the catalogue has it, else None."""
    known = {key: given.get(key, getattr(device, name)) for key, name in FIELDS.items()}
    for key in ("memory_bandwidth", "scale_up_bandwidth", "scale_out_bandwidth"):
        known[key] = known[key] or given.get("measured", {}).get(FIELDS[key])
    if "scale_up_domain" not in given and "devices_per_node" in given:
        known["scale_up_domain"] = domain_in_node(device, given["devices_per_node"])
    if "nics_per_node" in given or "nic_bandwidth" in given:
        known["scale_out_bandwidth"] = _share_of_nics(given, known["devices_per_node"], where)
    return known


def _share_of_nics(given: Mapping[str, Any], per_node: int | None, where: str) -> float | None:
    if "nics_per_node" not in given or "nic_bandwidth" not in given:
        raise ClusterError(f"{where}: nics_per_node and nic_bandwidth belong together: give both.")
    if "scale_out_bandwidth" in given:
        raise ClusterError(
            f"{where}: scale_out_bandwidth (per device) and nics_per_node x nic_bandwidth say the "
            f"same: keep one."
        )
    total: float = given["nics_per_node"] * given["nic_bandwidth"]
    return None if per_node is None else total / per_node


def _spare_unused_links(known: dict[str, Any], devices: int) -> None:
    """A link that nothing crosses need not be known: it takes the rate of the one beside it."""
    up, out, memory = (known[f"{link}_bandwidth"] for link in ("scale_up", "scale_out", "memory"))
    domain = known["scale_up_domain"] or 0
    if devices == 1 or domain == 1:
        known["scale_up_bandwidth"] = up or out or memory
    if devices == 1 or domain >= devices:
        # Without the scale-up rate there is one fault to report, not two.
        known["scale_out_bandwidth"] = out or up or memory


def _count(given: Mapping[str, Any], device: Device, per_node: int | None, where: str) -> int:
    """The number of devices; all ways of counting that are given must agree."""
    if "nodes" in given and per_node is None:
        raise unknown(device, where, ["devices_per_node"], None)
    size = {"devices": 1, "cards": round(1 / device.fraction), "nodes": per_node or 1}
    counts = {key: given[key] * factor for key, factor in size.items() if key in given}
    if not counts:
        raise ClusterError(f"{where}: its size is missing: write devices = 2048 (or nodes, cards).")
    if len(set(counts.values())) > 1:
        sums = ", ".join(f"{k} = {given[k]:,} x {size[k]} = {n:,}" for k, n in counts.items())
        raise ClusterError(f"{where}: the sizes disagree ({sums} devices): keep one of them.")
    devices: int = next(iter(counts.values()))
    if devices > MOST_DEVICES:
        raise ClusterError(
            f"{where}: {devices:,} devices; at most {MOST_DEVICES:,} can be planned."
        )
    return devices


def unknown(
    device: Device, where: str, missing: list[str], devices: int | None
) -> UnknownFactError:
    """The error for what nobody published of ``device``: ``missing`` keys, and a 16-bit peak.

    It says what the row says, and the file that gives them.
    """
    wanted = [key.replace("_", " ") for key in missing]
    peak = not _has_peak(device)
    wanted += ["dense 16-bit peak"] if peak else []
    what = " and the ".join(filter(None, [", the ".join(wanted[:-1]), wanted[-1]]))
    lines = [
        f"{where} needs the {what} of {device.id}, which the catalogue does not know.",
        f"Its notes: {shorten(device.notes, 300) or 'none'}",
        "If you know, plan on a file cluster.toml that says so (the values are only examples):",
        f'  device = "{device.id}"',
        f"  devices = {devices or 1024}",
        *(f"  {key} = {KEYS[key].example}   # {KEYS[key].means}" for key in missing),
        *(("  [peak]", f"  bf16 = {PEAK['bf16'].example}   # {PEAK['bf16'].means}")
          if peak else ()),
    ]  # fmt: skip
    return UnknownFactError("\n".join(lines))
