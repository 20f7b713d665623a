"""Reads the fact files of this folder: CSV whose lines starting with ``#`` are its manual."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

_FOLDER = Path(__file__).parent
"""Beside this module; importlib.resources would take longer to import than the tables to read."""


@cache
def read_table(name: str) -> tuple[Mapping[str, str], ...]:
    """The rows of ``name`` (``accelerators.csv``), every cell as text; an empty cell is unknown."""
    lines = [line for line in _text(name).splitlines() if not line.startswith("#")]
    return tuple(MappingProxyType(row) for row in csv.DictReader(lines, strict=True))


@cache
def manual(name: str) -> str:
    """What the file says about itself: columns, units, sources."""
    lines = (line for line in _text(name).splitlines() if line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


# A published figure with its range and where it stands
# -----------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """``low`` and ``high`` bound what is published, ``mid`` is the working value."""

    what: str
    low: float
    mid: float
    high: float
    unit: str
    source: str
    date: str = ""
    """Year-month of the source."""
    confidence: str = "low"
    """high, medium, low (as in the catalogue) or given (by the user)."""
    notes: str = ""
    basis: str = ""
    """measured, vendor, derived, assumed, class (nobody published one: the range of a kind of
    system) or given; empty where a table does not say."""

    def __post_init__(self) -> None:
        if not (0 <= self.low <= self.mid <= self.high):
            raise ValueError(f"{self.what}: {self.low}, {self.mid}, {self.high} are out of order")

    @classmethod
    def given(cls, what: str, value: float, unit: str, source: str) -> Fact:
        """What the user states: no range."""
        return cls(
            what=what, low=value, mid=value, high=value, unit=unit, source=source,
            confidence="given", basis="given",
        )  # fmt: skip

    def scaled(self, factor: float) -> Fact:
        """The same for ``factor`` of the thing (half a card)."""
        return replace(self, low=self.low * factor, mid=self.mid * factor, high=self.high * factor)

    def inverse(self, what: str, unit: str, numerator: float = 1.0) -> Fact:
        """``numerator`` over this: days between failures to failures a day."""
        return replace(
            self,
            what=what,
            unit=unit,
            low=numerator / self.high,
            mid=numerator / self.mid,
            high=numerator / self.low,
        )


# Published ranges for running a cluster: failures, restarts, storage, power overheads
# ------------------------------------------------------------------------------------

TABLE = "operations.csv"
ANY = "*"


@cache
def published(what: str, subjects: tuple[str, ...], devices: int = 1) -> Fact | None:
    """The range of ``what`` for the first of ``subjects`` that has one; None where nobody says.

    ``subjects`` go from the most specific to the least: catalogue id, family, vendor in lower
    case, class of system (``class:server``); rows for any hardware come last.  Of several sizes
    the largest within ``devices`` counts.
    """
    rows = [r for r in read_table(TABLE) if r["what"] == what and int(r["min_devices"]) <= devices]
    for subject in (*subjects, ANY):
        fitting = [row for row in rows if row["applies_to"] == subject]
        if fitting:
            row = max(fitting, key=lambda r: int(r["min_devices"]))
            return Fact(
                what=what,
                low=float(row["low"]),
                mid=float(row["mid"]),
                high=float(row["high"]),
                unit=row["unit"],
                source=row["source"],
                date=row["date"],
                confidence=row["confidence"],
                notes=f"{row['basis']}. {row['notes']}".strip(),
                basis=row["basis"],
            )
    return None


# Published rents and prices of accelerators, per card
# ----------------------------------------------------

PRICE_TABLE = "prices.csv"
RENTAL = "rental_usd_per_hour"
PURCHASE = "purchase_usd"
TERMS = ("on_demand", "reserved", "spot", "mixed")


@cache
def price(
    device_id: str, what: str, market: str | None = None, terms: str | None = None
) -> Fact | None:
    """The range of ``what`` (RENTAL or PURCHASE) for one card; None where nobody says.

    Without a ``market`` (world, china) it is the one where that card is mostly bought, which is
    the first row of the table; ``terms`` asks for rents of one kind (TERMS).
    """
    for row in read_table(PRICE_TABLE):
        asked = market in (None, row["market"]) and terms in (None, row["terms"])
        if (row["id"], row["what"]) == (device_id, what) and asked:
            return Fact(
                what=what,
                low=float(row["low"]),
                mid=float(row["mid"]),
                high=float(row["high"]),
                unit="USD/h" if what == RENTAL else "USD",
                source=row["source"],
                date=row["date"],
                confidence=row["confidence"],
                notes=_notes(row),
            )
    return None


def _notes(row: Mapping[str, str]) -> str:
    where = row["country"] if row["country"] not in ("", "CN") else row["market"]
    kind = f", {row['terms'].replace('_', ' ')}" if row["terms"] not in ("", "mixed") else ""
    return f"{where}{kind}, as part of a {row['includes']}. {row['notes']}".strip()
