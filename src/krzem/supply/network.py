"""The optimisation: where the run is in each month, and how many days it trains there.

One run is in one place at a time.  In each month it stays, or makes one move: a path through
(place, month), with days of training at the place it leaves and the one it reaches.  What is paid,
granted and trained is linear in those days, so the best path is a mixed-integer linear programme.
Every limit has a slack that is closed at first; ``relax`` opens one of them at a time.

Units: days, millions of US dollars, thousands of node-hours, shares of the run's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krzem.supply.goal import FleetGoal, Pool
from krzem.supply.linear import Columns, Linear, Solution
from krzem.supply.months import Month
from krzem.supply.speed import Slot

HOURS = 24.0
MILLION = 1e6
THOUSAND = 1e3
DAY = 86_400.0
ARRIVALS = ("begin", "near", "far")
"""Ways to come to a place: as the first one, from the same software stack, from another."""

Terms = Iterator[tuple[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slacks:
    """By how much a limit is missed, one column (or array) for each kind."""

    tokens: Columns
    """Share of the run's tokens that is not trained."""
    budget: Columns
    """Million US dollars above the budget."""
    months: Columns
    """Million US dollars above the budget of each month."""
    domestic: Columns
    """Share of the tokens that domestic devices fall short of."""
    most: Columns
    """Thousand node-hours above each grant."""
    least: Columns
    """Thousand node-hours below each grant's smallest request."""


