"""The keys of a cluster file: how each is read, in what unit, and every fault at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from krzem.errors import ClusterError, QuantityError, UnknownNameError, shorten
from krzem.hardware.catalogue import Device, device_ids, load_device, on_a_bus, others_of
from krzem.hardware.cluster import Assumed
from krzem.hardware.machines import Machine, machines, said_of
from krzem.keys import Key, Text, read_keys, stop_at
from krzem.quantity import (
    parse_bytes,
    parse_count,
    parse_devices,
    parse_duration,
    parse_flops,
    parse_power,
    parse_price,
    parse_rate,
    parse_ratio,
)

MOST_DEVICES = 10_000_000
"""Ten times the largest cluster announced so far."""


_text = Text(200)


def read_devices(value: Any) -> int:
    """A number of devices that can be planned for; raises QuantityError."""
    count = parse_devices(value)
    if count > MOST_DEVICES:
        raise QuantityError(f"{count:,} is more than the {MOST_DEVICES:,} that can be planned for.")
    return count


def _at_least_one(value: Any) -> float:
    ratio = parse_ratio(value)
    if ratio < 1:
        raise QuantityError(f"it is {ratio:g}, and less than 1 is not possible here.")
    return ratio


_LINK = ("1 MB/s", "1 PB/s")
"""Bounds of a data rate: no link of a cluster is slower, no memory is faster."""

KEYS: Mapping[str, Key] = {
    "device": Key(_text, '"h800"', "catalogue id or short form, or the name of a chip of your own"),
    "machine": Key(_text, '"leonardo"', "public machine (facts/machines.csv) in place of device"),
    "vendor": Key(_text, '"Acme"', "whose chip it is"),
    "software": Key(_text, '"cuda"', "software stack: cuda, hip, npu, tpu, xpu, ..."),
    "family": Key(_text, '"nvidia-hopper"', "family of the catalogue whose calibration it takes"),
    "device_fraction": Key(parse_ratio, "0.5", "part of a card that one device is; 1: whole cards"),
    "name": Key(_text, '"my cluster"', "how reports call it"),
    "calibration": Key(_text, '"mine.toml"', "local factors, as `krzem check --calibrate` wrote"),
    "devices": Key(read_devices, "2048", "devices as software sees them"),
    "cards": Key(read_devices, "1024", "cards, where a card holds several devices"),
    "nodes": Key(read_devices, "256", "full nodes"),
    "devices_per_node": Key(read_devices, "8", "devices of one server"),
    "scale_up_domain": Key(read_devices, "8", "devices joined by NVLink, UB, xGMI, ..."),
    "scale_up_bandwidth": Key(parse_rate, '"200 GB/s"', "per device, one direction", *_LINK),
    "scale_out_bandwidth": Key(parse_rate, '"400 Gbit/s"', "per device, one direction", *_LINK),
    "nics_per_node": Key(parse_count, "8", "network interfaces of one server", most="10000"),
    "nic_bandwidth": Key(parse_rate, '"400 Gbit/s"', "each, one direction", *_LINK),
    "rails": Key(parse_count, "8", "separate network planes", most="10000"),
    "oversubscription": Key(
        _at_least_one, '"2:1"', "leaf to spine; 1 is non-blocking", most="1000"
    ),
    "memory": Key(parse_bytes, '"80 GiB"', "per device", "1 GiB", "1 PB"),
    "memory_bandwidth": Key(parse_rate, '"3.35 TB/s"', "per device", *_LINK),
    "host_memory": Key(parse_bytes, '"2 TB"', "per node", "1 GiB", "1 EB"),
    "storage_bandwidth": Key(
        parse_rate, '"100 GB/s"', "writing checkpoints, all devices together", "1 MB/s", "1 EB/s"
    ),
    "price": Key(parse_price, '"$2/h"', "per device and hour", most="$1000000/h"),
    "power": Key(parse_power, '"700 W"', "per device", "1 W", "1 MW"),
    "system_power_ratio": Key(
        _at_least_one, "1.5", "power of all IT over that of the devices", most="100"
    ),
    "pue": Key(_at_least_one, "1.2", "power of the site over that of all IT", most="100"),
    "device_days_between_interruptions": Key(
        parse_count, "3000", "devices x days per interruption"
    ),
    "restart_time": Key(
        parse_duration, '"15 min"', "from an interruption to training again", most="365d"
    ),
}

ARITHMETIC = ("tf32", "fp16", "bf16", "fp8", "fp4")
_FLOPS = ("1 GFLOP/s", "1 EFLOP/s")

PEAK: Mapping[str, Key] = {
    kind: Key(parse_flops, '"989 TFLOP/s"', f"dense {kind} peak per device", *_FLOPS)
    for kind in ARITHMETIC
}
"""Keys of the [peak] table: what a data sheet says that the catalogue does not know."""

MEASURED: Mapping[str, Key] = {
    **{
        kind: Key(
            parse_flops, f'"{rate} TFLOP/s"', f"large {kind} matrix product", *_FLOPS,
            name=f"{kind}_flops",
        )
        for kind, rate in zip(ARITHMETIC, (320, 650, 650, 1200, 5000), strict=True)
    },
    **{
        f"{tier}_bandwidth": Key(
            parse_rate, '"170 GB/s"', "large message", *_LINK, name=f"{tier}_bytes_per_s"
        )
        for tier in ("memory", "scale_up", "scale_out")
    },
    **{
        f"{tier}_latency": Key(
            parse_duration, '"5us"', "small message", most="1s", name=f"{tier}_latency_seconds"
        )
        for tier in ("scale_up", "scale_out")
    },
    "launch_time": Key(
        parse_duration, '"6us"', "one kernel from the host", most="1s", name="launch_seconds"
    ),
    "power": Key(
        parse_power, '"680 W"', "per device, while training", "1 W", "1 MW", name="power_w"
    ),
}  # fmt: skip
"""Keys of the [measured] table; their names are those of Cluster.measured."""


_WORD = re.compile(r"[A-Za-z0-9._+:/@=,#-]{1,200}")


def _word(value: object) -> str:
    """A name that a batch file may hold without quotes."""
    text = _text(value)
    if not _WORD.fullmatch(text):
        raise QuantityError("letters, digits and . _ + : / @ = , # - only, without spaces.")
    return text


def _words(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > 100:
        raise QuantityError("it must be a list of names in brackets.")
    return tuple(map(_word, value))


def _lines(value: object) -> tuple[str, ...]:
    """Lines of shell: text without line breaks or other control characters."""
    if not isinstance(value, list) or len(value) > 100:
        raise QuantityError("it must be a list of lines in brackets.")
    for line in value:
        if not isinstance(line, str) or len(line) > 500 or not line.isprintable():
            raise QuantityError("each line is printable text of at most 500 characters.")
    return tuple(value)


LAUNCH: Mapping[str, Key] = {
    "modules": Key(_words, '["cuda/13.0", "gcc"]', "modules to load"),
    "container": Key(_word, '"/images/train.sif"', "image that jobs run in"),
    "account": Key(_word, '"project-42"', "account that pays"),
    "partition": Key(_word, '"gpu"', "partition or queue"),
    "time": Key(parse_duration, '"24h"', "longest time of one job", "1 min", name="time_seconds"),
    "setup": Key(_lines, '["ulimit -l unlimited"]', "lines of shell before a job"),
}
"""Keys of the [launch] table; their names are the fields of Site."""
TABLES: Mapping[str, Mapping[str, Key]] = {"measured": MEASURED, "peak": PEAK, "launch": LAUNCH}


def read_cluster_keys(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of a cluster file in base units: ``measured``, ``peak`` and ``launch`` too.

    Raises ClusterError that lists every fault with its key.
    """
    faults: list[str] = []
    plain = {key: value for key, value in table.items() if key not in TABLES}
    found = read_keys(plain, KEYS, "", faults)
    for name, keys in TABLES.items():
        values = read_keys(table.get(name, {}), keys, name, faults)
        found[name] = {keys[key].name or key: value for key, value in values.items()}
    stop_at(faults, where, ClusterError)
    return found


