"""The error of predicted memory: learnt from measured peaks, judged on organisations left out.

Few parameters (a weight for each of :data:`krzem.cost.memory_error.FEATURES` and a shift for each
kind of figure), each drawn to a prior, so that what is learnt is how wrong the formulas are and not
how to bend them.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import krzem.facts
from krzem.accuracy.batch import (
    Batch,
    averaged,
    chance_of,
    memory_open,
    prepare,
    situation,
    standing_of,
)
from krzem.accuracy.case import Case, Row, UnusableRowError
from krzem.accuracy.reader import read_case
from krzem.cost.memory import MemoryBytes
from krzem.cost.memory_error import (
    FEATURES,
    PRIOR,
    Z80_STUDENT,
    MemorySpread,
    columns,
)
from krzem.errors import UnknownFactError
from krzem.facts.table import read_table

COEFFICIENTS = Path(krzem.facts.__file__).parent / "coefficients.json"
TABLES = ("runs.csv", "runs_new.csv", "memory_rows.csv", "runs_more.csv", "fit_trials.csv")
KINDS = ("allocated", "reserved", "shown")
SHIFTS = (*KINDS, "need")
RIDGE = 0.3
"""Prior standard deviation of a feature's weight."""
HELD = {"loss": 0.1, "shown": 0.15, "unseen-engine": 0.15}
"""The same where only one or two organisations tell: what they state is not why they are right."""
SHIFT_SPREAD = (0.002, 0.03, 0.03, 0.03)
"""Prior standard deviation of each of :data:`SHIFTS`: tensors are counted, others estimated."""
NEEDED = frozenset({"micro-batch", "zero stage", "ep", "global batch", "ffn width", "vocab"})
"""Guesses with which a peak says little."""


@dataclass(frozen=True, slots=True)
class Points:
    """N rows with a measured peak, or that ran out of memory, or that ran."""

    cases: tuple[Case, ...]
    matrix: np.ndarray
    """[N, F] columns of :data:`FEATURES`."""
    kind: np.ndarray
    """[N] index into :data:`KINDS`."""
    error: np.ndarray
    """[N] logarithm of measured over predicted bytes; NaN where no peak is published."""
    batch: Batch
    room: np.ndarray
    """[V] logarithm of capacity over the bytes that must fit, of each way to have run a case."""
    weight: np.ndarray
    """[N] what a row counts: many rows of one organisation count as few."""

    @property
    def organisations(self) -> np.ndarray:
        """[N] names."""
        return np.array([case.organisation for case in self.cases])

    def chance(self, scale: np.ndarray, shift: float | np.ndarray) -> np.ndarray:
        """[N] of fitting, given each row's scale and the shift of what must fit."""
        moved = shift[self.batch.case] if isinstance(shift, np.ndarray) else shift
        return chance_of(self.batch, (self.room - moved) / scale[self.batch.case])

    @property
    def ran(self) -> np.ndarray:
        """[N] mask."""
        return np.array([case.ran for case in self.cases])

    @property
    def tried(self) -> np.ndarray:
        """[N] rows of organisations that tell what ran and what did not: nobody chose."""
        names = self.organisations
        return np.isin(names, np.unique(names[~self.ran]))


def memory_rows() -> list[Row]:
    """All packaged rows; trials stand for other rows of their organisation that say less."""
    trials = {row["organisation"] for row in read_table("fit_trials.csv")}
    found: dict[str, Row] = {}
    for name in TABLES:
        for row in read_table(name):
            doubled = name == "runs_new.csv" and row["organisation"] in trials
            if not doubled and (row.get("status") or "ok") in ("", "ok", "oom"):
                found[row["id"]] = row
    return list(found.values())


def memory_cases(rows: Iterable[Row]) -> list[Case]:
    """Rows that can be asked for their memory: with a measured peak, out of memory, or just ran."""
    found = []
    for row in rows:
        try:
            case = read_case(row)
            situation(case)
        except (UnusableRowError, UnknownFactError):
            continue
        found.append(case)
    return found


