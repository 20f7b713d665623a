"""How much a cluster's own runs improve predictions of its other runs.

    python benchmarks/calibration.py [--least 6] [--write docs/check.md]

Clusters are rows of the packaged tables with one organisation, accelerator and engine.  Each run is
predicted by factors fitted on the other runs of its cluster, beside the prediction of the shipped
coefficients.  The shipped coefficients have seen these rows (a row counts one over the square root
of its source there); ``--held-back`` takes for both the coefficients refitted without the whole
organisation instead, which have not.  With ``--write`` the table goes between the markers
``calibration:begin`` and ``calibration:end`` of a page.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from krzem.accuracy.batch import Batch, predict, predict_open, prepare
from krzem.accuracy.calibrate import timed_cases
from krzem.accuracy.case import Case
from krzem.accuracy.fit import Fit, fit, without
from krzem.accuracy.spread_fit import standing
from krzem.cost.coefficients import Z80, Coefficients, fitted, log_sigma
from krzem.cost.local import Factor, Local, moved, prior_sigma
from krzem.facts.table import read_table
from krzem.jobs.calibrate import NAMES, LocalFit, fit_local, narrowed

BEGIN, END = "<!-- calibration:begin -->", "<!-- calibration:end -->"


@dataclass(frozen=True, slots=True)
class Judged:
    """One cluster, judged run by run."""

    name: str
    fit: LocalFit
    sigma: np.ndarray
    ratios: np.ndarray
    """[N] what the spread was narrowed to for each run, by the others."""


def clusters(cases: list[Case], least: int) -> dict[str, list[Case]]:
    """Cases by organisation, accelerator and engine."""
    found: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.finetune not in ("lora", "qlora"):
            found[f"{case.organisation} | {case.device.id} | {case.engine}"].append(case)
    return {name: rows for name, rows in sorted(found.items()) if len(rows) >= least}


def judge(name: str, cases: list[Case], base: Coefficients) -> Judged:
    """Leave each run of a cluster out once."""
    batch = prepare(cases)
    measured = np.array([case.seconds for case in cases], dtype=float)
    engine = batch.situations[0].design.fits
    device = cases[0].device
    local = Local(cluster=name, device=device.id, family=device.family, engine=engine, factors={},
                  runs=len(cases), narrowed=1.0)  # fmt: skip

    def residuals(theta: np.ndarray) -> np.ndarray:
        factors = {n: Factor(log=float(t), sigma=0.0) for n, t in zip(NAMES, theta, strict=True)}
        offsets = replace(local, factors=factors).offsets(engine)
        return np.array(np.log(predict(batch, moved(base, offsets)).total / measured))

    prior = np.array([prior_sigma(n) for n in NAMES])
    found = fit_local(residuals, prior, np.ones(len(cases)))
    sigma = _sigma(batch, base)
    others = [np.arange(len(cases)) != i for i in range(len(cases))]
    ratios = np.array([narrowed(found.left_out[o], sigma[o]) for o in others])
    return Judged(name, found, sigma, ratios)


def _sigma(batch: Batch, base: Coefficients) -> np.ndarray:
    step, variance = predict_open(batch, base)
    spread = log_sigma(step, standing(batch))
    return np.asarray(np.hypot(spread, np.sqrt(np.maximum(variance, 0.0))))


def held_back(full: Fit, batch: Batch, organisation: str) -> Coefficients:
    """The coefficients fitted without an organisation."""
    held = np.array([case.organisation == organisation for case in batch.cases])
    theta = without(full, batch, held)
    return Coefficients(dict(zip(full.names, theta.tolist(), strict=True)))


def row(j: Judged) -> str:
    """A line of the table."""
    before, after = (np.abs(np.expm1(e)) for e in (j.fit.before, j.fit.left_out))
    covered = np.abs(j.fit.before) <= Z80 * j.sigma
    still = np.abs(j.fit.left_out) <= Z80 * j.sigma * j.ratios
    return (
        f"| {j.name.replace(' | ', ' · ')} | {len(before)} | {np.median(before):.1%} |"
        f" {np.median(after):.1%} | {np.mean(before):.1%} | {np.mean(after):.1%} |"
        f" {np.mean(covered):.0%} | {np.mean(still):.0%} | {np.mean(j.ratios):.2f} |"
    )


def table(judged: list[Judged]) -> str:
    """All clusters, and all runs together."""
    head = (
        "| organisation · accelerator · engine | runs | median error as shipped | calibrated on the"
        " others | mean as shipped | calibrated | in the 80 % interval as shipped | calibrated |"
        " width |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    )
    joined = {
        field: np.concatenate([getattr(j.fit, field) for j in judged])
        for field in ("before", "after", "left_out")
    }
    everything = Judged(
        "all of them",
        LocalFit(np.zeros(0), np.zeros(0), joined["before"], joined["after"], joined["left_out"]),
        np.concatenate([j.sigma for j in judged]),
        np.concatenate([j.ratios for j in judged]),
    )
    return "\n".join([head, *(row(j) for j in judged), row(everything)])


def main() -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--least", type=int, default=6, help="runs that a cluster has at least")
    parser.add_argument("--held-back", action="store_true", help="coefficients without the rows")
    parser.add_argument("--write", type=Path, help="a page with the markers")
    asked = parser.parse_args()
    cases = timed_cases(read_table("runs.csv"))
    batch, full = None, None
    if asked.held_back:
        batch = prepare(cases)
        full = fit(batch, iterations=2, start=fitted().as_dict())
    judged = []
    for name, rows in clusters(cases, asked.least).items():
        base = fitted()
        if batch is not None and full is not None:
            base = held_back(full, batch, rows[0].organisation)
        judged.append(judge(name, rows, base))
    text = table(judged)
    medians = [(np.median(np.abs(j.fit.before)), np.median(np.abs(j.fit.left_out))) for j in judged]
    better = sum(after < before for before, after in medians)
    text += f"\n\n{better} of {len(judged)} clusters have a smaller median error."
    if asked.write is None:
        print(text)
        return
    page = asked.write.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    asked.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
