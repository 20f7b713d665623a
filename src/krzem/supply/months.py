"""Calendar months between two days: the periods of a fleet plan."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """The part of a calendar month that belongs to the plan."""

    name: str
    """``2027-03``."""
    first: dt.date
    end: dt.date
    """The day after the last."""

    @property
    def days(self) -> float:
        """Length."""
        return float((self.end - self.first).days)

    def overlap(self, first: dt.date, end: dt.date) -> float:
        """Days of this month from ``first`` until ``end`` begins."""
        return float(max((min(self.end, end) - max(self.first, first)).days, 0))


def months_between(start: dt.date, end: dt.date) -> tuple[Month, ...]:
    """The months from ``start`` until ``end`` begins, the outer two cut."""
    found, first = [], start
    while first < end:
        following = _next_month(first)
        last = min(following, end)
        found.append(Month(name=f"{first:%Y-%m}", first=first, end=last))
        first = following
    return tuple(found)


def add_months(day: dt.date, count: int) -> dt.date:
    """The first of the month that lies ``count`` months after that of ``day``."""
    index = day.year * 12 + day.month - 1 + count
    return dt.date(index // 12, index % 12 + 1, 1)


def _next_month(day: dt.date) -> dt.date:
    return add_months(day, 1)