def points(cases: Sequence[Case], seen: frozenset[str] | None = None) -> Points:
    """Cases as numbers; ``seen`` are the engines that count as measured (None: all)."""
    batch = prepare(cases)
    each = memory_open(batch)
    found = averaged(batch, each)
    standing = standing_of(cases, seen)
    table = columns(found, standing)
    count = len(cases)
    kind = np.array([KINDS.index(case.memory_kind) for case in cases])
    peak = np.array([case.peak_memory_bytes or np.nan for case in cases])
    predicted = by_kind(found, kind)
    capacity = np.array([s.memory_bytes for s in batch.situations])
    told = [case.organisation for case in telling(cases)]
    many = {name: told.count(name) for name in set(told)}
    return Points(
        cases=tuple(cases),
        matrix=np.stack([np.broadcast_to(table[n], count) for n in FEATURES], axis=1),
        kind=kind,
        error=np.where([case.ran for case in cases], np.log(peak / predicted), np.nan),
        batch=batch,
        room=np.log(capacity[batch.case] / each.peak),
        weight=np.array([many.get(case.organisation, 1) ** -0.5 for case in cases]),
    )


def by_kind(found: MemoryBytes, kind: np.ndarray) -> np.ndarray:
    """Peak bytes in the sense of each row."""
    three = np.stack([np.broadcast_to(v, kind.shape) for v in
                      (found.tensors, found.reserved, found.shown)])  # fmt: skip
    return np.asarray(three[kind, np.arange(len(kind))])


def fit_memory(data: Points, used: np.ndarray) -> MemorySpread:
    """The scale and shifts that make the rows of ``used`` likeliest."""
    start = np.array([PRIOR[name] for name in FEATURES] + [0.0] * len(SHIFTS))
    free = [HELD.get(name, RIDGE) for name in FEATURES]
    ridge = np.array([*free, *SHIFT_SPREAD]) ** -2.0
    ridge[0] = 1.0
    measured = used & np.isfinite(data.error)
    tried = used & data.tried
    outcome = np.where(data.ran[tried], 1.0, 0.0)

    def cost(theta: np.ndarray) -> float:
        weights, shifts = theta[: len(FEATURES)], theta[len(FEATURES) :]
        scale = np.exp(np.clip(data.matrix @ weights, -7.0, 2.0))
        z = (data.error - shifts[data.kind])[measured] / scale[measured]
        size = np.log(scale[measured]) + 2.5 * np.log1p(0.25 * z * z)
        chance = data.chance(scale, shifts[-1])[tried]
        lost = -np.log(np.maximum(np.where(outcome > 0.0, chance, 1.0 - chance), 1e-12))
        found = data.weight[measured] @ size + data.weight[tried] @ lost
        return float(found + 0.5 * ridge @ (theta - start) ** 2)

    theta = descend(cost, start)
    return MemorySpread(
        weights=dict(zip(FEATURES, theta[: len(FEATURES)].round(4).tolist(), strict=True)),
        shifts=dict(zip(SHIFTS, theta[len(FEATURES) :].round(4).tolist(), strict=True)),
        engines=frozenset(c.engine for c, use in zip(data.cases, measured, strict=True) if use),
    )


def descend(cost: Callable[[np.ndarray], float], start: np.ndarray) -> np.ndarray:
    """A minimum near ``start``, by a quasi-Newton method with numerical gradients."""
    theta, inverse = start.copy(), np.eye(len(start)) * 0.01
    value, slope = cost(theta), _slope(cost, theta)
    for _ in range(200):
        step = -inverse @ slope
        length = 1.0
        while cost(theta + length * step) > value + 1e-4 * length * float(slope @ step):
            length *= 0.5
            if length < 1e-6:
                return theta
        moved = length * step
        new = _slope(cost, theta + moved)
        change = new - slope
        curve = float(moved @ change)
        theta, slope, before, value = theta + moved, new, value, cost(theta + moved)
        if curve > 1e-12:
            left = np.eye(len(start)) - np.outer(moved, change) / curve
            inverse = left @ inverse @ left.T + np.outer(moved, moved) / curve
        if before - value < 1e-7:
            break
    return theta


