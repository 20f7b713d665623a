"""What is trained, granted and paid: the limits that every programme of a fleet shares.

Columns are days on which a slot is occupied in a period, training and being qualified alike; what
arriving takes is subtracted from what is trained.  Every limit has a slack that is closed at first;
``relax`` opens one of them at a time.

Units: days, millions of US dollars, thousands of node-hours, shares of the run's tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from krzem.supply.goal import FleetGoal, Pool
from krzem.supply.linear import GAP, Columns, Linear, Solution
from krzem.supply.periods import Period
from krzem.supply.speed import Slot

HOURS = 24.0
MILLION = 1e6
THOUSAND = 1e3
DAY = 86_400.0
LOOSE = 0.02
"""Relative gap of what only settles ties."""
LEAST_DAYS, LEAST_SHARE = 1.0, 0.01
"""Nobody moves a run for less training than that."""

Terms = Iterator[tuple[int, float]]
Costs = dict[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slacks:
    """By how much a limit is missed, one column (or array) for each kind."""

    tokens: Columns
    """Share of the run's tokens that is not trained."""
    budget: Columns
    """Million US dollars above the budget."""
    months: Columns
    """Million US dollars above the budget of each month that has one."""
    domestic: Columns
    """Share of the tokens that domestic devices fall short of."""
    most: Columns
    """Thousand node-hours above each grant."""
    least: Columns
    """Thousand node-hours below each grant's smallest request."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Days that it takes to come to a place, its own qualification included."""

    begin: float
    """As the first one."""
    near: float
    """From another pool of the same software."""
    far: float
    """From other software."""
    resize: float
    """From another number of devices of the same pool."""

    @classmethod
    def of(cls, goal: FleetGoal, slots: Sequence[Slot]) -> Arrivals:
        """With the time to bring the largest checkpoint of ``slots`` to another site."""
        size = max(slot.speed.checkpoint_bytes for slot in slots)
        transfer = size / goal.moves.bytes_per_s / DAY
        moves = goal.moves
        return cls(moves.start, moves.same_stack + transfer, moves.other_stack + transfer,
                   moves.resize)  # fmt: skip

    def way(self, before: Slot | None, after: Slot) -> str:
        """How the run comes from one slot to another: begin, resize, near or far."""
        if before is None:
            return "begin"
        if before.pool == after.pool:
            return "resize"
        return "near" if before.speed.stack == after.speed.stack else "far"

    @property
    def longest(self) -> float:
        """Of all ways."""
        return max(self.begin, self.near, self.far, self.resize)

    @staticmethod
    def least(slot: Slot) -> float:
        """Days that a visit trains at least: one, or a hundredth of the run."""
        return min(LEAST_DAYS, LEAST_SHARE * slot.speed.days.mid)


