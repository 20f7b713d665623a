"""Calibrate the cost model on the packaged table: ``python -m krzem.accuracy.calibrate``.

Writes ``facts/coefficients.json`` (coefficients, spread of predictions, what they rest on) and
``facts/held_back.csv`` (what each row was predicted at by a calibration that had not seen it).
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import krzem.facts
from krzem.accuracy.batch import Batch, predict, prepare, situation
from krzem.accuracy.case import Case, UnusableRowError
from krzem.accuracy.cells import Row
from krzem.accuracy.fit import Fit, fit
from krzem.accuracy.held_back import GROUPS, HeldBack, held_back
from krzem.accuracy.reader import read_case
from krzem.accuracy.spread_fit import fit_spread, sigma_of
from krzem.cost.assemble import machine
from krzem.cost.coefficients import Coefficients
from krzem.cost.uncertainty import Z80, Spread
from krzem.errors import UnknownFactError
from krzem.facts.table import read_table

FOLDER = Path(krzem.facts.__file__).parent


TOO_VAGUE = frozenset({"sequence length", "date", "devices rounded"})
"""Guesses with which a row is predicted but nothing is learnt from it."""


def timed_cases(rows: Iterable[Row]) -> list[Case]:
    """The rows that publish a speed and say enough to learn from."""
    found = []
    for row in rows:
        try:
            case = read_case(row)
            machine(situation(case), Coefficients({}))
        except (UnusableRowError, UnknownFactError):
            continue
        if case.seconds is not None and not TOO_VAGUE & set(case.guesses):
            found.append(case)
    return found


def calibrate(rows: Iterable[Row], start: Mapping[str, float] | None = None) -> dict[str, Any]:
    """All that calibration yields: ``coefficients`` (for JSON) and ``held_back`` (table rows)."""
    batch = prepare(timed_cases(rows))
    full = fit(batch, start=start)
    step = predict(batch, full.coefficients)
    trials = {name: held_back(full, batch, name) for name in GROUPS}
    spread = fit_spread(batch, step, list(trials.values()))
    sigma = {name: sigma_of(batch, step, trial, spread) for name, trial in trials.items()}
    return {
        "coefficients": _document(batch, full, spread, trials, sigma),
        "held_back": _held_back_rows(batch, trials, sigma),
    }


def summary(error: np.ndarray, sigma: np.ndarray | None = None) -> dict[str, float]:
    """Figures of errors given as logarithms of predicted over measured."""
    size = np.abs(np.expm1(error))
    found = {
        "n": len(error),
        "median_ape": _round(np.median(size)),
        "mape": _round(np.mean(size)),
        "p90_ape": _round(np.quantile(size, 0.9)),
        "bias": _round(np.expm1(np.median(error))),
        "within10": _round(np.mean(size <= 0.1)),
    }
    if sigma is not None:
        found["coverage80"] = _round(np.mean(np.abs(error) <= Z80 * sigma))
    return found


def _round(value: Any) -> float:
    return round(float(value), 4)


def _document(
    batch: Batch,
    full: Fit,
    spread: Spread,
    trials: Mapping[str, HeldBack],
    sigma: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    logs = zip(full.names, full.theta.tolist(), strict=True)
    return {
        "schema": 1,
        "date": datetime.now(UTC).date().isoformat(),
        "rows": len(batch.cases),
        "sources": len({c.source for c in batch.cases}),
        "logs": {name: round(value, 5) for name, value in logs if abs(value) > 5e-6},
        "years": _years(batch),
        "spread": {
            "weights": dict(spread.weights),
            "engines": dict(spread.engines),
            "families": dict(spread.families),
            "devices": sorted(spread.devices),
        },
        "summary": {
            "in_sample": summary(full.residual),
            **{f"without_{k}": summary(trials[k].error, sigma[k]) for k in trials},
        },
    }


def _years(batch: Batch) -> dict[str, list[float]]:
    """First and last year in which each engine was measured."""
    seen: dict[str, list[float]] = {}
    for s in batch.situations:
        seen.setdefault(s.design.fits, []).append(round(s.year, 2))
    return {name: [min(years), max(years)] for name, years in sorted(seen.items())}


def _held_back_rows(
    batch: Batch, trials: Mapping[str, HeldBack], sigma: Mapping[str, np.ndarray]
) -> list[dict[str, str]]:
    rows = []
    for i, case in enumerate(batch.cases):
        row = {"id": case.id, "measured_s": f"{case.seconds:.6g}"}
        for name, trial in trials.items():
            row[f"{name}_error"] = f"{trial.error[i]:.4f}"
            row[f"{name}_sigma"] = f"{sigma[name][i]:.4f}"
        rows.append(row)
    return rows


def table_text(rows: list[dict[str, str]]) -> str:
    """Rows as CSV text."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def main() -> None:
    """Refit from the shipped coefficients and write both files."""
    path = FOLDER / "coefficients.json"
    start = json.loads(path.read_text(encoding="utf-8"))["logs"] if path.exists() else None
    found = calibrate(read_table("runs.csv"), start)
    path.write_text(json.dumps(found["coefficients"], indent=1) + "\n", encoding="utf-8")
    (FOLDER / "held_back.csv").write_text(table_text(found["held_back"]), encoding="utf-8")
    json.dump(found["coefficients"]["summary"], sys.stdout, indent=1)


if __name__ == "__main__":
    main()
