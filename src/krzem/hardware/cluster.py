"""A cluster: how many devices of one kind, in what nodes, joined by what links."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from krzem.facts.table import Fact, read_table
from krzem.hardware.catalogue import Device, classes_of

# Quantities that nobody published of a chip, planned over bounds instead of refused
# ----------------------------------------------------------------------------------

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


# A cluster: how many devices of one kind, in what nodes, joined by what links
# ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """How jobs are started on a cluster: what a batch file says beside nodes and devices."""

    modules: tuple[str, ...] = ()
    """Environment modules to load."""
    container: str = ""
    """Image to run in: a .sif file, or what the scheduler's container plugin takes."""
    account: str = ""
    partition: str = ""
    """Partition (Slurm) or queue (PBS)."""
    time_seconds: float | None = None
    """Longest time of one job."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the job, as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """``devices`` equal devices; every quantity here is known, or assumed and in ``assumed``.

    Ranks fill a node, then a scale-up domain, then the network, as every framework maps them.
    """

    device: Device
    devices: int
    devices_per_node: int
    memory_bytes: float
    memory_bytes_per_s: float
    scale_up_domain: int
    """Devices joined by the scale-up links (at least 1)."""
    scale_up_bytes_per_s: float
    """Per device, one direction; the scale-out rate where a domain is a single device."""
    scale_out_bytes_per_s: float
    """Per device, one direction, through its share of the node's network interfaces.

    Nothing crosses the network where one domain holds the whole cluster: then, if unknown, this
    is the scale-up rate."""
    oversubscription: float = 1.0
    """How much narrower the spine is than the leaves (1: non-blocking)."""
    rails: int | None = None
    """Separate network planes: device i of every node shares plane i modulo ``rails``."""
    power_w: float | None = None
    """Per device: the accelerator's own limit."""
    system_power_ratio: float | None = None
    """IT power of hosts, links and devices over that of the devices alone."""
    pue: float | None = None
    usd_per_device_hour: float | None = None
    failures_per_device_day: float | None = None
    """Interruptions of the whole job, per device and day."""
    restart_seconds: float | None = None
    checkpoint_write_bytes_per_s: float | None = None
    """Aggregate rate into storage, whole job."""
    host_memory_bytes_per_device: float | None = None
    name: str = ""
    calibration: str = ""
    """File of local factors that belongs to this cluster; empty: the shipped ones alone."""
    measured: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """What probes measured on this cluster, in base units (``bf16_flops``, ``launch_seconds``)."""
    site: Site = field(default_factory=Site)
    """How jobs are started there, for batch files."""
    facts: Mapping[str, Fact] = field(default_factory=lambda: MappingProxyType({}))
    """Range and source behind an optional quantity, by the name of its field here."""
    assumed: Mapping[str, Assumed] = field(default_factory=lambda: MappingProxyType({}))
    """Bounds of a quantity that nobody published and that holds their middle, by its field here."""
    notes: tuple[str, ...] = ()
    """What was taken for what where the cluster was named: each choice in one sentence."""

    @property
    def nodes(self) -> int:
        """Nodes, the last one possibly not full."""
        return -(-self.devices // self.devices_per_node)


# Where the members of a process group sit: exact counts for any size, stride and domain
# --------------------------------------------------------------------------------------

Ints = NDArray[np.int64]


def members_in_domain(size: ArrayLike, stride: ArrayLike, domain: ArrayLike) -> Ints:
    """Most members of one group that share a domain (the group from rank 0 has that many)."""
    g, s, d = _ints(size, stride, domain)
    members: Ints = np.minimum(g, -(-d // s))
    return members


def domains_spanned(
    size: ArrayLike, stride: ArrayLike, domain: ArrayLike, start: ArrayLike = 0
) -> Ints:
    """Domains that hold a member of the group whose first rank is ``start``."""
    g, s, d, first = _ints(size, stride, domain, start)
    dense = (first % d + (g - 1) * s) // d + 1
    spanned: Ints = np.where(s >= d, g, dense)
    return spanned


def most_domains_spanned(
    size: ArrayLike, stride: ArrayLike, domain: ArrayLike, devices: ArrayLike
) -> Ints:
    """Domains spanned by the group that spans most, of all groups on ``devices`` ranks.

    A collective waits for its slowest group: this is the one.  ``devices`` is a multiple of
    size x stride.
    """
    g, s, d, n = _ints(size, stride, domain, devices)
    block = g * s
    residue = np.minimum(d - 1, s - 1 + _largest_residue(block, d, np.maximum(n // block, 1)))
    return domains_spanned(g, s, d, residue)


def on_one_rail(stride: ArrayLike, rails: ArrayLike) -> NDArray[np.bool_]:
    """Whether all members of a group use the same network plane (rank r is on r mod rails)."""
    s, planes = _ints(stride, rails)
    shared: NDArray[np.bool_] = s % planes == 0
    return shared


def _largest_residue(step: Ints, modulus: Ints, count: Ints) -> Ints:
    """max(i * step % modulus) for 0 <= i < count.

    After modulus / gcd steps the residues repeat and have held modulus - gcd; a walk that never
    reaches the modulus grows throughout; the others have no closed form and are walked once per
    distinct case, of which a space of layouts has few.
    """
    shape = step.shape
    a, m, n = (np.ravel(x) for x in (step % modulus, modulus, count))
    gcd = np.gcd(a, m)
    largest: Ints = np.where(n >= m // gcd, m - gcd, a * (n - 1))
    wraps = np.flatnonzero((n < m // gcd) & (largest >= m))
    for domain in np.unique(m[wraps]):
        here = wraps[m[wraps] == domain]
        largest[here] = _walked(a[here], int(domain), n[here])
    return largest.reshape(shape)


def _walked(step: Ints, modulus: int, count: Ints) -> Ints:
    """The same by walking each distinct (step, count); both are below ``modulus``."""
    cases, inverse = np.unique(step * modulus + count, return_inverse=True)
    pairs = (divmod(int(case), modulus) for case in cases)
    peaks = [int(np.max(np.arange(n) * a % modulus)) for a, n in pairs]
    return np.asarray(peaks, dtype=np.int64)[inverse]


def _ints(*values: ArrayLike) -> tuple[Ints, ...]:
    return np.broadcast_arrays(*(np.asarray(value, dtype=np.int64) for value in values))
