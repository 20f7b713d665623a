"""The programme over paths: where the run is, what comes after what, and how long it stays.

One run is in one place at a time.  A period is cut into as many steps as it may hold moves; in
each step the run stays, or makes one move: a path through (place, step).  Days of a step are spent
first where the run was, then where it goes, so that a solution is a schedule, in order of days.
What a move takes is spent at the destination, in as many periods as it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from krzem.supply.periods import Period
from krzem.supply.programme import LEAST_DAYS, Programme, Terms

WAYS = ("begin", "near", "far")
MOVES = 2
"""In one period, where there are several periods."""
MOST_MOVES = 4
FEW = 3
"""Periods that may each hold more moves."""


def moves_in(calendar: Sequence[Period], slots: int) -> int:
    """Moves that one period may hold: at most one to each slot is ever of use."""
    return min(slots, MOST_MOVES if len(calendar) <= FEW else MOVES)


class Network(Programme):
    """The programme over paths; small, because every step has a binary column for each slot."""

    def __init__(self, *given: Any, **more: Any) -> None:
        """Takes what :class:`Programme` takes."""
        super().__init__(*given, **more)
        self.moves = moves_in(self.periods, len(self.slots))
        self.steps = [(m, v) for m in range(len(self.periods)) for v in range(self.moves)]
        self._columns()
        self._path_rows()
        self._time_rows()
        self.limit()

    def work(self, i: int, m: int) -> Iterable[int]:
        """One column for each step of the period."""
        return [int(c) for c in self.days[i, m * self.moves : (m + 1) * self.moves]]

    def arrived(self, i: int) -> Terms:
        """What the moves to slot ``i`` take."""
        for b in range(len(self.steps)):
            yield from self._arriving(i, b)

    def used(self, i: int) -> Iterable[int]:
        """Being there, step by step."""
        return [int(c) for c in self.at[i]]

    # Columns

    def _columns(self) -> None:
        lp, (s, b) = self.lp, (len(self.slots), len(self.steps))
        free = np.repeat(self.there, self.moves, axis=1)
        begun = (np.cumsum(free, axis=1) > 0).astype(float)
        now = (free > 0).astype(float)
        self.at = lp.columns(s, b, high=begun, whole=True)
        self.wait = lp.columns(b, high=1.0)
        self.stay = lp.columns(s, b, high=begun)
        self.come = {way: lp.columns(s, b, high=now) for way in WAYS}
        self.leave = {way: lp.columns(s, b, high=begun) for way in WAYS[1:]}
        self.pairs = [
            (i, j)
            for i in range(s)
            for j in range(s)
            if i != j and self.slots[i].pool == self.slots[j].pool
        ]
        self.resize = lp.columns(len(self.pairs), b, high=1.0)
        self.days = lp.columns(s, b, high=free)
        self.owed = lp.columns(s, b, high=(self.arrivals.longest + LEAST_DAYS) * begun)
        self.spent = lp.columns(s, b, high=free)

    def _coming(self, i: int, b: int) -> list[int]:
        """Columns of every way to come to slot ``i`` in step ``b``."""
        into = [int(self.resize[k, b]) for k, (_, j) in enumerate(self.pairs) if j == i]
        return [*(int(self.come[way][i, b]) for way in WAYS), *into]

    def _going(self, i: int, b: int) -> list[int]:
        out = [int(self.resize[k, b]) for k, (j, _) in enumerate(self.pairs) if j == i]
        return [int(self.leave["near"][i, b]), int(self.leave["far"][i, b]), *out]

    def _arriving(self, i: int, b: int) -> Terms:
        days = self.arrivals
        for way, taken in zip(WAYS, (days.begin, days.near, days.far), strict=True):
            yield int(self.come[way][i, b]), taken
        for k, (_, j) in enumerate(self.pairs):
            if j == i:
                yield int(self.resize[k, b]), days.resize

    # Rows

    def _path_rows(self) -> None:
        for b in range(len(self.steps)):
            before = [(self.wait[b - 1], -1.0)] if b else []
            begin = [(c, 1.0) for c in self.come["begin"][:, b]]
            whole = 0.0 if b else 1.0
            self.lp.row([(self.wait[b], 1.0), *begin, *before], low=whole, high=whole)
            for i in range(len(self.slots)):
                self._place_rows(i, b)
            self._hub_rows(b)
            if self.steps[b][1]:
                moved = [(c, 1.0) for i in range(len(self.slots)) for c in self._coming(i, b)]
                before = [(c, -1.0) for i in range(len(self.slots)) for c in self._coming(i, b - 1)]
                self.lp.row([*moved, *before], high=0.0)
        self.lp.row([(int(self.wait[-1]), 1.0)], high=0.0)

    def _place_rows(self, i: int, b: int) -> None:
        """Who is here stayed or came; who was here stays or goes."""
        coming = [(c, -1.0) for c in self._coming(i, b)]
        here = [(self.at[i, b], 1.0), (self.stay[i, b], -1.0), *coming]
        self.lp.row(here, low=0.0, high=0.0)
        was = [(self.at[i, b - 1], 1.0)] if b else []
        going = [(c, -1.0) for c in self._going(i, b)]
        self.lp.row([*was, (self.stay[i, b], -1.0), *going], low=0.0, high=0.0)
        # Who was here and is here has not moved: no fraction leaves and comes back on the way.
        moved = [(c, 1.0) for c in (*self._coming(i, b), *self._going(i, b))]
        self.lp.row([*moved, (self.at[i, b], 1.0), *was], high=2.0)

    def _hub_rows(self, b: int) -> None:
        """Who leaves for another pool comes to one: of the same software, or of any other."""
        stacks = sorted({slot.speed.stack for slot in self.slots})
        for stack in stacks:
            near = [i for i, slot in enumerate(self.slots) if slot.speed.stack == stack]
            self._balance("near", near, b)
            # Nobody leaves a stack for itself the long way.
            out = [(self.leave["far"][i, b], 1.0) for i in near]
            into = [(self.come["far"][i, b], 1.0) for i in near]
            self.lp.row([*out, *into], high=1.0)
        self._balance("far", range(len(self.slots)), b)
        for pool in {slot.pool for slot in self.slots}:
            mine = [i for i, slot in enumerate(self.slots) if slot.pool == pool]
            both = [(self.leave["near"][i, b], 1.0) for i in mine]
            both += [(self.come["near"][i, b], 1.0) for i in mine]
            self.lp.row(both, high=1.0)

    def _balance(self, way: str, members: Iterable[int], b: int) -> None:
        out = [(self.leave[way][i, b], 1.0) for i in members]
        into = [(self.come[way][i, b], -1.0) for i in members]
        self.lp.row([*out, *into], low=0.0, high=0.0)

    def _time_rows(self) -> None:
        for b in range(len(self.steps)):
            for i in range(len(self.slots)):
                self._day_rows(i, b)
        for i in range(len(self.slots)):
            self.lp.row([(int(self.owed[i, -1]), 1.0)], high=0.0)
            self._visit_row(i)

    def _day_rows(self, i: int, b: int) -> None:
        """Days only where the run is; what a visit takes at least is owed until it is spent."""
        m = self.steps[b][0]
        days = float(self.there[i, m])
        present = [(c, -days) for c in self._coming(i, b)]
        if b:
            present.append((int(self.at[i, b - 1]), -days))
        self.lp.row([(int(self.days[i, b]), 1.0), *present], high=0.0)
        self.lp.row([(int(self.spent[i, b]), 1.0), (int(self.days[i, b]), -1.0)], high=0.0)
        longest = self.arrivals.longest + LEAST_DAYS
        self.lp.row([(int(self.owed[i, b]), 1.0), (int(self.at[i, b]), -longest)], high=0.0)
        least = self.arrivals.least(self.slots[i])
        owed = [(c, -days - least) for c, days in self._arriving(i, b)]
        before = [(int(self.owed[i, b - 1]), -1.0)] if b else []
        self.lp.row(
            [(int(self.owed[i, b]), 1.0), (int(self.spent[i, b]), 1.0), *owed, *before],
            low=0.0, high=0.0,
        )  # fmt: skip

    def _visit_row(self, i: int) -> None:
        """One visit trains at most the whole run.

        Every path satisfies this and fractions of paths do not: it speeds the search.
        """
        most = min(1.0 / float(self.rates[i]) + self.arrivals.longest, float(self.there[i].sum()))
        came = [(c, -most) for b in range(len(self.steps)) for c in self._coming(i, b)]
        self.lp.row([*((int(c), 1.0) for c in self.days[i]), *came], high=0.0)
