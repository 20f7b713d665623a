"""Uncertain quantities as draws: a log-normal for each estimate, propagated by sampling.

The draws are a fixed Latin hypercube: every quantity's ``COUNT`` quantiles occur exactly once, in
an order that is shuffled with a constant seed.  So equal questions get equal answers, an estimate
that nothing else touches keeps its own low, mid and high to a part in a thousand, and a comparison
of two clusters compares the clusters and not the luck of the draw.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from krzem.estimate import Basis, Estimate

COUNT = 4095
"""Draws per quantity: odd, so that the median is a draw."""

Draws = NDArray[np.float64]

_Z80 = NormalDist().inv_cdf(0.9)
_SOURCES = (
    "step_seconds",
    "failures_per_device_day",
    "restart_seconds",
    "checkpoint_write_bytes_per_s",
    "chance",
    "power_w",
    "system_power_ratio",
    "pue",
    "usd_per_device_hour",
    "evaluation_share",
    "slow_share",
    "rollback_share",
    "stop_share",
    "distance",
)


def draw(estimate: Estimate, source: str) -> Draws:
    """``COUNT`` values of a log-normal whose 10, 50 and 90 % points are ``estimate`` (all > 0).

    The two sides have their own width where ``estimate`` is not symmetric.  ``source`` names what
    varies: the same name gives the same quantiles again (full correlation), two names are
    independent.
    """
    if estimate.low == estimate.high:
        return np.full(COUNT, estimate.mid)
    z = normal(source)
    below = np.log(estimate.mid / estimate.low) / _Z80
    above = np.log(estimate.high / estimate.mid) / _Z80
    return np.asarray(estimate.mid * np.exp(z * np.where(z < 0, below, above)))


def normal(source: str) -> Draws:
    """The standard normal quantiles of one source of chance, shuffled."""
    return _hypercube()[source]


def summary(values: Draws, basis: Basis = Basis.ESTIMATED) -> Estimate:
    """The 10, 50 and 90 % points of ``values``."""
    low, mid, high = np.quantile(values, (0.1, 0.5, 0.9))
    return Estimate(float(low), float(mid), float(high), basis)


@lru_cache(maxsize=1)
def _hypercube() -> dict[str, Draws]:
    inverse = NormalDist().inv_cdf
    quantiles = np.array([inverse((i + 0.5) / COUNT) for i in range(COUNT)])
    rng = np.random.default_rng(20261123)
    table = {source: rng.permutation(quantiles) for source in _SOURCES}
    for column in table.values():
        column.setflags(write=False)
    return table
