"""Errors on rows that a calibration has not seen: whole sources, accelerators or families apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from krzem.accuracy.batch import Batch
from krzem.accuracy.case import Case
from krzem.accuracy.fit import Fit, residuals, without
from krzem.cost.uncertainty import Spread, combination

GROUPS: dict[str, Callable[[Case], str]] = {
    "organisation": lambda case: case.organisation,
    "accelerator": lambda case: case.device.id,
    "family": lambda case: case.device.family,
    "engine": lambda case: case.engine,
}
"""What is left out at once, and what tells it from a case."""


ROUNDS = 2
"""Times each refit takes the model's own residuals; more change no figure in its third digit."""


@dataclass(frozen=True, slots=True)
class HeldBack:
    """Errors of each row when its group was left out of the calibration."""

    error: np.ndarray
    """[N] log of predicted over measured seconds."""
    unseen: np.ndarray
    """[N, 4] whether nothing of the row's device, family, engine and combination was left."""


def held_back(full: Fit, batch: Batch, group: str) -> HeldBack:
    """Leave each group of ``batch`` out once; ``group`` is a key of :data:`GROUPS`."""
    key = GROUPS[group]
    names = [key(case) for case in batch.cases]
    label = np.array(names)
    error = np.zeros(len(names))
    unseen = np.zeros((len(names), 4))
    for name in dict.fromkeys(names):
        held = label == name
        theta = without(full, batch, held, ROUNDS)
        error[held] = residuals(batch, full.names, theta)[held]
        unseen[held] = _unseen(batch, held)[held]
    return HeldBack(error, unseen)


def combinations_of(batch: Batch) -> list[str]:
    """Of each case, what of parallelism it combines on which engine."""
    pairs = zip(batch.cases, batch.situations, strict=True)
    return [combination(s.design.fits, c.layout) for c, s in pairs]


def _unseen(batch: Batch, held: np.ndarray) -> np.ndarray:
    fits = [s.design.fits for s in batch.situations]
    named = (
        [c.device.id for c in batch.cases],
        [c.device.family for c in batch.cases],
        fits,
        combinations_of(batch),
    )
    columns = []
    for names in named:
        left = {name for name, out in zip(names, held, strict=True) if not out}
        columns.append([float(name not in left) for name in names])
    return np.array(columns).T


def seen(batch: Batch) -> Spread:
    """A spread that knows every device, family and engine of ``batch`` and nothing else."""
    return Spread(
        weights={},
        engines={s.design.fits: 0.0 for s in batch.situations},
        families={c.device.family: 0.0 for c in batch.cases},
        combinations=frozenset(combinations_of(batch)),
        devices=frozenset(c.device.id for c in batch.cases),
    )
