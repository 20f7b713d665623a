"""The programme over sets: which slots are used, and for how long in each period, in any order.

What it leaves out is the order: a slot that is used is arrived at once.  Every schedule satisfies
it, so that its optimum bounds theirs; it has one binary column for each slot and is quick.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from krzem.supply.linear import Columns, Solution
from krzem.supply.programme import Programme, Terms

WAYS = ("begin", "near", "far", "resize")


class Outline(Programme):
    """The programme over sets of slots."""

    def __init__(self, *given: Any, **more: Any) -> None:
        """Takes what :class:`Programme` takes."""
        super().__init__(*given, **more)
        count = len(self.slots)
        self.uses = self.lp.columns(count, high=(self.there.sum(axis=1) > 0), whole=True)
        self.days = self.lp.columns(*self.there.shape, high=self.there)
        self.come: dict[str, Columns] = {way: self.lp.columns(count, high=1.0) for way in WAYS}
        self._arrival_rows()
        self._day_rows()
        self.limit()

    def work(self, i: int, m: int) -> Iterable[int]:
        """One column."""
        return (int(self.days[i, m]),)

    def arrived(self, i: int) -> Terms:
        """The way that the slot is come to."""
        a = self.arrivals
        for way, days in zip(WAYS, (a.begin, a.near, a.far, a.resize), strict=True):
            yield int(self.come[way][i]), days

    def used(self, i: int) -> Iterable[int]:
        """One column."""
        return (int(self.uses[i]),)

    def chosen(self, solution: Solution) -> list[int]:
        """Indices of the slots that a solution uses."""
        return [int(i) for i in np.flatnonzero(solution.at(self.uses) > 0.5)]

    def look_beyond(self, members: Sequence[int]) -> None:
        """From now on some slot other than these must be used."""
        self.lp.row([(int(c), 1.0) for i, c in enumerate(self.uses) if i not in members], low=1.0)

    def _arrival_rows(self) -> None:
        """Each slot that is used is come to in one way; the first of each stack is come to as the
        first of all or from afar, the first of each pool not by another size."""
        lp = self.lp
        lp.row([(int(c), 1.0) for c in self.come["begin"]], low=1.0, high=1.0)
        stacks = [slot.speed.stack for slot in self.slots]
        pools = [slot.pool for slot in self.slots]
        for i, use in enumerate(self.uses):
            ways = [(int(self.come[way][i]), -1.0) for way in WAYS]
            lp.row([(int(use), 1.0), *ways], low=0.0, high=0.0)
            self._first_of(i, stacks, ("begin", "far"))
            self._first_of(i, pools, ("begin", "far", "near"))

    def _first_of(self, i: int, groups: Sequence[object], ways: Sequence[str]) -> None:
        members = [j for j, group in enumerate(groups) if group == groups[i]]
        came = [(int(self.come[way][j]), 1.0) for way in ways for j in members]
        self.lp.row([*came, (int(self.uses[i]), -1.0)], low=0.0)

    def _day_rows(self) -> None:
        for i, use in enumerate(self.uses):
            for m in np.flatnonzero(self.there[i]):
                day, length = int(self.days[i, m]), float(self.there[i, m])
                self.lp.row([(day, 1.0), (int(use), -length)], high=0.0)
            least = self.arrivals.least(self.slots[i])
            self.lp.row([*self.trained(i), (int(use), -least)], low=0.0)
