"""What was taken for what where a cluster was named, said in one sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from krzem.errors import UnknownNameError, shorten
from krzem.hardware.assumed import Assumed
from krzem.hardware.catalogue import device_ids, load_device, others_of
from krzem.hardware.cluster_keys import KEYS
from krzem.hardware.device import Device, on_a_bus
from krzem.hardware.machines import Machine, machines, said_of

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
