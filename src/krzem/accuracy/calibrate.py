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
from krzem.accuracy.case import Case, Row, UnusableRowError
from krzem.accuracy.fit import Fit, cell_of, fit, shared
from krzem.accuracy.memory_fit import memory_part
from krzem.accuracy.reader import read_case
from krzem.accuracy.spread_fit import GROUPS, HeldBack, fit_spread, held_back, sigma_of
from krzem.cost.assemble import machine
from krzem.cost.coefficients import Z80, Coefficients, Spread
from krzem.errors import UnknownFactError
from krzem.facts.table import read_table
from krzem.model.parameters import flops_per_token

FOLDER = Path(krzem.facts.__file__).parent
TABLES = ("runs.csv", "runs_new.csv", "memory_rows.csv", "runs_more.csv")
"""The tables of published runs that calibration learns from."""


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
        "held_back": _held_back_rows(batch, trials, sigma, naive_errors(batch)),
    }


def naive_errors(batch: Batch) -> np.ndarray:
    """[N] log of predicted over measured by a rule of thumb: the usual share of the peak.

    The median MFU of other organisations' rows on the same chip family in as many bits, of the
    family, or of all.
    """
    cases = batch.cases
    reached = np.array([reached_mfu(case) for case in cases])
    narrow = [case.precision.arithmetic in ("fp8", "fp4") for case in cases]
    found = []
    for i, case in enumerate(cases):
        other = np.array([c.organisation != case.organisation for c in cases])
        family = np.array([c.device.family == case.device.family for c in cases])
        bits = np.array([n == narrow[i] for n in narrow])
        pick = next((m for m in (other & family & bits, other & family, other & bits) if m.any()),
                    other)  # fmt: skip
        found.append(np.log(reached[i] / np.median(reached[pick])) if pick.any() else 0.0)
    return np.array(found)


def reached_mfu(case: Case) -> float:
    """MFU of a case: model FLOPs over the dense peak of its precision."""
    kind = case.precision.arithmetic
    peaks = case.device.peak_flops
    peak = peaks.get("tf32" if kind == "fp32" else kind) or max(peaks.values())
    flops = flops_per_token(case.architecture, case.sequence) * case.sequence * case.global_batch
    return float(flops / (case.seconds or 1.0) / case.devices / peak)


def published() -> list[Row]:
    """The rows of all packaged tables; an id that stands in two counts once."""
    rows = {row["id"]: row for name in TABLES for row in read_table(name)}
    return list(rows.values())


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
    logs = shared(full.names, full.theta).items()
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
            "combinations": sorted(spread.combinations),
            "devices": sorted(spread.devices),
        },
        "between": between_layouts(batch, trials["organisation"].error),
        "summary": {
            "in_sample": summary(full.residual),
            **{f"without_{k}": summary(trials[k].error, sigma[k]) for k in trials},
        },
    }


SHARED = 50.0
"""Layouts that the spread of all kinds of model counts as beside that of one."""


def between_layouts(batch: Batch, error: np.ndarray) -> dict[str, float]:
    """Spread of errors between layouts that differ in nothing else, by kind of model.

    The median over groups (they hold blunders), each kind drawn to that of all.
    """
    groups: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for case, one in zip(batch.cases, error.tolist(), strict=True):
        key = (*cell_of(case), case.architecture, case.devices, case.precision, case.sequence)
        groups.setdefault(key, {}).setdefault(str(case.layout), []).append(one)
    found = {kind: _spreads(groups, kind) for kind in ("", "dense", "moe")}
    whole, _ = found.pop("")
    return {k: _round((SHARED * whole + n * own) / (SHARED + n)) for k, (own, n) in found.items()}


def _spreads(
    groups: Mapping[tuple[Any, ...], Mapping[str, list[float]]], kind: str
) -> tuple[float, int]:
    """(median spread, layouts less groups) of the groups of one kind of model, or of all."""
    spread, count = [], []
    for key, layouts in groups.items():
        if len(layouts) > 1 and kind in ("", key[3]):
            spread.append(float(np.std([np.median(v) for v in layouts.values()], ddof=1)))
            count.append(len(layouts) - 1)
    if not spread:
        return 0.0, 0
    order = np.argsort(spread)
    middle = np.searchsorted(np.cumsum(np.array(count)[order]), 0.5 * sum(count))
    return spread[order[middle]], sum(count)


def _years(batch: Batch) -> dict[str, list[float]]:
    """First and last year in which each engine was measured."""
    seen: dict[str, list[float]] = {}
    for s in batch.situations:
        seen.setdefault(s.design.fits, []).append(round(s.year, 2))
    return {name: [min(years), max(years)] for name, years in sorted(seen.items())}


def _held_back_rows(
    batch: Batch,
    trials: Mapping[str, HeldBack],
    sigma: Mapping[str, np.ndarray],
    naive: np.ndarray,
) -> list[dict[str, str]]:
    rows = []
    for i, case in enumerate(batch.cases):
        row = {
            "id": case.id,
            "measured_s": f"{case.seconds:.6g}",
            "organisation": case.organisation,
            "device": case.device.id,
            "chip_family": case.device.family,
            "engine": case.engine,
            "model": case.family,
            "naive_error": f"{naive[i]:.4f}",
        }
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


def _previous(path: Path) -> dict[str, Any]:
    """What stands in the file: other calibrations keep their parts of it there."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def main() -> None:
    """Refit from the shipped coefficients and write both files."""
    path = FOLDER / "coefficients.json"
    start = _previous(path).get("logs")
    found = calibrate(published(), start)
    kept = {k: v for k, v in _previous(path).items() if k not in found["coefficients"]}
    document = {**found["coefficients"], **kept, "memory": memory_part()}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (FOLDER / "held_back.csv").write_text(table_text(found["held_back"]), encoding="utf-8")
    json.dump(found["coefficients"]["summary"], sys.stdout, indent=1)


if __name__ == "__main__":
    main()
