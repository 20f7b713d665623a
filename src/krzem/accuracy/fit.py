"""Calibration: the coefficients that published runs support, shrunk towards their priors.

Maximum a posteriori by iteratively reweighted Gauss-Newton.  Residuals are logarithms of
predicted over measured seconds with a Student-t error (published rows contain blunders that must
not steer the fit); a source with many rows counts less per row, because its rows share its
software, its cluster and its mistakes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from krzem.accuracy.batch import Batch, predict
from krzem.cost.coefficients import COMMON, GROUPED, Coefficients

SCALE = 0.09
"""Scale of the Student-t error of one row (natural logarithm)."""
FREEDOM = 3.0
STEP = 1e-3
INNER = 6
REST = 2e-3
"""Change of a logarithm that no longer matters."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A calibration and what is needed to refit it without some rows."""

    names: tuple[str, ...]
    theta: np.ndarray
    jacobian: np.ndarray
    """[N, P] at ``theta``."""
    residual: np.ndarray
    """[N] log of predicted over measured seconds at ``theta``."""
    weight: np.ndarray
    """[N] weight of each row, by the size of its source."""

    @property
    def coefficients(self) -> Coefficients:
        """The calibration as coefficients."""
        return Coefficients(dict(zip(self.names, self.theta.tolist(), strict=True)))


def coefficient_names(batch: Batch) -> tuple[str, ...]:
    """Common coefficients and those of the families and engines that occur in ``batch``."""
    families = sorted({s.device.family for s in batch.situations})
    engines = sorted({s.design.fits for s in batch.kinds})
    members = [
        f"{kind}/{name}"
        for kind in GROUPED
        for name in (engines if kind.startswith("engine") else families)
    ]
    return (*COMMON, *members)


def prior_sigma(names: Sequence[str]) -> np.ndarray:
    """[P] standard deviations of the logarithms."""
    return np.array(
        [(GROUPED if "/" in n else COMMON)[n.split("/")[0]].sigma for n in names], dtype=float
    )


def source_weights(batch: Batch) -> np.ndarray:
    """[N] ``n**-0.5`` for a row of a source with n rows."""
    count = Counter(c.source for c in batch.cases)
    return np.array([count[c.source] ** -0.5 for c in batch.cases])


def residuals(batch: Batch, names: Sequence[str], theta: np.ndarray) -> np.ndarray:
    """[N] log of predicted over measured seconds."""
    coefficients = Coefficients(dict(zip(names, theta.tolist(), strict=True)))
    measured = np.array([c.seconds for c in batch.cases], dtype=float)
    return np.asarray(np.log(predict(batch, coefficients).total / measured))


def jacobian(batch: Batch, names: Sequence[str], theta: np.ndarray, base: np.ndarray) -> np.ndarray:
    """[N, P] by forward differences."""
    columns = []
    for i in range(len(names)):
        moved = theta.copy()
        moved[i] += STEP
        columns.append((residuals(batch, names, moved) - base) / STEP)
    return np.stack(columns, axis=1)


def robust(residual: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """[N] weights of the normal equations under the Student-t error."""
    scaled = (residual / SCALE) ** 2
    return weight * (FREEDOM + 1.0) / (FREEDOM + scaled) / SCALE**2


def gauss_newton(
    jac: np.ndarray, residual: np.ndarray, theta: np.ndarray, sigma: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """The step from ``theta`` that solves the weighted normal equations with the prior."""
    w = robust(residual, weight)
    normal = (jac * w[:, None]).T @ jac + np.diag(sigma**-2.0)
    gradient = jac.T @ (w * residual) + theta / sigma**2
    return np.asarray(-np.linalg.solve(normal, gradient))


def objective(
    residual: np.ndarray, theta: np.ndarray, sigma: np.ndarray, weight: np.ndarray
) -> float:
    """Negative log posterior up to a constant."""
    scaled = (residual / SCALE) ** 2
    misfit = 0.5 * (FREEDOM + 1.0) * np.sum(weight * np.log1p(scaled / FREEDOM))
    return float(misfit + 0.5 * np.sum((theta / sigma) ** 2))


def fit(batch: Batch, iterations: int = 12, start: Mapping[str, float] | None = None) -> Fit:
    """Calibrate on all rows of ``batch``, from the priors or from earlier logarithms."""
    names = coefficient_names(batch)
    sigma = prior_sigma(names)
    weight = source_weights(batch)
    theta = np.array([(start or {}).get(name, 0.0) for name in names])
    residual = residuals(batch, names, theta)
    jac = jacobian(batch, names, theta, residual)
    for _ in range(iterations):
        before = objective(residual, theta, sigma, weight)
        step = gauss_newton(jac, residual, theta, sigma, weight)
        length, after = 1.0, np.inf
        while length > 0.05:
            trial = residuals(batch, names, theta + length * step)
            after = objective(trial, theta + length * step, sigma, weight)
            if after < before:
                theta, residual = theta + length * step, trial
                break
            length *= 0.5
        if not after < before - 1e-3:
            break
        jac = jacobian(batch, names, theta, residual)
    return Fit(names=names, theta=theta, jacobian=jac, residual=residual, weight=weight)


def without(full: Fit, batch: Batch, held: np.ndarray, rounds: int = 2) -> np.ndarray:
    """The coefficients fitted without the rows in mask ``held``.

    Starts from the full fit and keeps its Jacobian, which the few rows left out hardly change.
    Each round solves the weighted problem with straight-line residuals until it rests and then
    takes the model's own residuals.
    """
    sigma = prior_sigma(full.names)
    keep = ~held
    theta, residual = full.theta, full.residual
    for _ in range(rounds):
        before = theta
        for _ in range(INNER):
            straight = residual[keep] + full.jacobian[keep] @ (theta - before)
            step = gauss_newton(full.jacobian[keep], straight, theta, sigma, full.weight[keep])
            theta = theta + np.clip(step, -0.3, 0.3)
            if np.max(np.abs(step)) < REST:
                break
        if np.max(np.abs(theta - before)) < REST:
            break
        residual = residuals(batch, full.names, theta)
    return theta
