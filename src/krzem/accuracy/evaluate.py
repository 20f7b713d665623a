"""How good is the model on a table of published runs?"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from krzem.accuracy.batch import (
    IMPOSSIBLE,
    Batch,
    averaged,
    chance_of,
    memory_open,
    predict_open,
    prepare,
    situation,
    standing_of,
)
from krzem.accuracy.calibrate import calibrate, summary
from krzem.accuracy.case import Case, UnusableRowError
from krzem.accuracy.reader import read_case
from krzem.accuracy.spread_fit import standing
from krzem.accuracy.table import read_rows
from krzem.cost.assemble import machine
from krzem.cost.coefficients import Z80, Coefficients, fitted, log_sigma
from krzem.cost.memory import MemoryBytes
from krzem.cost.memory_error import memory_spread
from krzem.errors import KrzemError
from krzem.facts.table import read_table

# What became of each row of a table: predicted, or skipped for a reason
# ----------------------------------------------------------------------

CHUNK = 2048
"""Rows predicted at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One row of the table."""

    id: str
    source: str = "?"
    family: str = "?"
    accelerator: str = "?"
    layout: str = ""
    group: str = ""
    """Rows of one group differ only in layout."""
    measured_by: str = ""
    measured_s: float | None = None
    low_s: float = 0.0
    mid_s: float = 0.0
    high_s: float = 0.0
    memory_measured: float | None = None
    """Bytes; None where not published, or where the row leaves open what memory depends on."""
    memory_predicted: float = 0.0
    fits: bool = True
    """Whether the model gives the published layout a chance of fitting."""
    chance: float = 1.0
    """Of fitting."""
    ran: bool = True
    """False where the row says that it ran out of memory."""
    guesses: tuple[str, ...] = ()
    reason: str = ""
    """Why the row is skipped; empty where it is used."""


def outcomes(rows: Iterable[Mapping[str, str]], coefficients: Coefficients) -> Iterator[Outcome]:
    """Every row in order, predicted in chunks."""
    waiting: list[Case | Outcome] = []
    for row in rows:
        waiting.append(_read(row))
        if len(waiting) >= CHUNK:
            yield from _predicted(waiting, coefficients)
            waiting = []
    yield from _predicted(waiting, coefficients)


def _read(row: Mapping[str, str]) -> Case | Outcome:
    name = (row.get("id") or "?")[:80]
    source = (row.get("source") or "?")[:200]
    if reason := row.get("unreadable"):
        return Outcome(id=name, source=source, reason=reason)
    try:
        case = read_case(row)
        machine(situation(case), Coefficients({}))
    except UnusableRowError as error:
        return Outcome(id=name, source=source, reason=str(error))
    except KrzemError:
        return Outcome(id=name, source=source, reason="a rate of the accelerator is not published")
    return case


def _predicted(waiting: Sequence[Case | Outcome], coefficients: Coefficients) -> list[Outcome]:
    cases = [item for item in waiting if isinstance(item, Case)]
    if not cases:
        return [item for item in waiting if isinstance(item, Outcome)]
    # Absurd but well-formed rows may overflow; their prediction is then not finite.
    with np.errstate(all="ignore"):
        done = iter(_chunk(prepare(cases), coefficients))
    return [next(done) if isinstance(item, Case) else item for item in waiting]


def _chunk(batch: Batch, coefficients: Coefficients) -> list[Outcome]:
    step, variance = predict_open(batch, coefficients)
    sigma = np.hypot(log_sigma(step, standing(batch)), np.sqrt(np.maximum(variance, 0.0)))
    each = memory_open(batch)
    bytes_ = averaged(batch, each)
    capacity = np.array([s.memory_bytes for s in batch.situations])
    spread = memory_spread()
    scale = spread.scale(bytes_, standing_of(batch.cases, spread.engines))
    room = np.log(capacity[batch.case] / each.peak) - spread.shifts.get("need", 0.0)
    chance = chance_of(batch, room / np.broadcast_to(scale, len(batch.cases))[batch.case])
    shown = _by_kind(batch.cases, bytes_)
    return [
        _outcome(case, float(t), float(s), float(m), float(f))
        for case, t, s, m, f in zip(batch.cases, step.total, sigma, shown, chance, strict=True)
    ]


def _by_kind(cases: Sequence[Case], found: MemoryBytes) -> np.ndarray:
    """Peak bytes in the sense of each row."""
    kind = np.array([c.memory_kind for c in cases])
    rest = np.where(kind == "shown", found.shown, found.reserved)
    return np.where(kind == "allocated", found.tensors, rest)


def _outcome(
    case: Case, mid: float, sigma: float, memory_predicted: float, chance: float
) -> Outcome:
    base = Outcome(
        id=case.id,
        source=case.source,
        family=case.family,
        accelerator=case.device.id,
        layout=str(case.layout),
        group=_group(case),
        guesses=tuple(dict.fromkeys((*case.guesses, *case.unknown))),
    )
    if not (np.isfinite(mid) and mid > 0 and np.isfinite(sigma)):
        return replace(base, reason="row contradicts itself (values out of range)")
    known = case.recompute_known and not set(case.guesses) & _MEMORY_NEEDS
    return replace(
        base,
        measured_by=case.measured_by,
        measured_s=case.seconds,
        low_s=mid * float(np.exp(-Z80 * sigma)),
        mid_s=mid,
        high_s=mid * float(np.exp(Z80 * sigma)),
        memory_measured=case.peak_memory_bytes if known and case.ran else None,
        memory_predicted=memory_predicted,
        fits=chance >= IMPOSSIBLE,
        chance=chance,
        ran=case.ran,
    )


_MEMORY_NEEDS = frozenset({"micro-batch", "zero stage", "ep", "global batch", "ffn width", "vocab"})


def _group(case: Case) -> str:
    parts = (
        case.source, case.architecture.name, case.device.id, case.devices, case.sequence,
        round(case.global_batch), case.precision.value, f"{case.date:.2f}",
        *sorted(f"{name}={choice}" for name, choice in case.switches.items()), case.finetune,
    )  # fmt: skip
    return "|".join(str(part) for part in parts)


# Figures of merit of predictions against measurements
# ----------------------------------------------------


def time_figures(rows: Sequence[Outcome]) -> dict[str, Any]:
    """Errors of step time, as fractions; None where there is nothing to judge.

    ``bias`` is the median of predicted over measured, less one.
    """
    used = [r for r in rows if r.measured_s is not None and not r.reason]
    if not used:
        names = ("median_ape", "mape", "p90_ape", "bias", "coverage80", "within10", "spearman")
        return {"n": 0, **dict.fromkeys(names)}
    measured = np.array([r.measured_s for r in used], dtype=float)
    ratio = np.array([r.mid_s for r in used]) / measured
    size = np.abs(ratio - 1.0)
    low, high = np.array([r.low_s for r in used]), np.array([r.high_s for r in used])
    return {
        "n": len(used),
        "median_ape": _plain(np.median(size)),
        "mape": _plain(np.mean(size)),
        "p90_ape": _plain(np.quantile(size, 0.9)),
        "bias": _plain(np.median(ratio) - 1.0),
        "coverage80": _plain(np.mean((measured >= low) & (measured <= high))),
        "within10": _plain(np.mean(size <= 0.1)),
        "spearman": mean_spearman(used),
    }


def memory_figures(rows: Sequence[Outcome]) -> dict[str, Any]:
    """Errors of peak memory on rows that say all that memory depends on.

    ``fits_correct`` is the share of these published, hence working, layouts that the model does
    not declare impossible.
    """
    used = [r for r in rows if r.memory_measured is not None and not r.reason]
    if not used:
        return {"n": 0, "mape": None, "max_ape": None, "fits_correct": None}
    size = np.abs([r.memory_predicted / (r.memory_measured or 1.0) - 1.0 for r in used])
    return {
        "n": len(used),
        "mape": _plain(np.mean(size)),
        "median_ape": _plain(np.median(size)),
        "max_ape": _plain(np.max(size)),
        "fits_correct": _plain(np.mean([r.fits for r in used])),
    }


def mean_spearman(rows: Sequence[Outcome]) -> float | None:
    """Rank correlation within groups of at least three layouts that differ in nothing else.

    The mean over groups.  Several measurements of one layout count as their median; groups whose
    measurements or predictions are all equal have no order and are left out.
    """
    groups: dict[str, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row.group][row.layout].append(row)
    found = []
    for group in groups.values():
        measured = np.array([np.median([r.measured_s for r in same]) for same in group.values()])
        predicted = np.array([same[0].mid_s for same in group.values()])
        if len(group) >= 3 and np.ptp(measured) > 0 and np.ptp(predicted) > 0:
            found.append(spearman(measured, predicted))
    return _plain(np.mean(found)) if found else None


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; ties share their mean rank."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2.0)[inverse])


def _plain(value: Any) -> float:
    return round(float(value), 4)


# How good is the model on a table of published runs?
# ---------------------------------------------------

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
