"""Goodput under interruptions: the share of the wall clock that ends up in kept steps.

Interruptions come at random and independently (a Poisson process).  A run saves a checkpoint after
every ``interval`` seconds of steps, which stops it for ``write`` seconds; an interruption throws
away what came after the last complete checkpoint and costs ``recovery`` seconds, during which it
may be interrupted again.  With M the mean time between interruptions, the expected wall clock per
kept interval has a closed form (J. T. Daly, "A higher order estimate of the optimum checkpoint
interval for restart dumps", Future Generation Computer Systems 22, 2006, equation 13)::

    wall = M exp(recovery / M) (exp((interval + write) / M) - 1)

For interruptions that are rare (interval much below M) its loss is the rule of thumb ``write /
interval + (interval / 2 + recovery) / M``.  Not covered: failures that come in bursts, slow nodes
that do not fail, checkpoints that overlap with steps (give the time for which they stop it).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_LARGEST_EXPONENT = 60.0
"""exp(60) is 1e26: beyond it a run does not end, and numbers stay finite."""
_LARGEST_RATIO = 30.0
"""Of write time to mean time: beyond it the interval is the mean time to 13 digits."""
_SMALLEST_RATIO = 1e-8
"""Below it Daly's terms are exact and a Newton step would only add rounding."""


def goodput(
    interval: ArrayLike, write: ArrayLike, recovery: ArrayLike, mean_time: ArrayLike
) -> NDArray[np.float64]:
    """Kept step time over wall clock, between 0 and 1; all arguments in seconds, broadcast."""
    interval, write, recovery, mean_time = _arrays(interval, write, recovery, mean_time)
    segment = np.expm1(np.minimum((interval + write) / mean_time, _LARGEST_EXPONENT))
    again = np.exp(np.minimum(recovery / mean_time, _LARGEST_EXPONENT))
    return np.asarray((interval / mean_time) / (again * segment))


def optimal_interval(write: ArrayLike, mean_time: ArrayLike) -> NDArray[np.float64]:
    """The seconds of steps between checkpoints that make :func:`goodput` greatest.

    Daly's higher-order estimate, then Newton steps to the exact root of ``(1 - u) exp(u) =
    exp(-write / M)`` with ``u = interval / M``; the recovery time has no part in it.  Young's
    ``sqrt(2 write M)`` is its first term.
    """
    write, mean_time = _arrays(write, mean_time)
    ratio = np.minimum(write / mean_time, _LARGEST_RATIO)
    half = np.sqrt(np.minimum(ratio, 2.0) / 2.0)
    daly = 2.0 * half * (1.0 + half / 3.0 + half**2 / 9.0) - 2.0 * half**2
    u = np.where(ratio < 2.0, daly, 1.0 - np.exp(-1.0 - ratio))
    exact = ratio > _SMALLEST_RATIO
    for _ in range(4):
        # In logarithms the root is well conditioned: log(1 - u) + u + ratio = 0.
        slope = np.where(exact, u / (1.0 - u), 1.0)
        u = np.where(exact, u + (np.log1p(-u) + u + ratio) / slope, u)
    return np.asarray(u * mean_time)


def lost_variance(
    interval: ArrayLike, recovery: ArrayLike, interruptions: ArrayLike
) -> NDArray[np.float64]:
    """Variance, in seconds squared, of the wall clock that ``interruptions`` (expected) cost.

    A compound Poisson sum: each costs the recovery and a part of an interval, uniform in it.
    """
    interval, recovery, interruptions = _arrays(interval, recovery, interruptions)
    return np.asarray(interruptions * ((recovery + interval / 2.0) ** 2 + interval**2 / 12.0))


def _arrays(*values: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.asarray(value, dtype=np.float64) for value in values)
