"""Figures of merit of predictions against measurements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from krzem.accuracy.outcome import Outcome


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
