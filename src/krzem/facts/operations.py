"""Published ranges for running a cluster: failures, restarts, storage, power overheads."""

from __future__ import annotations

from functools import cache

from krzem.facts.fact import Fact
from krzem.facts.table import read_table

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
