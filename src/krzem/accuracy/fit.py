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

from krzem.accuracy.batch import Batch, packed, predict
from krzem.cost.coefficients import COMMON, GROUPED, Coefficients

SCALE = 0.09
"""Scale of the Student-t error of one row (natural logarithm)."""
FREEDOM = 3.0
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


def source_weights(batch: Batch) -> np.ndarray:
    """[N] what each row counts: a source, and an organisation, of many rows less per row."""
    page = Counter(c.source for c in batch.cases)
    house = Counter(c.organisation for c in batch.cases)
    pages = Counter(o for _, o in {(c.source, c.organisation) for c in batch.cases})
    found = [
        page[c.source] ** -0.5 * pages[c.organisation] ** -0.25 * house[c.organisation] ** -0.1
        for c in batch.cases
    ]
    return np.asarray(np.array(found) / np.mean(found) * 0.35)


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
    parts = parts_of(batch)
    jac = jacobian(batch, names, theta, residual, parts)
    for _ in range(iterations):
        with_own = residual + pace(batch, names, theta)
        before = objective(with_own, theta, sigma, weight)
        step = gauss_newton(jac, with_own, theta, sigma, weight)
        length, after = 1.0, np.inf
        while length > 0.05:
            there = theta + length * step
            trial = residuals(batch, names, there)
            after = objective(trial + pace(batch, names, there), there, sigma, weight)
            if after < before:
                theta, residual = there, trial
                break
            length *= 0.5
        if not after < before - 1e-3:
            break
        jac = jacobian(batch, names, theta, residual, parts)
    return Fit(names=names, theta=theta, jacobian=jac, residual=residual, weight=weight)


def without(full: Fit, batch: Batch, held: np.ndarray, rounds: int = 2) -> np.ndarray:
    """The coefficients fitted without the rows in mask ``held``.

    Starts from the full fit and keeps its Jacobian, which the few rows left out hardly change.
    Each round solves the weighted problem with straight-line residuals until it rests and then
    takes the model's own residuals.
    """
    sigma = prior_sigma(full.names)
    keep = ~held
    theta = full.theta
    residual = full.residual + pace(batch, full.names, theta)
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
        residual = residuals(batch, full.names, theta) + pace(batch, full.names, theta)
    return theta
