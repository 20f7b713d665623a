"""Solves a fleet: all of it at once where it is small, set by set where it is large.

With many pools the programme over paths is too large, and most pools have no part in the best
plan.  The programme over sets (:mod:`krzem.supply.optimum`) names a few slots that could be best
and bounds what any plan can reach; the programme over paths finds the best plan on these; then some
other slot is asked for, until the bound has come up to the best plan found, or after ``ROUNDS``
rounds.  What is left between the two is the plan's ``gap``.  (Decomposition by logic-based Benders
cuts: Hooker and Ottosson, Mathematical Programming 96, 2003.)
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from krzem.supply.goal import FleetGoal
from krzem.supply.linear import GAP, INFINITY, Columns, Solution
from krzem.supply.network import Network
from krzem.supply.periods import Period, periods
from krzem.supply.programme import Arrivals, Programme, Terms
from krzem.supply.speed import Slot
from krzem.supply.stages import Schedule, schedule_of

# The programme over sets of slots
# --------------------------------

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


# Solves a fleet: all of it at once where it is small, set by set where it is large
# ---------------------------------------------------------------------------------

WHOLE = 4
"""Up to so many slots everything is solved at once."""
TOGETHER = 5
"""Slots of one programme over paths, those of earlier rounds included."""
ROUNDS = 40
"""Sets of slots that are looked at."""
CLOSE = 0.01
"""Relative gap at which no other set is looked at."""
CLOSE_PART = 0.005
"""The same of one programme out of several."""
CLOSE_DAYS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a schedule is sought for."""

    goal: FleetGoal
    slots: tuple[Slot, ...]
    until: dt.date
    """The schedule ends before this day begins."""
    pessimism: float = 0.0

    def arrivals(self) -> Arrivals:
        """One set of durations of moves for all programmes."""
        return Arrivals.of(self.goal, self.slots)

    def calendar(self, slots: Sequence[Slot]) -> tuple[Period, ...]:
        """The periods that some slots see."""
        return periods(self.goal, slots, self.until)

    def network(self, slots: Sequence[Slot], calendar: Sequence[Period]) -> Network:
        """The programme over paths of some slots."""
        gap = GAP if len(self.slots) <= WHOLE else CLOSE_PART
        return Network(self.goal, slots, calendar, self.arrivals(), pessimism=self.pessimism,
                       gap=gap)  # fmt: skip

    def outline(self, calendar: Sequence[Period]) -> Outline:
        """The programme over sets of all slots."""
        return Outline(self.goal, self.slots, calendar, self.arrivals(), pessimism=self.pessimism)


@dataclass(slots=True)
class _Search:
    """The best schedule so far, what bounds every schedule on the sets looked at, and these."""

    best: Schedule | None = None
    floor: float = INFINITY
    seen: list[Slot] = field(default_factory=list)
    tried: list[tuple[Slot, ...]] = field(default_factory=list)

    def together(self, chosen: Sequence[Slot]) -> tuple[Slot, ...]:
        """``chosen`` with the slots of the latest rounds."""
        recent = [slot for slot in reversed(self.seen) if slot not in chosen]
        self.seen = [slot for slot in self.seen if slot not in chosen] + list(chosen)
        return tuple([*chosen, *recent][: max(TOGETHER, len(chosen))])

    def took(self, slots: tuple[Slot, ...], found: Schedule | None) -> None:
        """Keep what was found on ``slots`` if it is better than before."""
        self.tried.append(slots)
        if found is None:
            return
        self.floor = min(self.floor, found.bound)
        if self.best is None or found.objective < self.best.objective:
            self.best = found

    def within(self, bound: float, close: float) -> bool:
        """Whether the best schedule is nearly as good as ``bound``."""
        return self.best is not None and self.best.objective <= bound + close

    def answer(self, bound: float = INFINITY, whole: float | None = None) -> Schedule | None:
        """The best with what it could still be better by, relative to ``whole`` or itself."""
        if self.best is None:
            return None
        missed = max(self.best.objective - min(bound, self.floor), 0.0)
        return replace(self.best, gap=missed / max(whole or abs(self.best.objective), 1e-9))


def cheapest(
    goal: FleetGoal, slots: Sequence[Slot], until: dt.date | None = None, pessimism: float = 0.0
) -> Schedule | None:
    """The cheapest schedule by ``until`` (the goal's date); None where none keeps every limit.

    Raises KrzemError where the solver is missing, or stops without an answer.
    """
    if not slots:
        return None
    question = _asked(goal, slots, until, pessimism)
    if len(slots) <= WHOLE:
        return _cheapest_path(question, slots)
    return _cheapest_set(question)


