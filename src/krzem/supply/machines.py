"""What the calls of public supercomputers grant."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from krzem.errors import UnknownNameError
from krzem.facts.table import read_table
from krzem.hardware.machines import Machine, machine, machines

GRANTS, FORMS = "grants.csv", "proposals.toml"

__all__ = ["Call", "Machine", "call_of", "calls", "job_limits", "machine", "machines", "template",
           "templates"]  # fmt: skip


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


@cache
def _forms() -> Mapping[str, Any]:
    text = resources.files("krzem.facts").joinpath(FORMS).read_text(encoding="utf-8")
    return tomllib.loads(text)


@cache
def templates() -> Mapping[str, Mapping[str, Any]]:
    """What the form of each call asks for, with sources."""
    return {name: form for name, form in _forms().items() if name != "limits"}


def template(call: str) -> Mapping[str, Any]:
    """One form; raises UnknownNameError."""
    if call not in templates():
        raise UnknownNameError("call", call, templates(), f"Known: {', '.join(templates())}.")
    return templates()[call]


def job_limits(machine_id: str | None) -> Mapping[str, Any]:
    """Hours and nodes of the longest and largest job, with the source; empty where not known."""
    found: Mapping[str, Any] = _forms()["limits"].get(machine_id, {})
    return found


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
