"""The calendar of a fleet plan: the stretches between days on which something changes.

Within one period every pool is there the whole time or not at all, so that the order of what is
done inside it is free, and what is found over periods is right to the day.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from krzem.supply.goal import FleetGoal
from krzem.supply.speed import Slot

MONTH_DAYS = 365.25 / 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """Days on which nothing begins and nothing ends."""

    month: str
    """``2027-03``: the month that it begins in."""
    first: dt.date
    end: dt.date
    """The day after the last."""

    @property
    def days(self) -> float:
        """Length."""
        return float((self.end - self.first).days)

    def within(self, first: dt.date, end: dt.date) -> bool:
        """Whether all of it lies from ``first`` until ``end`` begins."""
        return first <= self.first and self.end <= end


def periods(goal: FleetGoal, slots: Iterable[Slot], end: dt.date) -> tuple[Period, ...]:
    """The periods from the goal's start until ``end`` begins.

    Cut where a slot of these is delivered or taken away, where a grant begins or ends, and, where
    money comes by the month, between months.
    """
    cuts = {goal.start, end}
    for slot in slots:
        pool = goal.pools[slot.pool]
        cuts |= {pool.available(slot.speed.devices), pool.until}
        cuts |= {day for grant in pool.grants for day in (grant.first, grant.last)}
    if goal.month_budgets:
        cuts |= set(_months(goal.start, end))
    days = sorted(day for day in cuts if goal.start <= day <= end)
    return tuple(
        Period(month=f"{first:%Y-%m}", first=first, end=last) for first, last in pairwise(days)
    )


def part(calendar: Sequence[Period], end: dt.date) -> tuple[Period, ...]:
    """The periods that end by ``end``."""
    return tuple(period for period in calendar if period.end <= end)


def add_months(day: dt.date, count: int) -> dt.date:
    """The first of the month that lies ``count`` months after that of ``day``."""
    index = day.year * 12 + day.month - 1 + count
    return dt.date(index // 12, index % 12 + 1, 1)


def later(day: dt.date, months: float) -> dt.date:
    """``day`` and so many average months."""
    return day + dt.timedelta(days=round(months * MONTH_DAYS))


def _months(start: dt.date, end: dt.date) -> Iterable[dt.date]:
    first = add_months(start, 1)
    while first < end:
        yield first
        first = add_months(first, 1)
