"""Calibrating intervals: how the size of held-back errors depends on what is known of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from krzem.accuracy.batch import Batch
from krzem.accuracy.case import Case
from krzem.accuracy.fit import Fit, residuals, source_weights, without
from krzem.cost.coefficients import FEATURES, Z80, Spread, Standing, combination, features
from krzem.cost.stages import StepSeconds

# Errors on rows that a calibration has not seen
# ----------------------------------------------

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


# Calibrating intervals: how the size of held-back errors depends on what is known of a row
# -----------------------------------------------------------------------------------------

PRIOR = {
    "unseen-device": 0.15, "unseen-family": 0.25, "unseen-engine": 0.15, "guesses": 0.25,
    "unseen-combination": 0.15, "communication": 0.5, "bubble": 0.5, "experts": 0.3,
    "experts-unseen": -0.15, "low-precision": 0.0, "small-step": 0.7,
}  # fmt: skip
"""Weights believed before any error is seen: what is unknown, guessed or small is less certain."""
RIDGE = 0.25
"""Prior standard deviation of a feature's weight."""
HELD = {"small-step": 0.06, "guesses": 0.1}
"""The same where the rows cannot tell: hardly any is bound by its host, and those that are come
from the best-tuned sources; rows with guesses are mostly from sources that are easy to guess."""
UNSEEN = ("unseen-device", "unseen-family", "unseen-engine", "unseen-combination")
"""What may not have been measured by anybody else, in the columns of ``HeldBack.unseen``."""
OFFSET = 0.3
"""The same of an engine's or family's offset."""


def standing(batch: Batch) -> Standing:
    """What intervals depend on, read off cases."""
    cases = batch.cases
    return Standing(
        device=[c.device.id for c in cases],
        family=[c.device.family for c in cases],
        engine=[s.design.fits for s in batch.situations],
        combination=combinations_of(batch),
        guesses=np.array([len(c.guesses) + (not c.recompute_known) for c in cases]),
        experts=np.array([float(c.architecture.is_moe) for c in cases]),
        low_precision=np.array([float(c.precision.arithmetic in ("fp8", "fp4")) for c in cases]),
    )


@dataclass(frozen=True, slots=True)
class _Design:
    matrix: np.ndarray
    prior: np.ndarray
    ridge: np.ndarray
    engines: tuple[str, ...]
    families: tuple[str, ...]


def fit_spread(batch: Batch, step: StepSeconds, trials: Sequence[HeldBack]) -> Spread:
    """The spread that makes 80 % intervals cover 80 % of the rows of ``trials[0]``.

    A Laplace likelihood with a logarithmic scale, maximised by Newton steps (it is convex), then
    scaled to that cover, mixtures of experts by themselves: their errors have longer tails.
    """
    blocks = [_design(batch, step, trial) for trial in trials]
    matrix = np.concatenate([b.matrix for b in blocks])
    size = np.abs(np.concatenate([t.error for t in trials])) + 1e-4
    count = np.tile(source_weights(batch), len(trials))
    weights = _laplace(matrix, size, count / count.mean(), blocks[0])
    for name in (*UNSEEN, "guesses", "experts-unseen"):
        # What nobody has measured, and what is guessed, narrows no interval.
        weights[FEATURES.index(name)] = max(weights[FEATURES.index(name)], 0.0)
    if NAMELESS in blocks[0].engines:
        nameless = len(FEATURES) + blocks[0].engines.index(NAMELESS)
        weights[nameless] = max(weights[nameless], 0.0)
    scaled = np.abs(trials[0].error) / np.exp(blocks[0].matrix @ weights)
    mixture = np.array([c.architecture.is_moe for c in batch.cases])
    weights[0] += _to_cover(scaled[~mixture])
    weights[FEATURES.index("experts")] += _to_cover(scaled[mixture]) - _to_cover(scaled[~mixture])
    return _spread(batch, weights, blocks[0])


NAMELESS = "other"
"""Stands for any engine that is not described, so what was measured under it narrows nothing."""


def _to_cover(scaled: np.ndarray) -> float:
    """What the logarithm of a spread lacks for 80 % of errors in units of it to be covered."""
    return float(np.log(np.quantile(scaled, 0.8) / Z80)) if len(scaled) else 0.0


def _design(batch: Batch, step: StepSeconds, trial: HeldBack) -> _Design:
    known = seen(batch)
    columns = features(step, standing(batch), known)
    for i, name in enumerate(UNSEEN):
        columns[name] = trial.unseen[:, i]
    columns["experts-unseen"] = columns["experts"] * columns["unseen-device"]
    engines, families = tuple(sorted(known.engines)), tuple(sorted(known.families))
    one_hot = [np.array([float(s.design.fits == n) for s in batch.situations]) for n in engines]
    one_hot += [np.array([float(c.device.family == n) for c in batch.cases]) for n in families]
    ridge = [0.0] + [HELD.get(n, RIDGE) ** -2.0 for n in FEATURES[1:]]
    ridge += [OFFSET**-2.0] * len(one_hot)
    matrix = np.stack([columns[n] for n in FEATURES] + one_hot, axis=1)
    prior = [PRIOR.get(n, 0.0) for n in FEATURES] + [0.0] * len(one_hot)
    return _Design(matrix, np.array(prior), np.array(ridge), engines, families)


def _laplace(
    matrix: np.ndarray, size: np.ndarray, count: np.ndarray, design: _Design
) -> np.ndarray:
    """Weights of the logarithm of the scale; a row counts ``count`` times."""
    weights = design.prior.copy()
    weights[0] = np.log(np.mean(size)) - 0.3
    for _ in range(60):
        ratio = size * np.exp(-matrix @ weights)
        gradient = matrix.T @ (count * (1.0 - ratio)) + design.ridge * (weights - design.prior)
        normal = (matrix * (count * ratio)[:, None]).T @ matrix + np.diag(design.ridge + 1e-9)
        step = np.linalg.solve(normal, gradient)
        weights = weights - np.clip(step, -0.5, 0.5)
        if np.max(np.abs(step)) < 1e-6:
            break
    return weights


def _spread(batch: Batch, weights: np.ndarray, design: _Design) -> Spread:
    cut = len(FEATURES) + len(design.engines)
    return Spread(
        weights=dict(zip(FEATURES, _plain(weights[: len(FEATURES)]), strict=True)),
        engines=dict(zip(design.engines, _plain(weights[len(FEATURES) : cut]), strict=True)),
        families=dict(zip(design.families, _plain(weights[cut:]), strict=True)),
        combinations=frozenset(combinations_of(batch)),
        devices=frozenset(c.device.id for c in batch.cases),
    )


def _plain(values: np.ndarray) -> list[float]:
    return [round(float(v), 4) for v in values]


def sigma_of(batch: Batch, step: StepSeconds, trial: HeldBack, spread: Spread) -> np.ndarray:
    """[N] sigma of each row as if it had been predicted in ``trial``."""
    design = _design(batch, step, trial)
    weights = [spread.weights[n] for n in FEATURES]
    weights += [spread.engines[n] for n in design.engines]
    weights += [spread.families[n] for n in design.families]
    return np.asarray(np.exp(design.matrix @ np.array(weights)))
