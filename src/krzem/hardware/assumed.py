"""Quantities that nobody published of a chip, planned over bounds instead of refused.

The bounds are those of its class (``facts/bounds.csv``); the geometric middle is planned with, and
a plan prices both ends (:mod:`krzem.plan.assumed`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from krzem.facts.table import read_table
from krzem.hardware.classes import classes_of
from krzem.hardware.device import Device

if TYPE_CHECKING:
    from krzem.hardware.cluster import Cluster

TABLE = "bounds.csv"
_UNITS = {"Gbit/s": 1e9 / 8, "GB/s": 1e9, "GB/s/GiB": 1e9 / 2**30, "devices": 1.0}
FIELDS = {
    "devices_per_node": "devices_per_node",
    "scale_up_domain": "scale_up_domain",
    "memory": "memory_bytes",
    "memory_bandwidth": "memory_bytes_per_s",
    "scale_up_bandwidth": "scale_up_bytes_per_s",
    "scale_out_bandwidth": "scale_out_bytes_per_s",
}
"""Keys of a cluster file that may be assumed: the field of Cluster (and of Device)."""
_COUNTS = ("devices_per_node", "scale_up_domain")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """Bounds of one quantity, in base units per device."""

    key: str
    """Of a cluster file."""
    low: float
    mid: float
    high: float
    why: str
    source: str
    date: str = ""

    @property
    def field(self) -> str:
        """Field of Cluster."""
        return FIELDS[self.key]


def assumed_of(device: Device, known: Mapping[str, Any], missing: list[str]) -> list[Assumed]:
    """Bounds for each of ``missing`` that its class has some for, one depending on another last.

    ``known`` holds the other quantities by key, in base units.
    """
    values = dict(known)
    found = []
    for key in sorted(missing, key=list(FIELDS).index):
        bounds = _bounds(device, key, values)
        if bounds is not None:
            values[key] = bounds.mid
            found.append(bounds)
    return found


def at(cluster: Cluster, name: str, value: float) -> Cluster:
    """``cluster`` with one assumed quantity, by its field, at another value.

    A domain that was assumed to be the node follows the node.
    """
    whole: dict[str, Any] = {name: round(value) if name in _COUNTS else value}
    if name == "devices_per_node" and "scale_up_domain" in cluster.assumed:
        whole["scale_up_domain"] = round(value)
    return replace(cluster, **whole)


def by_field(found: list[Assumed]) -> Mapping[str, Assumed]:
    """The same by field of Cluster."""
    return MappingProxyType({bounds.field: bounds for bounds in found})


def _bounds(device: Device, key: str, values: Mapping[str, Any]) -> Assumed | None:
    if key == "scale_up_domain":
        return _domain(values)
    row = _row(device, key)
    if row is None:
        return None
    low, high = (float(row[end]) * _UNITS[row["unit"]] for end in ("low", "high"))
    if row["unit"] == "GB/s/GiB":
        other = values.get("memory" if key == "memory_bandwidth" else "memory_bandwidth")
        if other is None:
            return None
        low, high = (low * other, high * other) if key == "memory_bandwidth" else (
            other / high, other / low)  # fmt: skip
    elif key not in _COUNTS:
        low, high = low * device.fraction, high * device.fraction
    mid = math.sqrt(low * high)
    return Assumed(
        key=key,
        low=low,
        mid=round(mid) if key in _COUNTS else mid,
        high=high,
        why=row["why"],
        source=row["source"],
        date=row["date"],
    )


def _domain(values: Mapping[str, Any]) -> Assumed | None:
    node = values.get("devices_per_node")
    if node is None:
        return None
    return Assumed(
        key="scale_up_domain", low=node, mid=node, high=node,
        why="the devices of a node are taken to be joined by its links", source="no source",
    )  # fmt: skip


def _row(device: Device, key: str) -> Mapping[str, str] | None:
    rows = {row["class"]: row for row in read_table(TABLE) if row["quantity"] == key}
    return next((rows[name] for name in classes_of(device) if name in rows), None)
