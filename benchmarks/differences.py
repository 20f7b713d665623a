"""How sure the planner is of differences: pairs of published runs of other layouts or switches.

    python benchmarks/differences.py

Rows of the packaged table from one source, model, devices, sequence and precision are compared two
by two: the ratio of the measured step times against the ratio of the predicted ones, and how often
the 80 % interval of ``krzem check`` (:func:`krzem.jobs.priced.difference_sigma`) holds it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import fields
from itertools import combinations

import numpy as np

from krzem.accuracy.batch import predict_open, prepare
from krzem.accuracy.calibrate import timed_cases
from krzem.accuracy.case import Case
from krzem.cost.coefficients import Z80, fitted
from krzem.cost.stages import StepSeconds
from krzem.facts.table import read_table
from krzem.jobs.priced import Priced, difference_sigma

MOST = 60
"""Pairs of one group: a source with many rows does not drown the others."""


def group(case: Case) -> tuple[object, ...]:
    """What two runs share whose difference is a matter of layout and switches."""
    arch = case.architecture
    return (
        case.source, arch.name, arch.layers, arch.hidden, case.device.id, case.devices,
        case.sequence, case.precision, case.engine, round(case.date, 1), round(case.global_batch),
    )  # fmt: skip


def priced(case: Case, step: StepSeconds, index: int, seconds: float) -> Priced:
    """One row of a batch as ``check`` has its prices."""
    terms = {
        f.name: float(np.broadcast_to(getattr(step, f.name), np.shape(step.total))[index])
        for f in fields(StepSeconds)
    }
    return Priced(
        layout=case.layout, choices=tuple(sorted(case.switches.items())), unknown=(),
        seconds=seconds, variance=0.0, away={}, step=StepSeconds(**terms), memory=None,  # type: ignore[arg-type]
        memory_variance=0.0, fits=1.0,
    )  # fmt: skip


def main() -> None:
    """Print coverage and errors of differences."""
    cases = timed_cases(read_table("runs.csv"))
    batch = prepare(cases)
    step, _ = predict_open(batch, fitted())
    total = np.asarray(step.total)
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, case in enumerate(batch.cases):
        groups[group(case)].append(i)
    rng = np.random.default_rng(1)
    rows = []
    for members in groups.values():
        pairs = list(combinations(members, 2))
        if len(pairs) > MOST:
            pairs = [pairs[k] for k in rng.choice(len(pairs), MOST, replace=False)]
        for i, j in pairs:
            a, b = batch.cases[i], batch.cases[j]
            if a.layout == b.layout and a.switches == b.switches:
                continue
            old, new = (priced(batch.cases[k], step, k, float(total[k])) for k in (i, j))
            predicted = math.log(total[j] / total[i])
            measured = math.log((b.seconds or 1.0) / (a.seconds or 1.0))
            rows.append((predicted, measured, difference_sigma(old, new), 1 / len(pairs)))
    found = np.array(rows)
    error, sigma, weight = found[:, 0] - found[:, 1], found[:, 2], found[:, 3]
    weight = weight / weight.sum()
    held = np.abs(error) <= Z80 * sigma
    shipped = np.abs(error)
    order = np.argsort(shipped)
    median = shipped[order][np.searchsorted(np.cumsum(weight[order]), 0.5)]
    print(f"{len(found):,} pairs in {len(groups):,} groups")
    print(f"in the 80 % interval: {np.sum(weight * held):.0%} (every group counts once)")
    print(f"median error of a ratio: {np.expm1(median):.1%}")
    wide = np.abs(found[:, 1]) > 0.05
    same = np.sign(found[:, 0]) == np.sign(found[:, 1])
    print(f"same sign where they differ by 5 %: {np.average(same[wide], weights=weight[wide]):.0%}")
    for low, high in ((0.0, 0.05), (0.05, 0.2), (0.2, 0.5), (0.5, 9.0)):
        part = (np.abs(found[:, 0]) >= low) & (np.abs(found[:, 0]) < high)
        if part.any():
            inside = np.average(held[part], weights=weight[part])
            rms = np.sqrt(np.average(error[part] ** 2, weights=weight[part]))
            print(
                f"  predicted ratio {low:.0%} to {high:.0%} (log): {part.sum()} pairs,"
                f" {inside:.0%} inside, mean sigma {sigma[part].mean():.3f}, rms error {rms:.3f}"
            )


if __name__ == "__main__":
    main()
