"""A mixed-integer linear programme, built row by row and solved with HiGHS.

HiGHS comes with scipy, the extra ``fleet``.  Equal questions get equal answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krzem.errors import KrzemError

INSTALL = "fleet plans need scipy (for its HiGHS solver): pip install 'krzem[fleet]'"
INFINITY = float("inf")
GAP = 2e-3
"""Relative gap at which a solution counts as the best one."""
PATIENCE = 4.0
"""Seconds for one solve; what is found by then is used, with its gap."""
LAST_PATIENCE = 60.0
"""Where nothing is found by then."""

_INFEASIBLE = 2
"""Status of ``scipy.optimize.milp``."""

Columns = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The best point found."""

    values: NDArray[np.float64]
    objective: float
    gap: float
    """How much better the best point could still be, relative."""

    def at(self, columns: Columns) -> NDArray[np.float64]:
        """Values of some columns, in their shape."""
        return self.values[columns]


class Linear:
    """Columns and rows; minimised over some costs, any number of times."""

    def __init__(self) -> None:
        self._low: list[float] = []
        self._high: list[float] = []
        self._whole: list[bool] = []
        self._rows: list[tuple[list[int], list[float], float, float]] = []

    def columns(
        self, *shape: int, low: float = 0.0, high: Any = INFINITY, whole: bool = False
    ) -> Columns:
        """New variables in an array of this shape; ``high`` broadcasts."""
        count = int(np.prod(shape))
        first = len(self._low)
        self._low += [low] * count
        self._high += np.broadcast_to(np.asarray(high, float), shape).ravel().tolist()
        self._whole += [whole] * count
        return np.arange(first, first + count, dtype=np.int64).reshape(shape)

    def row(
        self,
        terms: Iterable[tuple[int, float]],
        *,
        low: float = -INFINITY,
        high: float = INFINITY,
    ) -> None:
        """``low <= sum of coefficient x column <= high``; columns may repeat."""
        total: dict[int, float] = {}
        for column, factor in terms:
            total[int(column)] = total.get(int(column), 0.0) + float(factor)
        kept = {column: factor for column, factor in total.items() if factor}
        self._rows.append((list(kept), list(kept.values()), low, high))

    def release(self, columns: Columns) -> None:
        """Take the upper limit off slack variables."""
        for column in columns.ravel():
            self._high[int(column)] = INFINITY

    def minimise(self, costs: Mapping[int, float], *, relaxed: bool = False) -> Solution | None:
        """The point of least cost; None where no point satisfies every row.

        ``relaxed`` lets whole columns take fractions: its objective bounds the true one.

        Raises KrzemError where HiGHS is not installed, or finds no point in time.
        """
        try:
            from scipy.optimize import Bounds, LinearConstraint, milp
        except ImportError:
            raise KrzemError(INSTALL) from None
        cost = np.zeros(len(self._low))
        for column, value in costs.items():
            cost[int(column)] += value
        programme = {
            "integrality": np.array(self._whole, dtype=float) * (not relaxed),
            "bounds": Bounds(np.array(self._low), np.array(self._high)),
            "constraints": LinearConstraint(
                self._matrix(), [row[2] for row in self._rows], [row[3] for row in self._rows]
            ),
        }
        for seconds in (PATIENCE, LAST_PATIENCE):
            limits = {"mip_rel_gap": GAP, "time_limit": seconds}
            found = milp(cost, options=limits, **programme)
            if found.x is not None or found.status == _INFEASIBLE:
                break
        if found.status == _INFEASIBLE:
            return None
        if found.x is None:
            raise KrzemError(
                f"no plan was found within {LAST_PATIENCE:g} s ({found.message.strip()}): use fewer"
                " pools, sizes or months"
            )
        return Solution(
            values=np.asarray(found.x), objective=float(found.fun), gap=float(found.mip_gap or 0.0)
        )

    def _matrix(self) -> Any:
        from scipy.sparse import csr_array

        starts = np.cumsum([0, *(len(row[0]) for row in self._rows)])
        index = np.array([c for row in self._rows for c in row[0]], dtype=np.int32)
        value = np.array([v for row in self._rows for v in row[1]], dtype=float)
        return csr_array((value, index, starts), shape=(len(self._rows), len(self._low)))
