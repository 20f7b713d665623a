"""Draws of the assumptions, weighted by what is observed.

Every chunk of paths has its own random stream, keyed by seed and chunk number: results do not
depend on how many processors work, and quantity i of path j gets the same quantile under every set
of assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krzem.outlook.assumptions import Assumptions
from krzem.outlook.model import Draws, start

_DRAW, _PATH = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A set of equally likely draws."""

    draws: Draws
    effective: float
    """How many independent draws the weighting leaves."""


def path_rng(assumptions: Assumptions, chunk: int) -> np.random.Generator:
    """The stream for what happens along the paths of a chunk."""
    return _rng(assumptions.run.seed, chunk, _PATH)


def draw_chunk(assumptions: Assumptions, chunk: int, paths: int) -> Chunk:
    """``paths`` draws of everything, resampled in proportion to the evidence.

    Scenarios are drawn after the evidence: the past does not tell which rule will come.
    """
    rng = _rng(assumptions.run.seed, chunk, _DRAW)
    normals = rng.standard_normal((len(assumptions.quantities), paths), dtype=np.float32)
    prior = {
        name: quantity.draw(z)
        for (name, quantity), z in zip(assumptions.quantities.items(), normals, strict=True)
    }
    offset = rng.random()
    weights = _weights(assumptions, prior)
    picked = _systematic(weights, offset)
    draws = {name: values[picked] for name, values in prior.items()}
    for name, options in assumptions.scenarios.items():
        edges = np.cumsum(list(options.values()))[:-1]
        draws[name] = np.searchsorted(edges, rng.random(paths), side="right").astype(np.float32)
    return Chunk(draws=draws, effective=float(1 / (weights**2).sum()))


def _rng(seed: int, chunk: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, chunk, purpose])))


def _weights(assumptions: Assumptions, draws: Draws) -> NDArray[np.float64]:
    """Likelihood of the evidence under each draw, summing to one."""
    lag, slope, _ = start(draws)
    seen = {"lag_months": 12 * lag, "frontier_points_per_year": slope}
    log = np.zeros(len(lag))
    for name, evidence in assumptions.evidence.items():
        log -= 0.5 * ((seen[name].astype(np.float64) - evidence.value) / evidence.deviation) ** 2
    weights = np.exp(log - log.max())
    return np.asarray(weights / weights.sum())


def _systematic(weights: NDArray[np.float64], offset: float) -> NDArray[np.intp]:
    """Indices drawn in proportion to ``weights`` with one random number (least variance)."""
    count = len(weights)
    positions = (np.arange(count) + offset) / count
    return np.minimum(np.searchsorted(np.cumsum(weights), positions), count - 1)
