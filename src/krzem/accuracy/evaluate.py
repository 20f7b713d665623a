"""How good is the model on a table of published runs?"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from krzem.accuracy.calibrate import calibrate, summary
from krzem.accuracy.figures import memory_figures, time_figures
from krzem.accuracy.outcome import Outcome, outcomes
from krzem.accuracy.table import read_rows
from krzem.cost.coefficients import Coefficients, fitted
from krzem.facts.table import read_table

HELD = ("organisation", "accelerator", "family", "engine")
"""What was left out at once when the shipped calibration was judged."""
SAME = 1e-4
"""Relative difference of measured time under which a row is one that calibration has seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The rows of a table and the figures drawn from them."""

    outcomes: tuple[Outcome, ...]
    held_back: Mapping[str, Any] = field(default_factory=dict)
    """Figures of rows that calibration has seen, each predicted without its source or its
    accelerator: for these rows the other figures are in-sample and flatter."""

    def as_dict(self) -> dict[str, Any]:
        """The document that ``--json`` prints; fractions, not per cent."""
        used = [row for row in self.outcomes if not row.reason]
        skipped = Counter(row.reason for row in self.outcomes if row.reason)
        return {
            "schema": 1,
            "rows": len(self.outcomes),
            "used": len(used),
            "skipped": dict(skipped.most_common()),
            "duplicate_ids": _duplicates(self.outcomes),
            "time": time_figures(used),
            "memory": memory_figures(used),
            "held_back": dict(self.held_back),
            "by_accelerator": _by(used, lambda row: row.accelerator),
            "by_family": _by(used, lambda row: row.family),
            "by_source": _by(used, lambda row: row.source),
        }


def _duplicates(rows: Iterable[Outcome]) -> int:
    count = Counter(row.id for row in rows if row.id != "?")
    return sum(n - 1 for n in count.values())


def _by(rows: Iterable[Outcome], key: Callable[[Outcome], str]) -> dict[str, Any]:
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return {
        name: {**time_figures(group), "memory": memory_figures(group)} for name, group in ordered
    }


def evaluate(
    table: str | os.PathLike[str] | Iterable[Mapping[str, str]],
    coefficients: Coefficients | None = None,
    *,
    cross_validate: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Predict every row of a CSV file, or of rows already read.

    ``cross_validate`` refits on the table's own rows, source by source; without it the figures
    stored at calibration serve for rows that are in the packaged table.

    Raises:
        DataError: the file is missing, too large or no table of runs.
    """
    rows = read_rows(table) if isinstance(table, str | os.PathLike) else iter(table)
    kept: list[Mapping[str, str]] = []

    def watched() -> Iterable[Mapping[str, str]]:
        for count, row in enumerate(rows, 1):
            if cross_validate:
                kept.append(row)
            if progress is not None:
                progress(count)
            yield row

    found = tuple(outcomes(watched(), coefficients or fitted()))
    held = _refitted(kept) if cross_validate else _stored(found)
    return Report(outcomes=found, held_back=held)


def _stored(found: Iterable[Outcome]) -> dict[str, Any]:
    """Held-back figures of the rows that the packaged table holds."""
    known = {row["id"]: row for row in read_table("held_back.csv")}
    seen = []
    for row in found:
        match = known.get(row.id)
        if match and row.measured_s:
            measured = float(match["measured_s"])
            if abs(row.measured_s / measured - 1.0) < SAME:
                seen.append(match)
    return _figures(seen)


def _refitted(rows: list[Mapping[str, str]]) -> dict[str, Any]:
    return _figures(calibrate(rows, fitted().as_dict())["held_back"])


def _figures(rows: Iterable[Mapping[str, str]]) -> dict[str, Any]:
    rows = list(rows)
    if not rows:
        return {}

    def column(name: str) -> np.ndarray:
        return np.array([float(row[name]) for row in rows])

    return {
        f"without_{name}": summary(column(f"{name}_error"), column(f"{name}_sigma"))
        for name in HELD
    }


COLUMNS = (
    "id", "measured_by", "measured_s", "predicted_low_s", "predicted_s", "predicted_high_s",
    "error", "memory_measured_gib", "memory_predicted_gib", "memory_error", "guessed", "skipped",
)  # fmt: skip


def rows_csv(report: Report) -> str:
    """One line a row: measured, predicted low, middle and high, error, or why it was skipped."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_cells(row) for row in report.outcomes)
    return out.getvalue()


def _cells(row: Outcome) -> list[str]:
    if row.reason:
        return [_safe(row.id), *[""] * (len(COLUMNS) - 2), row.reason]
    time = [f"{row.measured_s:.6g}"] if row.measured_s else [""]
    time += [f"{value:.6g}" for value in (row.low_s, row.mid_s, row.high_s)]
    time.append(f"{row.mid_s / row.measured_s - 1.0:+.4f}" if row.measured_s else "")
    memory = ["", "", ""]
    if row.memory_measured is not None:
        memory = [f"{row.memory_measured / 2**30:.2f}", f"{row.memory_predicted / 2**30:.2f}",
                  f"{row.memory_predicted / row.memory_measured - 1.0:+.4f}"]  # fmt: skip
    return [_safe(row.id), row.measured_by, *time, *memory, "; ".join(row.guesses), ""]


def _safe(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text
