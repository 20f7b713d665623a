"""The optional quantities of a cluster: as the user gives them, as published, or absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from krzem.facts.fact import Fact
from krzem.facts.operations import published
from krzem.facts.prices import RENTAL, price
from krzem.hardware.classes import system_class
from krzem.hardware.device import Device

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