class Programme:
    """Columns and rows of tokens, grants and money over slots and periods.

    A subclass says which columns are days of work (:meth:`work`), what arriving took
    (:meth:`arrived`), and which columns say that a slot is used (:meth:`used`); it calls
    :meth:`limit` when these exist.
    """

    def __init__(
        self,
        goal: FleetGoal,
        slots: Sequence[Slot],
        calendar: Sequence[Period],
        arrivals: Arrivals,
        *,
        pessimism: float = 0.0,
        gap: float = GAP,
    ) -> None:
        """``pessimism`` slows every pool by so many standard deviations of its own error; a
        search ends within ``gap`` of the best."""
        self.gap = gap
        self.goal, self.slots, self.periods = goal, tuple(slots), tuple(calendar)
        self.arrivals = arrivals
        self.lp = Linear()
        self.rates = np.array([slot.speed.share_per_day / np.exp(pessimism * sigma(slot))
                               for slot in slots])  # fmt: skip
        self.lengths = np.array([period.days for period in self.periods])
        self.grants = [(p, grant) for p in sorted({slot.pool for slot in slots})
                       for grant in goal.pools[p].grants]  # fmt: skip
        self.there = self._availability()
        self.months = [m for m in dict.fromkeys(p.month for p in self.periods)
                       if m in goal.month_budgets]  # fmt: skip

    def pool(self, slot: int) -> Pool:
        """The pool of a slot."""
        return self.goal.pools[self.slots[slot].pool]

    # What a subclass says

    def work(self, i: int, m: int) -> Iterable[int]:
        """Columns of days on which slot ``i`` is occupied in period ``m``."""
        raise NotImplementedError

    def arrived(self, i: int) -> Terms:
        """Days that arriving at slot ``i`` took in all, as terms."""
        raise NotImplementedError

    def used(self, i: int) -> Iterable[int]:
        """Columns each of which is 1 where slot ``i`` is used."""
        raise NotImplementedError

    # Aims

    def cheapest(self, relaxed: bool = False) -> Solution | None:
        """Least money; least node-hours where nothing costs any."""
        return self._best(self.costs, relaxed)

    def earliest(self, relaxed: bool = False) -> Solution | None:
        """The fewest days of the last period: the earliest end, if no earlier period will do."""
        return self.lp.minimise(self._last_days(), relaxed=relaxed, gap=self.gap)

    def cheapest_ending(self, days: float) -> Solution | None:
        """The cheapest, to 2 %, that takes at most ``days`` of the last period."""
        self.lp.row(self._last_days().items(), high=days + 1e-6)
        self.gap = LOOSE
        return self.cheapest()

    def least_slack(self, columns: Columns) -> Solution | None:
        """The least sum of some slacks, which are opened for it."""
        self.lp.release(columns)
        return self._best({int(c): 1.0 for c in columns.ravel()}, False)

    def _best(self, costs: Costs, relaxed: bool) -> Solution | None:
        found = self.lp.minimise(costs, relaxed=relaxed, gap=self.gap)
        if found is None or relaxed:
            return found
        return self.lp.settled(found, costs, self._second())

    def _second(self) -> Costs:
        """What settles ties: early days, and a little money."""
        early = {c: 1.0 + 0.1 * m for m in range(len(self.periods))
                 for i in range(len(self.slots)) for c in self.work(i, m)}  # fmt: skip
        whole = sum(self.costs.values()) or 1.0
        return {c: early.get(c, 0.0) + self.costs.get(c, 0.0) / whole
                for c in {*early, *self.costs}}  # fmt: skip

    def _last_days(self) -> Costs:
        last = len(self.periods) - 1
        return {c: 1.0 for i in range(len(self.slots)) for c in self.work(i, last)}

    @cached_property
    def costs(self) -> Costs:
        """What the cheapest plan is cheapest in, by column."""
        found = self._money()
        return found if any(found.values()) else self._node_hours()

    # Rows

    def limit(self) -> None:
        """Columns of grants, purchases and slacks, and the rows of every limit."""
        lp, m = self.lp, len(self.periods)
        self.hours = lp.columns(len(self.grants), m, high=self._grant_limits())
        self.asked = lp.columns(len(self.grants), high=1.0, whole=True)
        self.bought = lp.columns(len(self.goal.pools))
        self.slack = Slacks(
            tokens=lp.columns(1, high=0.0), budget=lp.columns(1, high=0.0),
            months=lp.columns(len(self.months), high=0.0), domestic=lp.columns(1, high=0.0),
            most=lp.columns(len(self.grants), high=0.0),
            least=lp.columns(len(self.grants), high=0.0),
        )  # fmt: skip
        for period, length in enumerate(self.lengths):
            days = [(c, 1.0) for i in range(len(self.slots)) for c in self.work(i, period)]
            lp.row(days, high=float(length))
        self._token_rows()
        self._grant_rows()
        self._money_rows()

    def trained(self, i: int) -> Terms:
        """Days of training of slot ``i``."""
        for m in range(len(self.periods)):
            for column in self.work(i, m):
                yield column, 1.0
        for column, days in self.arrived(i):
            yield column, -days

    def _availability(self) -> NDArray[np.float64]:
        """Days of each period on which a slot can be used, all of them or none: [S, P]."""
        days = np.zeros((len(self.slots), len(self.periods)))
        for i, slot in enumerate(self.slots):
            pool = self.pool(i)
            first = pool.available(slot.speed.devices)
            for m, period in enumerate(self.periods):
                granted = [g for g in pool.grants if period.within(g.first, g.last)]
                if period.within(first, pool.until) and (granted or not pool.grants):
                    days[i, m] = period.days
        return days

    def _grant_limits(self) -> NDArray[np.float64]:
        limits = np.zeros((len(self.grants), len(self.periods)))
        for g, (p, grant) in enumerate(self.grants):
            nodes = max((s.speed.nodes for s in self.slots if s.pool == p), default=0)
            for m, period in enumerate(self.periods):
                if period.within(grant.first, grant.last):
                    limits[g, m] = period.days * HOURS * nodes / THOUSAND
        return limits

    def _token_rows(self) -> None:
        trained = [(c, f * float(rate)) for i, rate in enumerate(self.rates)
                   for c, f in self.trained(i)]  # fmt: skip
        self.lp.row([*trained, (int(self.slack.tokens[0]), 1.0)], low=1.0)
        share = self.goal.domestic_share
        if share > 0:
            balance = [
                (c, f * float(rate) * (float(self.pool(i).domestic) - share))
                for i, rate in enumerate(self.rates)
                for c, f in self.trained(i)
            ]
            self.lp.row([*balance, (int(self.slack.domestic[0]), 1.0)], low=0.0)

    def _grant_rows(self) -> None:
        for p in sorted({owner for owner, _ in self.grants}):
            mine = [g for g, (owner, _) in enumerate(self.grants) if owner == p]
            for m in range(len(self.periods)):
                used = [
                    (c, self.slots[i].speed.nodes * HOURS / THOUSAND)
                    for i in range(len(self.slots)) if self.slots[i].pool == p
                    for c in self.work(i, m)
                ]  # fmt: skip
                granted = [(int(self.hours[g, m]), -1.0) for g in mine]
                self.lp.row([*used, *granted], low=0.0, high=0.0)
        for g, (_, grant) in enumerate(self.grants):
            total = [(int(c), 1.0) for c in self.hours[g]]
            asked = int(self.asked[g])
            self.lp.row([*total, (asked, -grant.most / THOUSAND), (int(self.slack.most[g]), -1.0)],
                        high=0.0)  # fmt: skip
            self.lp.row([*total, (asked, -grant.least / THOUSAND), (int(self.slack.least[g]), 1.0)],
                        low=0.0)  # fmt: skip

    def _money_rows(self) -> None:
        for i, slot in enumerate(self.slots):
            if self.pool(i).buy is not None:
                held = -slot.speed.devices / THOUSAND
                for column in self.used(i):
                    self.lp.row([(int(self.bought[slot.pool]), 1.0), (column, held)], low=0.0)
        if self.goal.budget_usd is not None:
            terms = [*self._money().items(), (int(self.slack.budget[0]), -1.0)]
            self.lp.row(terms, high=self.goal.budget_usd / MILLION)
        for k, month in enumerate(self.months):
            terms = [t for m, p in enumerate(self.periods) if p.month == month
                     for t in self._paid_in(m)]  # fmt: skip
            limit = self.goal.month_budgets[month] / MILLION
            self.lp.row([*terms, (int(self.slack.months[k]), -1.0)], high=limit)

    # Money

    def _paid_in(self, m: int) -> Terms:
        """What is paid in period ``m``."""
        for i, slot in enumerate(self.slots):
            price = usd_per_day(self.pool(i), slot) / MILLION
            for column in self.work(i, m):
                yield column, price
        for g, (_, grant) in enumerate(self.grants):
            yield int(self.hours[g, m]), grant.usd_per_node_hour * THOUSAND / MILLION
        for p, pool in enumerate(self.goal.pools):
            if pool.buy is not None and self._bill(pool) == m:
                yield int(self.bought[p]), pool.buy.mid * THOUSAND / MILLION

    def _bill(self, pool: Pool) -> int:
        """The period in which a purchase is paid: that of the first delivery."""
        found = [m for m, period in enumerate(self.periods) if pool.first < period.end]
        return found[0] if found else len(self.periods) - 1

    def _money(self) -> Costs:
        total: Costs = {}
        for m in range(len(self.periods)):
            for column, value in self._paid_in(m):
                total[column] = total.get(column, 0.0) + value
        return total

    def _node_hours(self) -> Costs:
        """Thousand node-hours."""
        return {
            c: slot.speed.nodes * HOURS / THOUSAND
            for i, slot in enumerate(self.slots)
            for m in range(len(self.periods))
            for c in self.work(i, m)
        }


def usd_per_day(pool: Pool, slot: Slot) -> float:
    """What a day of a slot costs, apart from grants and purchases."""
    rent = pool.rent.mid if pool.rent is not None else 0.0
    return (rent + pool.running) * slot.speed.devices * HOURS


def sigma(slot: Slot) -> float:
    """Upper standard deviation of the logarithm of the time a slot takes."""
    days = slot.speed.days
    return float(np.log(days.high / days.mid)) / 1.2815515655446004


def merged(costs: Mapping[int, float], more: Mapping[int, float]) -> Costs:
    """Two sets of costs added up."""
    return {c: costs.get(c, 0.0) + more.get(c, 0.0) for c in {*costs, *more}}