class Network:
    """The programme for the months up to the last one given."""

    def __init__(
        self,
        goal: FleetGoal,
        slots: Sequence[Slot],
        months: Sequence[Month],
        *,
        pessimism: float = 0.0,
    ) -> None:
        """``pessimism`` slows every pool by so many standard deviations of its own error."""
        self.goal, self.slots, self.months = goal, tuple(slots), tuple(months)
        self.lp = Linear()
        self.rates = np.array([slot.speed.share_per_day / np.exp(pessimism * sigma(slot))
                               for slot in slots])  # fmt: skip
        self.days = self._availability()
        self._arrive = {
            "begin": np.full(len(slots), goal.moves.start),
            "near": np.full(len(slots), goal.moves.same_stack) + self.transfer_days(),
            "far": np.full(len(slots), goal.moves.other_stack) + self.transfer_days(),
        }
        self._columns()
        self._path_rows()
        self._time_rows()
        self._visit_rows()
        self._token_rows()
        self._grant_rows()
        self._money_rows()

    def transfer_days(self) -> float:
        """Days to bring the largest checkpoint to another site."""
        size = max(slot.speed.checkpoint_bytes for slot in self.slots)
        return size / self.goal.moves.bytes_per_s / DAY

    def pool(self, slot: int) -> Pool:
        """The pool of a slot."""
        return self.goal.pools[self.slots[slot].pool]

    def cheapest(self, relaxed: bool = False) -> Solution | None:
        """Least money (least node-hours where nothing costs any); among equals the fewest days."""
        costs = self._cost_terms()
        if not any(costs.values()):
            costs = self._hour_terms()
        return self.lp.minimise(merged(costs, self._tie_break()), relaxed=relaxed)

    def shortfall(self, relaxed: bool = False) -> Solution | None:
        """The least share of the run that stays untrained: its objective, nearly zero or not."""
        return self.least_slack(self.slack.tokens, relaxed)

    def earliest(self, relaxed: bool = False) -> Solution | None:
        """The earliest end within the last month; among equals the cheapest."""
        end = int(self.lp.columns(1)[0])
        last = len(self.months) - 1
        time = list(self._occupied_all(last))
        self.lp.row([(end, 1.0), *((c, -f) for c, f in time)], low=0.0)
        length = self.months[last].days
        for i in range(len(self.slots)):
            waiting = length - float(self.days[i, last])
            if waiting > 0 and self.days[i, last] > 0:
                # A place that is delivered within the month ends no earlier than that.
                here = [(c, -f) for c, f in self._occupied(i, last)]
                came = [(c, -waiting) for c in self._coming(i, last)]
                self.lp.row([(end, 1.0), *here, *came], low=0.0)
        cheap = {c: 1e-4 * v for c, v in self._cost_terms().items()}
        return self.lp.minimise(merged({end: 1.0}, cheap), relaxed=relaxed)

    def least_slack(self, columns: Columns, relaxed: bool = False) -> Solution | None:
        """The least sum of some slacks, which are opened for it."""
        self.lp.release(columns)
        missed = {int(c): 1.0 for c in columns.ravel()}
        return self.lp.minimise(merged(missed, self._tie_break(1e-10)), relaxed=relaxed)

    # Columns

    def _availability(self) -> NDArray[np.float64]:
        """Days of each month, per slot, on which it is there: [S, M]."""
        days = np.zeros((len(self.slots), len(self.months)))
        for i, slot in enumerate(self.slots):
            pool = self.pool(i)
            first = pool.available(slot.speed.devices)
            for m, month in enumerate(self.months):
                days[i, m] = month.overlap(first, pool.until)
        return days

    def _columns(self) -> None:
        lp, (s, m) = self.lp, self.days.shape
        there = (np.cumsum(self.days, axis=1) > 0).astype(float)
        self.at = lp.columns(s, m, high=there, whole=True)
        self.wait = lp.columns(m, high=1.0)
        self.stay = lp.columns(s, m, high=there)
        now = (self.days > 0).astype(float)
        self.come = {way: lp.columns(s, m, high=now) for way in ARRIVALS}
        self.leave = {way: lp.columns(s, m, high=there) for way in ("near", "far")}
        self.pairs = [
            (i, j)
            for i in range(s)
            for j in range(s)
            if i != j and self.slots[i].pool == self.slots[j].pool
        ]
        self.resize = lp.columns(len(self.pairs), m, high=1.0)
        self.x = lp.columns(s, m, high=self.days)
        self.grants = [(p, g) for p, pool in enumerate(self.goal.pools) for g in pool.grants]
        self.hours = lp.columns(len(self.grants), m, high=self._grant_limits())
        self.asked = lp.columns(len(self.grants), high=1.0, whole=True)
        self.bought = lp.columns(len(self.goal.pools))
        self.slack = Slacks(
            tokens=lp.columns(1, high=0.0), budget=lp.columns(1, high=0.0),
            months=lp.columns(m, high=0.0), domestic=lp.columns(1, high=0.0),
            most=lp.columns(len(self.grants), high=0.0),
            least=lp.columns(len(self.grants), high=0.0),
        )  # fmt: skip

    def _grant_limits(self) -> NDArray[np.float64]:
        limits = np.zeros((len(self.grants), len(self.months)))
        for g, (p, grant) in enumerate(self.grants):
            nodes = max((s.speed.nodes for s in self.slots if s.pool == p), default=0)
            for m, month in enumerate(self.months):
                limits[g, m] = month.overlap(grant.first, grant.last) * HOURS * nodes / THOUSAND
        return limits

    # Rows

    def _coming(self, i: int, m: int) -> list[int]:
        """Columns of every way to come to slot ``i`` in month ``m``."""
        into = [int(self.resize[k, m]) for k, (_, j) in enumerate(self.pairs) if j == i]
        return [*(int(self.come[way][i, m]) for way in ARRIVALS), *into]

    def _going(self, i: int, m: int) -> list[int]:
        out = [int(self.resize[k, m]) for k, (j, _) in enumerate(self.pairs) if j == i]
        return [int(self.leave["near"][i, m]), int(self.leave["far"][i, m]), *out]

    def _path_rows(self) -> None:
        lp = self.lp
        stacks = sorted({slot.speed.stack for slot in self.slots})
        for m in range(len(self.months)):
            before = [(self.wait[m - 1], -1.0)] if m else []
            begin = [(c, 1.0) for c in self.come["begin"][:, m]]
            lp.row([(self.wait[m], 1.0), *begin, *before], low=0.0 if m else 1.0,
                   high=0.0 if m else 1.0)  # fmt: skip
            for i in range(len(self.slots)):
                coming = [(c, -1.0) for c in self._coming(i, m)]
                lp.row([(self.at[i, m], 1.0), (self.stay[i, m], -1.0), *coming], low=0.0, high=0.0)
                going = [(c, -1.0) for c in self._going(i, m)]
                was = [(self.at[i, m - 1], 1.0)] if m else []
                lp.row([*was, (self.stay[i, m], -1.0), *going], low=0.0, high=0.0)
            for stack in stacks:
                near = [i for i, slot in enumerate(self.slots) if slot.speed.stack == stack]
                self._balance("near", near, m)
            self._balance("far", range(len(self.slots)), m)

    def _balance(self, way: str, members: Sequence[int], m: int) -> None:
        """Who leaves towards a hub is who comes from it."""
        out = [(self.leave[way][i, m], 1.0) for i in members]
        into = [(self.come[way][i, m], -1.0) for i in members]
        self.lp.row([*out, *into], low=0.0, high=0.0)

    def _occupied(self, i: int, m: int) -> Terms:
        """Days on which slot ``i`` is used in month ``m``: training and being qualified."""
        yield int(self.x[i, m]), 1.0
        for way in ARRIVALS:
            yield int(self.come[way][i, m]), float(self._arrive[way][i])
        for k, (_, j) in enumerate(self.pairs):
            if j == i:
                yield int(self.resize[k, m]), self.goal.moves.resize

    def _occupied_all(self, m: int) -> Terms:
        for i in range(len(self.slots)):
            yield from self._occupied(i, m)

    def _time_rows(self) -> None:
        for m, month in enumerate(self.months):
            self.lp.row(self._occupied_all(m), high=month.days)
            for i in range(len(self.slots)):
                days = float(self.days[i, m])
                present = [(c, -days) for c in self._coming(i, m)]
                if m:
                    present.append((int(self.at[i, m - 1]), -days))
                self.lp.row([*self._occupied(i, m), *present], high=0.0)

    def _visit_rows(self) -> None:
        """Rows that every path satisfies and fractions of paths do not: they speed the search.

        A run begins; and one visit trains at most the whole run, or what its grants allow.
        """
        last = len(self.months) - 1
        self.lp.row([(int(self.wait[last]), 1.0)], high=0.0)
        for i, slot in enumerate(self.slots):
            most = min(1.0 / float(self.rates[i]), float(self.days[i].sum()))
            grants = [grant for p, grant in self.grants if p == slot.pool]
            if grants:
                hours = sum(grant.most for grant in grants)
                most = min(most, hours / (slot.speed.nodes * HOURS))
            came = [(c, -most) for m in range(last + 1) for c in self._coming(i, m)]
            self.lp.row([*((int(c), 1.0) for c in self.x[i]), *came], high=0.0)

    def _token_rows(self) -> None:
        trained = [(int(c), float(r)) for row, r in zip(self.x, self.rates, strict=True)
                   for c in row]  # fmt: skip
        self.lp.row([*trained, (int(self.slack.tokens[0]), 1.0)], low=1.0)
        share = self.goal.domestic_share
        if share > 0:
            home = {i for i in range(len(self.slots)) if self.pool(i).domestic}
            balance = [
                (int(c), float(r) * ((1.0 if i in home else 0.0) - share))
                for i, (row, r) in enumerate(zip(self.x, self.rates, strict=True))
                for c in row
            ]
            self.lp.row([*balance, (int(self.slack.domestic[0]), 1.0)], low=0.0)

    def _grant_rows(self) -> None:
        for p, pool in enumerate(self.goal.pools):
            mine = [g for g, (owner, _) in enumerate(self.grants) if owner == p]
            if not pool.grants:
                continue
            for m in range(len(self.months)):
                used = [
                    (c, f * self.slots[i].speed.nodes * HOURS / THOUSAND)
                    for i in range(len(self.slots)) if self.slots[i].pool == p
                    for c, f in self._occupied(i, m)
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
            if self.pool(i).buy is None:
                continue
            for m in range(len(self.months)):
                self.lp.row(
                    [(int(self.bought[slot.pool]), 1.0),
                     (int(self.at[i, m]), -slot.speed.devices / THOUSAND)], low=0.0,
                )  # fmt: skip
        if self.goal.budget_usd is not None:
            terms = [*self._cost_terms().items(), (int(self.slack.budget[0]), -1.0)]
            self.lp.row(terms, high=self.goal.budget_usd / MILLION)
        for m, month in enumerate(self.months):
            limit = self.goal.month_budgets.get(month.name)
            if limit is not None:
                terms = [*self._month_cost(m), (int(self.slack.months[m]), -1.0)]
                self.lp.row(terms, high=limit / MILLION)

    # Money

    def usd_per_day(self, i: int) -> float:
        """What a day of slot ``i`` costs, apart from grants and purchases."""
        pool = self.pool(i)
        rent = pool.rent.mid if pool.rent is not None else 0.0
        return (rent + pool.running) * self.slots[i].speed.devices * HOURS

    def _month_cost(self, m: int) -> Terms:
        for i in range(len(self.slots)):
            price = self.usd_per_day(i) / MILLION
            for column, factor in self._occupied(i, m):
                yield column, factor * price
        for g, (_, grant) in enumerate(self.grants):
            yield int(self.hours[g, m]), grant.usd_per_node_hour * THOUSAND / MILLION
        for p, pool in enumerate(self.goal.pools):
            if pool.buy is not None and self._paid_in(pool) == m:
                yield int(self.bought[p]), pool.buy.mid * THOUSAND / MILLION

    def _paid_in(self, pool: Pool) -> int:
        """The month in which a purchase is paid: that of the first delivery."""
        found = [m for m, month in enumerate(self.months) if pool.first < month.end]
        return found[0] if found else len(self.months) - 1

    def _cost_terms(self) -> dict[int, float]:
        total: dict[int, float] = {}
        for m in range(len(self.months)):
            for column, value in self._month_cost(m):
                total[column] = total.get(column, 0.0) + value
        return total

    def _hour_terms(self) -> dict[int, float]:
        """Thousand node-hours."""
        found: dict[int, float] = {}
        for m in range(len(self.months)):
            for i, slot in enumerate(self.slots):
                for column, factor in self._occupied(i, m):
                    hours = factor * slot.speed.nodes * HOURS / THOUSAND
                    found[column] = found.get(column, 0.0) + hours
        return found

    def _tie_break(self, weight: float = 1e-6) -> dict[int, float]:
        """A small price on days, higher later on, that settles ties."""
        found: dict[int, float] = {}
        for m in range(len(self.months)):
            for column, factor in self._occupied_all(m):
                found[column] = found.get(column, 0.0) + weight * factor * (1 + 0.05 * m)
        return found


def sigma(slot: Slot) -> float:
    """Upper standard deviation of the logarithm of the time a slot takes."""
    days = slot.speed.days
    return float(np.log(days.high / days.mid)) / 1.2815515655446004


def merged(costs: dict[int, float], more: dict[int, float]) -> dict[int, float]:
    """Two sets of costs added up."""
    return {c: costs.get(c, 0.0) + more.get(c, 0.0) for c in {*costs, *more}}
