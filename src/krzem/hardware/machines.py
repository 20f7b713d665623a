"""Public supercomputers as clusters: one catalogue for plans, fleets, proposals and runs.

A name is read without regard to case, spaces and dashes, whole (``LUMI-G``, ``lumi g``) or as the
first words of an id (``leonardo`` is ``leonardo-booster``), or as one of the table's short forms
(``mn5``).  A name that stays ambiguous is refused with the candidates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from krzem.errors import ClusterError, UnknownNameError, shorten
from krzem.facts.table import read_table

TABLE = "machines.csv"


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

    @property
    def devices(self) -> int:
        """All devices of the machine."""
        return self.nodes * self.devices_per_node


@cache
def machines() -> Mapping[str, Machine]:
    """All machines by id."""
    return MappingProxyType({row["id"]: _machine(row) for row in read_table(TABLE)})


def machine(name: str) -> Machine:
    """The machine called ``name``; raises UnknownNameError."""
    found = known_machine(name)
    if found is None:
        known = f"Known: {', '.join(machines())}."
        raise UnknownNameError("machine", name, machines(), known)
    return found


@cache
def known_machine(name: str) -> Machine | None:
    """The machine called ``name``, None where there is none.

    Raises UnknownNameError where the name may be any of several.
    """
    asked = _plain(name)
    if not asked:
        return None
    for names in (_whole_names(), _first_words()):
        found = names.get(asked, ())
        if len(found) > 1:
            offer = ", ".join(found)
            raise UnknownNameError("machine", name, (), f"It may be any of {offer}.")
        if found:
            return machines()[found[0]]
    return None


def check_size(found: Machine, devices: int, per_node: int, asked: str) -> None:
    """Refuse more nodes than the machine has; raises ClusterError with the arithmetic."""
    nodes = -(-devices // per_node)
    if nodes > found.nodes:
        raise ClusterError(
            f"{shorten(asked, 60)}: {devices:,} devices are {nodes:,} nodes of {per_node}, and"
            f" {found.name} has {found.nodes:,} nodes = {found.nodes * per_node:,} devices"
            f" ({found.source}, {found.date}): ask for {found.id}:{found.nodes} nodes at most"
        )


def said_of(found: Machine, devices: int, per_node: int) -> str:
    """Both counts, for notes."""
    nodes = -(-devices // per_node)
    return (
        f"{found.name}: {devices:,} devices are {nodes:,} nodes of {per_node}; the machine has"
        f" {found.nodes:,} nodes and {found.devices:,} devices ({found.source}, {found.date};"
        f" {found.confidence} confidence)"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()[:80])


@cache
def _whole_names() -> Mapping[str, tuple[str, ...]]:
    """Ids, names and short forms of the table, plainly spelt."""
    found: dict[str, tuple[str, ...]] = {}
    for row in read_table(TABLE):
        spellings = {row["id"], row["name"], *filter(None, row["short"].split(";"))}
        for plain in {_plain(spelling) for spelling in spellings}:
            found[plain] = (*found.get(plain, ()), row["id"])
    return MappingProxyType(found)


@cache
def _first_words() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for name in machines():
        words = name.split("-")
        for count in range(1, len(words)):
            plain = _plain("".join(words[:count]))
            found[plain] = (*found.get(plain, ()), name)
    return MappingProxyType(found)


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
        ("power_w", "power", "W"),
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