def _slope(cost: Callable[[np.ndarray], float], theta: np.ndarray, width: float = 1e-5) -> Any:
    found = np.empty_like(theta)
    for i in range(len(theta)):
        step = np.zeros_like(theta)
        step[i] = width
        found[i] = (cost(theta + step) - cost(theta - step)) / (2.0 * width)
    return found


@dataclass(frozen=True, slots=True)
class Judged:
    """Every row as predicted by a calibration without its organisation; arrays ``[N]``."""

    data: Points
    z: np.ndarray
    """Error in scales; NaN where no peak is published."""
    shift: np.ndarray
    scale: np.ndarray
    need: np.ndarray
    """Shift of what must fit."""

    def chance(self, moved: float = 0.0) -> np.ndarray:
        """[N] of fitting, with all scales multiplied by ``exp(moved)``."""
        return self.data.chance(self.scale * math.exp(moved), self.need)


def judge(cases: Sequence[Case]) -> Judged:
    """Leave each organisation out once."""
    data = points(cases)
    count = len(cases)
    z, shift, scale, need = (np.full(count, np.nan) for _ in range(4))
    worth = np.array([not NEEDED & set(case.guesses) for case in cases])
    for name in dict.fromkeys(case.organisation for case in cases):
        held = data.organisations == name
        spread = fit_memory(data, ~held & worth)
        unseen = [float(c.engine not in spread.engines) for c in cases]
        matrix = data.matrix.copy()
        matrix[:, FEATURES.index("unseen-engine")] = unseen
        size = np.exp(matrix @ np.array([spread.weights[n] for n in FEATURES]))
        moved = np.array([spread.shifts[k] for k in KINDS])[data.kind]
        scale[held], shift[held] = size[held], moved[held]
        z[held] = ((data.error - moved) / size)[held]
        need[held] = spread.shifts["need"]
    return Judged(data, z, shift, scale, need)


def telling(cases: Iterable[Case]) -> list[Case]:
    """Those with a measured peak, or of an organisation that tells what ran out of memory."""
    found = list(cases)
    trials = {case.organisation for case in found if not case.ran}
    return [case for case in found if case.peak_memory_bytes or case.organisation in trials]


def known(judged: Judged) -> np.ndarray:
    """[N] rows that say what their memory depends on."""
    cases = judged.data.cases
    return np.array([c.recompute_known and not NEEDED & set(c.guesses) for c in cases])


def memory_part(rows: Iterable[Row] | None = None) -> dict[str, Any]:
    """What ``facts/coefficients.json`` holds under ``memory``.

    The scale of the last fit is moved a third of the way to where 80 % intervals would cover 80 %
    of the rows whose organisation was left out: half of these rows are of three organisations.
    """
    cases = telling(memory_cases(memory_rows() if rows is None else rows))
    judged = judge(cases)
    worth = np.array([not NEEDED & set(case.guesses) for case in cases])
    spread = fit_memory(judged.data, worth)
    size = np.abs(judged.z[known(judged) & np.isfinite(judged.z)])
    moved = math.log(float(np.quantile(size, 0.8)) / Z80_STUDENT) / 3.0 if len(size) else 0.0
    weights = {**spread.weights, "base": round(spread.weights["base"] + moved, 4)}
    return {
        "weights": weights,
        "shifts": dict(spread.shifts),
        "engines": sorted(spread.engines),
        "moved": round(moved, 4),
    }


BINS = (0.0, 0.05, 0.2, 0.5, 0.8, 0.95, 1.0)


