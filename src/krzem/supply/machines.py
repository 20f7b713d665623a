"""Public supercomputers as clusters, and what their calls grant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from krzem.errors import UnknownNameError
from krzem.facts.table import read_table

MACHINES = "machines.csv"
GRANTS = "grants.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine, one row of the table."""

    id: str
    name: str
    country: str
    nodes: int
    devices_per_node: int
    cluster: Mapping[str, Any]
    """Keys of a cluster file, the number of devices left out."""
    source: str
    date: str
    confidence: str
    notes: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What one call grants on one machine, in node-hours; None where it says nothing."""

    call: str
    machine: str
    pool: float | None
    least: float | None
    most: float | None
    months: int
    lead_months: str
    source: str
    date: str

    @property
    def limit(self) -> float | None:
        """The most that can be had: of one request, else of the whole call."""
        return self.pool if self.most is None else self.most


@cache
def machines() -> Mapping[str, Machine]:
    """All machines by id."""
    return MappingProxyType({row["id"]: _machine(row) for row in read_table(MACHINES)})


def machine(name: str) -> Machine:
    """The machine called ``name``; raises UnknownNameError."""
    asked = name.strip().lower().replace(" ", "-")
    if asked not in machines():
        known = f"Known: {', '.join(machines())}."
        raise UnknownNameError("machine", name, machines(), known)
    return machines()[asked]


@cache
def calls() -> tuple[Call, ...]:
    """Every row of the table of grants."""
    return tuple(_call(row) for row in read_table(GRANTS))


def call_of(name: str, machine_id: str) -> Call:
    """What the call ``name`` grants on a machine; raises UnknownNameError with those it has."""
    there = {c.call: c for c in calls() if c.machine == machine_id}
    if name.strip().lower() not in there:
        offered = f"{machine_id} has {', '.join(there) or 'none'}."
        raise UnknownNameError("call", name, there, offered)
    return there[name.strip().lower()]


def _machine(row: Mapping[str, str]) -> Machine:
    given: dict[str, Any] = {
        "device": row["device"],
        "devices_per_node": int(row["devices_per_node"]),
        "name": row["name"],
    }
    for cell, key, unit in (
        ("memory_gib", "memory", "GiB"),
        ("memory_gb_per_s", "memory_bandwidth", "GB/s"),
        ("scale_up_gb_per_s", "scale_up_bandwidth", "GB/s"),
        ("scale_out_gbit_per_s", "scale_out_bandwidth", "Gbit/s"),
    ):
        if row[cell]:
            given[key] = f"{row[cell]} {unit}"
    if row["scale_up_domain"]:
        given["scale_up_domain"] = int(row["scale_up_domain"])
    return Machine(
        id=row["id"],
        name=row["name"],
        country=row["country"],
        nodes=int(row["nodes"]),
        devices_per_node=int(row["devices_per_node"]),
        cluster=MappingProxyType(given),
        source=row["source"],
        date=row["date"],
        confidence=row["confidence"],
        notes=row["notes"],
    )


def _call(row: Mapping[str, str]) -> Call:
    return Call(
        call=row["call"],
        machine=row["machine"],
        pool=float(row["pool"]) if row["pool"] else None,
        least=float(row["least"]) if row["least"] else None,
        most=float(row["most"]) if row["most"] else None,
        months=int(row["months"]),
        lead_months=row["lead_months"],
        source=row["source"],
        date=row["date"],
    )