# -- what was taken for what where a cluster was named, said in one sentence each

_GIB = 2.0**30
_SHOWN = {
    "memory": (_GIB, "GiB"), "memory_bandwidth": (1e9, "GB/s"), "scale_up_bandwidth": (1e9, "GB/s"),
    "scale_out_bandwidth": (1e9 / 8, "Gbit/s"), "devices_per_node": (1, "devices"),
    "scale_up_domain": (1, "devices"),
}  # fmt: skip


def notes_of(
    given: Mapping[str, Any], device: Device, devices: int, known: Mapping[str, Any],
    place: Machine | None,
) -> tuple[str, ...]:  # fmt: skip
    """Every choice that was made: name, machine, node, links."""
    if place is not None:
        return (said_of(place, devices, known["devices_per_node"]),)
    return (*_name(given, device), *_links(given, device, devices, known))


def assumption(device: Device, bounds: Assumed) -> str:
    """One sentence: what is assumed, on what grounds, how to say otherwise (sources: the facts)."""
    factor, unit = _SHOWN[bounds.key]
    low, mid, high = (f"{value / factor:,.3g}" for value in (bounds.low, bounds.mid, bounds.high))
    span = f"{mid} {unit}" if low == high else f"{low} to {high} {unit}, {mid} in the middle"
    return (
        f"{bounds.key.replace('_', ' ')} of {device.id} is not published: {span}, is assumed"
        f" ({bounds.why}); {bounds.key} = {KEYS[bounds.key].example} in a cluster file says"
        " otherwise"
    )


def _name(given: Mapping[str, Any], device: Device) -> Iterator[str]:
    if device.id not in device_ids():
        yield f"{device.id} is not in the catalogue: it is as {device.sources} describes it"
        return
    try:
        others = others_of(given["device"])
    except UnknownNameError:
        return
    if others:
        rest = ", ".join(_with_memory(other) for other in others[:4])
        yield (
            f"{shorten(given['device'].strip(), 40)} is taken for {_with_memory(device.id)}; it"
            f" could also be {rest}: the whole id says which"
        )


def _with_memory(device_id: str) -> str:
    memory = load_device(device_id, 1.0).memory_bytes
    return device_id if memory is None else f"{device_id} ({memory / _GIB:.0f} GiB)"


def _links(
    given: Mapping[str, Any], device: Device, devices: int, known: Mapping[str, Any]
) -> Iterator[str]:
    """Cards with links of their own that the catalogue joins in fewer than a node holds."""
    node, domain = known["devices_per_node"], known["scale_up_domain"]
    if on_a_bus(device) or devices == 1 or "scale_up_domain" in given or not (node and domain):
        return
    link = device.scale_up_name
    if domain == 1 == node and "devices_per_node" not in given:
        like = [m.id for m in machines().values()
                if m.cluster["device"] == device.id and m.devices_per_node > 1]  # fmt: skip
        others = f", or --on NAME:{devices} for {', '.join(like)}" if like else ""
        yield (
            f"{device.id} is planned as nodes of one, which {link} joins to no other: where a node"
            f" joins four, devices_per_node = 4 in a cluster file says so{others}"
        )
    elif domain < node and domain == device.scale_up_domain:
        yield (
            f"{link} is taken to join {domain} of the {node} {device.id} of a node, and their bus"
            " the rest: scale_up_domain in a cluster file says otherwise"
        )
