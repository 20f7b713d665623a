"""Which data set the i-th sample comes from, for given mixture weights.

Drawing at random would match the weights only on average.  Here any prefix matches them within
one sample: the *chairman assignment* (Tijdeman 1980, Discrete Mathematics 32, 323-330) serves, at
every step, the earliest deadline among the data sets that are due.  Its deviation from
``n * weight`` stays below ``1 - 1/(2k - 2)`` for ``k`` data sets, the best possible.

Weights are exact fractions, so the assignment repeats after their common denominator; one period
is tabulated, and any later sample is found by division.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from krzem.errors import DataError

MAX_PERIOD = 1_000_000

Integers = NDArray[np.int64]


def exact_weights(weights: Sequence[float | int | str | Fraction]) -> tuple[Fraction, ...]:
    """``weights`` as fractions that add up to one; ``0.1`` means one tenth, as it is written."""
    try:
        fractions = [w if isinstance(w, Fraction) else Fraction(str(w)) for w in weights]
    except (ValueError, ZeroDivisionError) as error:
        raise DataError(f"mixture weights must be numbers, got {list(weights)!r}") from error
    if not fractions or min(fractions) <= 0:
        shown = ", ".join(map(str, weights)) or "none"
        raise DataError(
            f"mixture weights must all be above zero, got {shown}; leave out a data set instead of "
            "giving it weight zero"
        )
    total = sum(fractions)
    return tuple(f / total for f in fractions)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """An assignment of sample indices to data sets, periodic and tabulated over one period."""

    weights: tuple[Fraction, ...]
    component: Integers
    """Data set of each index in one period; shape [period]."""
    rank: Integers
    """How many earlier indices of the period have the same data set; shape [period]."""
    quota: Integers
    """Indices per period of each data set; shape [data sets]."""

    @classmethod
    def of(cls, weights: Sequence[float | int | str | Fraction]) -> Mixture:
        """The assignment for ``weights``; raises DataError where they have no short period."""
        exact = exact_weights(weights)
        period = math.lcm(*(f.denominator for f in exact))
        if period > MAX_PERIOD:
            raise DataError(
                f"mixture weights {', '.join(map(str, weights))} repeat only after {period:,} "
                f"samples (limit {MAX_PERIOD:,}); round them to three or four digits"
            )
        quota = np.array([int(f * period) for f in exact], dtype=np.int64)
        component = _chairman(quota)
        rank = np.empty(period, dtype=np.int64)
        for k in range(len(exact)):
            rank[component == k] = np.arange(quota[k])
        return cls(weights=exact, component=component, rank=rank, quota=quota)

    def assign(self, index: Integers) -> tuple[Integers, Integers]:
        """Data set of each global sample index, and how many earlier ones it has served already.

        ``index`` has shape [n] with values >= 0; both results have shape [n].
        """
        period, at = np.divmod(index, self.component.size)
        component = self.component[at]
        return component, period * self.quota[component] + self.rank[at]


def _chairman(quota: Integers) -> Integers:
    """One period of the chairman assignment; integers scaled by ``period * slack`` keep it exact.

    With ``credit`` = what a data set is owed so far, it is *due* once its credit with this step's
    share reaches ``1/slack``, and its *deadline* is the number of steps after which the credit
    would exceed ``1 - 1/slack``.
    """
    period, slack = int(quota.sum()), max(2 * quota.size - 2, 1)
    if quota.size == 1:
        return np.zeros(period, dtype=np.int64)
    unit, share = period * slack, [int(q) * slack for q in quota]
    credit = [0] * quota.size
    chosen = np.empty(period, dtype=np.int64)
    for step in range(period):
        due = [k for k, c in enumerate(credit) if c + share[k] >= period]
        best = min(due, key=lambda k: (-((credit[k] + period - unit) // share[k]), k))
        credit = [c + s for c, s in zip(credit, share, strict=True)]
        credit[best] -= unit
        chosen[step] = best
    return chosen
