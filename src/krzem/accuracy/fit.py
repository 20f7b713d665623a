"""Calibration: the coefficients that published runs support, shrunk towards their priors.

Maximum a posteriori by iteratively reweighted Gauss-Newton.  Residuals are logarithms of
predicted over measured seconds with a Student-t error (published rows contain blunders that must
not steer the fit); a source with many rows counts less per row, because its rows share its
software, its cluster and its mistakes.  What one organisation measured of one chip under one
engine with one kind of model is a cell; a cell that is off as a whole steers as little as a row
that is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from krzem.accuracy.batch import Batch, packed, predict
from krzem.accuracy.case import Case
from krzem.cost.coefficients import COMMON, GROUPED, Coefficients

SCALE = 0.09
"""Scale of the Student-t error of one row (natural logarithm)."""
FREEDOM = 3.0
MEAN_WEIGHT = 0.25
"""What a row counts in the mean: rows share more than their cells say."""
STEP = 1e-3
INNER = 6
REST = 2e-3
"""Change of a logarithm that no longer matters."""


OFFSET = 0.02
"""Standard deviation of an organisation's own pace (logarithm): all of its rows share its tuning,
its cluster and its way of measuring, so that the level is learnt between organisations and the
physics within them.  A new organisation has none."""
OWN = "organisation/"


@dataclass(frozen=True, slots=True)
class Fit:
    """A calibration and what is needed to refit it without some rows."""

    names: tuple[str, ...]
    theta: np.ndarray
    jacobian: np.ndarray
    """[N, P] at ``theta``."""
    residual: np.ndarray
    """[N] log of predicted over measured seconds at ``theta``, organisations left out of it."""
    weight: np.ndarray
    """[N] weight of each row, by the size of its source."""
    cell: np.ndarray
    """[N] the cell of each row."""

    @property
    def coefficients(self) -> Coefficients:
        """The calibration as coefficients, without the organisations' own pace."""
        return Coefficients(shared(self.names, self.theta))


def shared(names: Sequence[str], theta: np.ndarray) -> dict[str, float]:
    """The logarithms that predictions use, by name."""
    pairs = zip(names, theta.tolist(), strict=True)
    return {name: value for name, value in pairs if not name.startswith(OWN)}


def pace(batch: Batch, names: Sequence[str], theta: np.ndarray) -> np.ndarray:
    """[N] logarithm of what each row's organisation adds of its own."""
    own = {n.removeprefix(OWN): v for n, v in zip(names, theta.tolist(), strict=True)
           if n.startswith(OWN)}  # fmt: skip
    return np.array([own.get(case.organisation, 0.0) for case in batch.cases])


def coefficient_names(batch: Batch) -> tuple[str, ...]:
    """Common coefficients and those of the families and engines that occur in ``batch``."""
    families = sorted({s.device.family for s in batch.situations})
    engines = sorted({s.design.fits for s in batch.situations})
    members = [
        f"{kind}/{name}"
        for kind in GROUPED
        for name in (engines if kind.startswith("engine") else families)
    ]
    own = sorted({f"{OWN}{case.organisation}" for case in batch.cases})
    return (*COMMON, *members, *own)


def prior_sigma(names: Sequence[str]) -> np.ndarray:
    """[P] standard deviations of the logarithms."""
    return np.array([_sigma(name) for name in names], dtype=float)


def _sigma(name: str) -> float:
    kind, _, member = name.partition("/")
    if name.startswith(OWN):
        return OFFSET
    return (GROUPED if member else COMMON)[kind].sigma


def cell_of(case: Case) -> tuple[str, ...]:
    """What rows that err together share: organisation, chip, engine and kind of model."""
    return case.organisation, case.device.id, case.engine, case.family


def cells_of(batch: Batch) -> np.ndarray:
    """[N] number of each row's cell."""
    keys = [cell_of(case) for case in batch.cases]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], dtype=int)


def source_weights(batch: Batch) -> np.ndarray:
    """[N] what each row counts: a source, an organisation or a cell of many rows less per row."""
    page = Counter(c.source for c in batch.cases)
    house = Counter(c.organisation for c in batch.cases)
    pages = Counter(o for _, o in {(c.source, c.organisation) for c in batch.cases})
    cell = Counter(cell_of(c) for c in batch.cases)
    found = [
        page[c.source] ** -0.3
        * cell[cell_of(c)] ** -0.3
        * (pages[c.organisation] * house[c.organisation]) ** -0.1
        for c in batch.cases
    ]
    return np.asarray(np.array(found) / np.mean(found) * MEAN_WEIGHT)


def residuals(batch: Batch, names: Sequence[str], theta: np.ndarray) -> np.ndarray:
    """[N] log of predicted over measured seconds, as if nothing were known of an organisation."""
    coefficients = Coefficients(shared(names, theta))
    measured = np.array([c.seconds for c in batch.cases], dtype=float)
    return np.asarray(np.log(predict(batch, coefficients).total / measured))