def _asked(
    goal: FleetGoal, slots: Sequence[Slot], until: dt.date | None, pessimism: float
) -> Question:
    """The question of all slots, by the goal's date where no other is given."""
    return Question(
        goal=goal, slots=tuple(slots), until=until or goal.deadline, pessimism=pessimism
    )


def _cheapest_path(question: Question, slots: Sequence[Slot]) -> Schedule | None:
    network = question.network(slots, question.calendar(slots))
    solution = network.cheapest()
    return None if solution is None else schedule_of(network, solution)


def _cheapest_set(question: Question) -> Schedule | None:
    outline = question.outline(question.calendar(question.slots))
    search, bound = _Search(), 0.0
    for _ in range(ROUNDS):
        found = outline.cheapest()
        if found is None:
            return search.answer()
        bound = max(bound, found.bound)
        if search.within(bound, CLOSE * bound):
            break
        slots = search.together([question.slots[i] for i in outline.chosen(found)])
        search.took(slots, _cheapest_path(question, slots))
        outline.look_beyond([question.slots.index(slot) for slot in slots])
    return search.answer(bound)


def earliest(
    goal: FleetGoal, slots: Sequence[Slot], until: dt.date | None = None, pessimism: float = 0.0
) -> Schedule | None:
    """The schedule that ends first, by ``until`` (the goal's date); None where none ends.

    Raises KrzemError where the solver is missing, or stops without an answer.
    """
    if not slots:
        return None
    question = _asked(goal, slots, until, pessimism)
    small = len(slots) <= WHOLE
    return _tidy(question, _earliest_path(question, slots) if small else _earliest_set(question))


def _earliest_path(question: Question, slots: Sequence[Slot]) -> Schedule | None:
    calendar = question.calendar(slots)
    for count in _candidates(question, calendar, slots):
        network = question.network(slots, calendar[:count])
        solution = network.earliest()
        if solution is not None:
            return _ending(network, solution)
    return None


def _ending(network: Network, solution: Solution) -> Schedule:
    """Objective and bound are days after the start."""
    missed = max(solution.objective - solution.bound, 0.0)
    found = schedule_of(network, solution)
    return replace(found, objective=found.finish_day, bound=found.finish_day - missed,
                   gap=missed / max(found.finish_day, 1e-9))  # fmt: skip


def _tidy(question: Question, best: Schedule | None) -> Schedule | None:
    """The cheapest, to 2 %, of the schedules on the same slots that end as early."""
    if best is None:
        return None
    slots = tuple(dict.fromkeys(stage.slot for stage in best.stages))
    calendar = question.calendar(slots)
    end = best.finish_day - 1e-6
    starts = [float((period.first - question.goal.start).days) for period in calendar]
    count = sum(start < end for start in starts)
    network = question.network(slots, calendar[:count])
    solution = network.cheapest_ending(best.finish_day - starts[count - 1])
    if solution is None:
        return best
    return replace(schedule_of(network, solution), objective=best.objective, bound=best.bound,
                   gap=best.gap)  # fmt: skip


def _earliest_set(question: Question) -> Schedule | None:
    calendar = question.calendar(question.slots)
    search, rounds = _Search(), 0
    whole = float((question.until - question.goal.start).days)
    for count in _candidates(question, calendar, question.slots):
        bound = begins = float((calendar[count - 1].first - question.goal.start).days)
        outline = question.outline(calendar[:count])
        for members in search.tried:
            outline.look_beyond([question.slots.index(slot) for slot in members])
        while rounds < ROUNDS and not search.within(bound, CLOSE_DAYS):
            found = outline.earliest()
            if found is None:
                bound = INFINITY
                break
            rounds, bound = rounds + 1, begins + found.bound
            if search.within(bound, CLOSE_DAYS):
                break
            slots = search.together([question.slots[i] for i in outline.chosen(found)])
            search.took(slots, _earliest_path(question, slots))
            outline.look_beyond([question.slots.index(slot) for slot in slots])
        if rounds >= ROUNDS or search.within(bound, CLOSE_DAYS):
            return search.answer(bound, whole)
    return search.answer(whole=whole)


def _candidates(
    question: Question, calendar: Sequence[Period], slots: Sequence[Slot]
) -> Iterator[int]:
    """Numbers of periods after which the run may end, from the first that the relaxed programme
    over sets allows."""
    members = tuple(slots)

    def ends(count: int) -> bool:
        outline = Outline(question.goal, members, calendar[:count], question.arrivals(),
                          pessimism=question.pessimism)  # fmt: skip
        return outline.earliest(relaxed=True) is not None

    low, high = 1, len(calendar)
    if not high or not ends(high):
        return
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if ends(middle) else (middle + 1, high)
    yield from range(low, len(calendar) + 1)