def calibration_table(judged: Judged, moved: float) -> str:
    """Markdown: of layouts said to fit with such a chance, how many did run."""
    cases, ran = judged.data.cases, judged.data.ran
    chance = judged.chance(moved)
    said = np.array([case.recompute_known for case in cases])
    lines = ["| chance of fitting | rows | organisations | ran |", "| --- | --- | --- | --- |"]
    for low, high in itertools.pairwise(BINS):
        inside = said & (chance >= low) & ((chance < high) | (high == 1.0))
        if np.any(inside):
            names = len(set(judged.data.organisations[inside]))
            share = f"{ran[inside].mean():.0%}".replace("%", " %")
            lines.append(f"| {low:g}–{high:g} | {inside.sum()} | {names} | {share} |")
    return "\n".join(lines)


def errors_table(judged: Judged, moved: float) -> str:
    """Markdown: errors of the peak by organisation, each left out."""
    use = known(judged) & np.isfinite(judged.data.error)
    lines = ["| organisation | rows | median | mean | bias | inside 80 % |", "| --- " * 6 + "|"]
    names = judged.data.organisations
    count = {name: int((names[use] == name).sum()) for name in set(names[use])}
    for name in ("all", *sorted(count, key=lambda n: (-count[n], n))):
        one = use if name == "all" else use & (names == name)
        error = np.expm1(judged.shift[one] - judged.data.error[one])
        inside = np.abs(judged.z[one]) * math.exp(-moved) <= Z80_STUDENT
        cells = [f"{np.median(np.abs(error)):.1%}", f"{np.mean(np.abs(error)):.1%}",
                 f"{np.median(error):+.1%}", f"{inside.mean():.0%}"]  # fmt: skip
        lines.append(f"| {name} | {one.sum()} | " + " | ".join(cells).replace("%", " %") + " |")
    return "\n".join(lines)


def summary(judged: Judged, moved: float) -> str:
    """Markdown: the score of the chance (Brier: its mean square error), and of what is stated."""
    data = judged.data
    said = np.array([case.recompute_known for case in data.cases])
    squares = ((judged.chance(moved) - data.ran) ** 2)[said]
    tried = data.tried[said]
    stated = np.array([c.states is not None and "loss" in c.switches for c in data.cases])
    both = known(judged) & np.isfinite(data.error) & stated
    error = np.abs(np.expm1(judged.shift - data.error))[both]
    return (
        f"Brier score of the chance: {squares.mean():.3f} over {said.sum():,} rows, "
        f"{squares[tried].mean():.3f} over the {tried.sum():,} of organisations that published "
        f"trials that ran out too. Rows that state bytes of states and kind of loss "
        f"({both.sum()}): median {np.median(error):.1%}, mean {np.mean(error):.1%}."
    ).replace("%", " %")


MARKS = ("<!-- memory: written by python -m krzem.accuracy.memory_fit -->", "<!-- /memory -->")


def main() -> None:
    """Write both tables into the page that is named (``docs/accuracy.md``).

    With ``--ship`` the spread that is fitted on all rows goes into ``facts/coefficients.json``.
    """
    pages = [word for word in sys.argv[1:] if word != "--ship"]
    page = Path(pages[0] if pages else "docs/accuracy.md")
    part = memory_part()
    if "--ship" in sys.argv:
        shipped = COEFFICIENTS.read_text(encoding="utf-8")
        document = {**json.loads(shipped), "memory": part}
        COEFFICIENTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    judged = judge(memory_cases(memory_rows()))
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(MARKS[0])
    if not found or MARKS[1] not in rest:
        sys.exit(f"{page}: no line {MARKS[0]!r} with {MARKS[1]!r} after it; add both")
    after = rest.partition(MARKS[1])[2]
    parts = (calibration_table, errors_table, summary)
    body = "\n\n".join(make(judged, part["moved"]) for make in parts)
    page.write_text(f"{before}{MARKS[0]}\n\n{body}\n\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
