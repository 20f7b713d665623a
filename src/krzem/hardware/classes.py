"""What kind of system a device belongs to: the classes of the tables that speak of kinds."""

from __future__ import annotations

from collections.abc import Mapping

from krzem.errors import UnknownNameError
from krzem.hardware.catalogue import device_row
from krzem.hardware.device import Device

RACK = 16
"""Devices on scale-up links beyond which they are more than a server's."""
STACKED = 800e9
"""Bytes per second of one card from which memory of an unknown kind is taken to be stacked."""
_STACKED_KINDS = ("HBM", "HiBL", "HiZQ")


def classes_of(device: Device) -> tuple[str, ...]:
    """Classes from the most specific to ``*``: memory, country, system (pod, rack, ...)."""
    row = _row(device)
    kind, country = row.get("mem_type", ""), row.get("country", "")
    found = [f"memory:{kind}" if kind else "", f"country:{country}" if country else ""]
    return (*filter(None, found), system_class(device), "*")


def system_class(device: Device) -> str:
    """``pod``, ``rack``, ``server`` or ``card``."""
    if device.software == "tpu":
        return "pod"
    cards = (device.scale_up_domain or 0) * device.fraction
    if cards > RACK:
        return "rack"
    kind = _row(device).get("mem_type", "")
    if kind:
        return "server" if kind.startswith(_STACKED_KINDS) else "card"
    rate = device.memory_bytes_per_s or 0.0
    return "server" if rate >= STACKED * device.fraction or not rate else "card"


def _row(device: Device) -> Mapping[str, str]:
    """The catalogue's row; empty for a device that a file describes."""
    try:
        return device_row(device.id)
    except UnknownNameError:
        return {}
