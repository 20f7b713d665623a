"""A mixed-integer linear programme, built row by row and solved with HiGHS.

HiGHS comes with scipy, the extra ``fleet``.  A search is bounded by the nodes of its tree and by
the gap, never by the clock: equal questions get equal answers on any machine.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krzem.errors import KrzemError

INSTALL = "fleet plans need scipy (for its HiGHS solver): pip install 'krzem[fleet]'"
INFINITY = float("inf")
GAP = 2e-3
"""Relative gap at which a solution counts as the best one."""
NODES = 2_000
"""Nodes of one search; what is found by then is used, with its gap."""
SLACK = 1e-7
"""Relative, by which a first aim may be missed while a second one is sought."""

_STOPPED, _INFEASIBLE = 1, 2
"""Statuses of ``scipy.optimize.milp``."""

Columns = NDArray[np.int64]
Row = tuple[list[int], list[float], float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The best point found."""

    values: NDArray[np.float64]
    objective: float
    bound: float
    """No point has a lower objective."""

    @property
    def gap(self) -> float:
        """How much better the best point could still be, relative."""
        return max(self.objective - self.bound, 0.0) / max(abs(self.objective), 1e-9)

    def at(self, columns: Columns) -> NDArray[np.float64]:
        """Values of some columns, in their shape."""
        return self.values[columns]


class Linear:
    """Columns and rows; minimised over some costs, any number of times."""

    def __init__(self) -> None:
        self._low: list[float] = []
        self._high: list[float] = []
        self._whole: list[bool] = []
        self._rows: list[Row] = []

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
        self._rows.append(_row(terms, low, high))

    def release(self, columns: Columns) -> None:
        """Take the upper limit off slack variables."""
        for column in columns.ravel():
            self._high[int(column)] = INFINITY

    def minimise(
        self, costs: Mapping[int, float], *, relaxed: bool = False, gap: float = GAP
    ) -> Solution | None:
        """The point of least cost, to within ``gap``; None where no point satisfies every row.

        ``relaxed`` lets whole columns take fractions: its objective bounds the true one.

        Raises KrzemError where HiGHS is not installed, or finds no point within its nodes.
        """
        whole = np.array(self._whole) & (not relaxed)
        return self._solve(costs, self._rows, whole, np.array(self._low), np.array(self._high), gap)

    def settled(
        self, found: Solution, costs: Mapping[int, float], second: Mapping[int, float]
    ) -> Solution:
        """``found`` with its whole columns kept, the others at their best for ``costs``, and
        among points as good for ``costs`` at their best for ``second``."""
        whole = np.array(self._whole)
        low = np.where(whole, np.round(found.values), np.array(self._low))
        high = np.where(whole, np.round(found.values), np.array(self._high))
        free = np.zeros(len(whole), dtype=bool)
        first = self._solve(costs, self._rows, free, low, high)
        if first is None or first.objective > found.objective + abs(found.objective) * GAP:
            return found
        limit = first.objective + SLACK * (1.0 + abs(first.objective))
        held = [*self._rows, _row(costs.items(), -INFINITY, limit)]
        last = self._solve(second, held, free, low, high) or first
        objective = min(first.objective, found.objective)
        return Solution(values=last.values, objective=objective, bound=found.bound)

    def _solve(
        self,
        costs: Mapping[int, float],
        rows: list[Row],
        whole: NDArray[np.bool_],
        low: NDArray[np.float64],
        high: NDArray[np.float64],
        gap: float = GAP,
    ) -> Solution | None:
        try:
            from scipy.optimize import Bounds, LinearConstraint, milp
        except ImportError:
            raise KrzemError(INSTALL) from None
        cost = np.zeros(len(low))
        for column, value in costs.items():
            cost[int(column)] += value
        limits = LinearConstraint(_matrix(rows, len(low)), [r[2] for r in rows],
                                  [r[3] for r in rows])  # fmt: skip
        with _silence():
            found = milp(
                cost, integrality=whole.astype(float), bounds=Bounds(low, high),
                constraints=limits, options={"mip_rel_gap": gap, "node_limit": NODES},
            )  # fmt: skip
        if found.status == _INFEASIBLE or (found.x is None and "nfeasible" in found.message):
            return None  # no objective here is unbounded
        if found.x is None:
            stopped = f"after {NODES:,} nodes" if found.status == _STOPPED else "early"
            raise KrzemError(
                f"the solver stopped {stopped} without a plan ({found.message.strip()}): use fewer"
                " pools, sizes or months"
            )
        bound = found.mip_dual_bound if whole.any() else found.fun
        return Solution(
            values=np.asarray(found.x), objective=float(found.fun),
            bound=float(found.fun if bound is None else min(bound, found.fun)),
        )  # fmt: skip


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """HiGHS writes remarks of its own to the process's standard output; they are dropped."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _row(terms: Iterable[tuple[int, float]], low: float, high: float) -> Row:
    total: dict[int, float] = {}
    for column, factor in terms:
        total[int(column)] = total.get(int(column), 0.0) + float(factor)
    kept = {column: factor for column, factor in total.items() if factor}
    return list(kept), list(kept.values()), low, high


def _matrix(rows: list[Row], columns: int) -> Any:
    from scipy.sparse import csr_array

    starts = np.cumsum([0, *(len(row[0]) for row in rows)])
    index = np.array([c for row in rows for c in row[0]], dtype=np.int32)
    value = np.array([v for row in rows for v in row[1]], dtype=float)
    return csr_array((value, index, starts), shape=(len(rows), columns))