def jacobian(
    batch: Batch, names: Sequence[str], theta: np.ndarray, base: np.ndarray, parts: Parts
) -> np.ndarray:
    """[N, P] by forward differences; a member's factor is tried on its own rows alone."""
    columns = []
    for i, name in enumerate(names):
        if name.startswith(OWN):
            house = name.removeprefix(OWN)
            columns.append(np.array([float(c.organisation == house) for c in batch.cases]))
            continue
        moved = theta.copy()
        moved[i] += STEP
        kind, _, member = name.partition("/")
        if member:
            index, part = parts["engine" if kind.startswith("engine") else "family", member]
            column = np.zeros(len(batch.cases))
            column[index] = (residuals(part, names, moved) - base[index]) / STEP
            columns.append(column)
        else:
            columns.append((residuals(batch, names, moved) - base) / STEP)
    return np.stack(columns, axis=1)


Parts = Mapping[tuple[str, str], tuple[np.ndarray, Batch]]
"""Rows of a family or an engine: their numbers, and they alone as a batch."""


def parts_of(batch: Batch) -> Parts:
    """The rows of each family and of each engine's factor."""
    named = {
        "family": [s.device.family for s in batch.situations],
        "engine": [s.design.fits for s in batch.situations],
    }
    found = {}
    for kind, names in named.items():
        for name in dict.fromkeys(names):
            index = np.flatnonzero([n == name for n in names])
            found[kind, name] = (index, packed([batch.cases[i] for i in index]))
    return found


def robust(residual: np.ndarray, weight: np.ndarray, cell: np.ndarray | None = None) -> np.ndarray:
    """[N] weights of the normal equations under the Student-t error, of rows and of cells."""
    scaled = (residual / SCALE) ** 2
    rows = weight * (FREEDOM + 1.0) / (FREEDOM + scaled) / SCALE**2
    if cell is None:
        return rows
    size, misfit = _misfit(scaled, weight, cell)
    return np.asarray(rows * ((FREEDOM + size) / (FREEDOM + misfit))[cell])


def _misfit(
    scaled: np.ndarray, weight: np.ndarray, cell: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of each cell, by weight, and what they add to the misfit (rows: 1 each in the mean)."""
    loss = (FREEDOM + 1.0) * np.log1p(scaled / FREEDOM)
    return np.bincount(cell, weight), np.bincount(cell, weight * loss)


def gauss_newton(
    jac: np.ndarray,
    residual: np.ndarray,
    theta: np.ndarray,
    sigma: np.ndarray,
    weight: np.ndarray,
    cell: np.ndarray | None = None,
) -> np.ndarray:
    """The step from ``theta`` that solves the weighted normal equations with the prior."""
    w = robust(residual, weight, cell)
    normal = (jac * w[:, None]).T @ jac + np.diag(sigma**-2.0)
    gradient = jac.T @ (w * residual) + theta / sigma**2
    return np.asarray(-np.linalg.solve(normal, gradient))


def objective(
    residual: np.ndarray,
    theta: np.ndarray,
    sigma: np.ndarray,
    weight: np.ndarray,
    cell: np.ndarray,
) -> float:
    """Negative log posterior up to a constant."""
    size, misfit = _misfit((residual / SCALE) ** 2, weight, cell)
    loss = 0.5 * np.sum((FREEDOM + size) * np.log1p(misfit / FREEDOM))
    return float(loss + 0.5 * np.sum((theta / sigma) ** 2))


def fit(batch: Batch, iterations: int = 12, start: Mapping[str, float] | None = None) -> Fit:
    """Calibrate on all rows of ``batch``, from the priors or from earlier logarithms."""
    names = coefficient_names(batch)
    sigma = prior_sigma(names)
    weight, cell = source_weights(batch), cells_of(batch)
    theta = np.array([(start or {}).get(name, 0.0) for name in names])
    residual = residuals(batch, names, theta)
    parts = parts_of(batch)
    jac = jacobian(batch, names, theta, residual, parts)
    for _ in range(iterations):
        with_own = residual + pace(batch, names, theta)
        before = objective(with_own, theta, sigma, weight, cell)
        step = gauss_newton(jac, with_own, theta, sigma, weight, cell)
        length, after = 1.0, np.inf
        while length > 0.05:
            there = theta + length * step
            trial = residuals(batch, names, there)
            with_own = trial + pace(batch, names, there)
            after = objective(with_own, there, sigma, weight, cell)
            if after < before:
                theta, residual = there, trial
                break
            length *= 0.5
        if not after < before - 1e-3:
            break
        jac = jacobian(batch, names, theta, residual, parts)
    return Fit(names, theta, jac, residual, weight, cell)


def without(full: Fit, batch: Batch, held: np.ndarray, rounds: int = 2) -> np.ndarray:
    """The coefficients fitted without the rows in mask ``held``.

    Starts from the full fit and keeps its Jacobian, which the few rows left out hardly change.
    Each round solves the weighted problem with straight-line residuals until it rests and then
    takes the model's own residuals.
    """
    sigma = prior_sigma(full.names)
    keep = ~held
    jac = full.jacobian[keep]
    theta = full.theta
    residual = full.residual + pace(batch, full.names, theta)
    for last in range(1, rounds + 1):
        before = theta
        for _ in range(INNER):
            straight = residual[keep] + jac @ (theta - before)
            step = gauss_newton(jac, straight, theta, sigma, full.weight[keep], full.cell[keep])
            theta = theta + np.clip(step, -0.3, 0.3)
            if np.max(np.abs(step)) < REST:
                break
        if last == rounds or np.max(np.abs(theta - before)) < REST:
            break
        residual = residuals(batch, full.names, theta) + pace(batch, full.names, theta)
    return theta
