"""How a schedule fares when step times, prices, moves and pools are not what was expected.

The schedule is followed by tokens: each stage trains its share, however long that takes, as far
as its pool, its dates and its grants reach; what is left is trained by the last stages that can.
Step-time errors are log-normal with the planner's own spread, the luck of interruptions included; a
part is common to all pools, a part to those of one device family, the rest is the pool's own.  A
grant comes with its own chance, on a day that its lead time makes uncertain.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from krzem.estimate import Basis, Estimate
from krzem.supply.goal import FleetGoal, Grant, Pool
from krzem.supply.programme import HOURS, Arrivals
from krzem.supply.speed import Slot
from krzem.supply.stages import Schedule, Stage, move_days

COUNT = 4000
"""Draws; the same ones for every schedule, so that schedules and not luck are compared."""
NEVER = 1e6
"""Days: a run that does not end within its pools."""
Z80 = 1.2815515655446004

Draws = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Odds:
    """What the draws say of one schedule."""

    meets_date: float
    within_budget: float | None
    finishes: float
    """Share of draws in which the run ends at all within its pools."""
    finish_days: Estimate | None
    """Days after the start, of the draws that finish; None where fewer than half do."""
    usd: Estimate
    mean_usd: float
    """Over all draws, what reserves cost included."""
    meets_domestic: float | None


def odds(goal: FleetGoal, schedule: Schedule) -> Odds:
    """Follow ``schedule`` through every draw."""
    end, usd, home = _Run(goal, schedule).follow()
    done = end < NEVER
    limit = float((goal.deadline - goal.start).days)
    share = home >= goal.domestic_share - 1e-3
    return Odds(
        meets_date=float(np.mean(end <= limit)),
        within_budget=None if goal.budget_usd is None else float(np.mean(usd <= goal.budget_usd)),
        finishes=float(np.mean(done)),
        finish_days=_interval(end[done]) if np.mean(done) >= 0.5 else None,
        usd=_interval(usd),
        mean_usd=float(np.mean(usd)),
        meets_domestic=None if not goal.domestic_share else float(np.mean(share)),
    )


def _interval(values: Draws) -> Estimate:
    low, mid, high = np.quantile(values, (0.1, 0.5, 0.9))
    return Estimate(float(low), float(mid), float(high), Basis.ESTIMATED)


def two_sided(estimate: Estimate, z: Draws) -> Draws:
    """Log-normal draws with the 10, 50 and 90 % points of ``estimate`` at those of ``z``."""
    if estimate.low <= 0 or estimate.low == estimate.high:
        return np.full_like(z, estimate.mid)
    below = np.log(estimate.mid / estimate.low) / Z80
    above = np.log(estimate.high / estimate.mid) / Z80
    return np.asarray(estimate.mid * np.exp(z * np.where(z < 0, below, above)))


@lru_cache(maxsize=256)
def normal(source: str) -> Draws:
    """Standard normal draws of one source of chance; the same for the same name."""
    seed = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "little")
    values = np.random.default_rng([20261123, seed]).standard_normal(COUNT)
    values.setflags(write=False)
    return values


@lru_cache(maxsize=256)
def uniform(source: str) -> Draws:
    """Evenly spread draws between 0 and 1."""
    return np.asarray(np.argsort(np.argsort(normal(source))) / COUNT)


@dataclass(frozen=True, slots=True)
class _Window:
    """When a pool can be used in each draw, and how many node-hours it then gives."""

    first: Draws
    end: Draws
    hours: Draws | None
    """What is left of a grant; changed while the run goes on."""
    usd_per_node_hour: float = 0.0


class _Run:
    """One schedule and the state of every draw while it is followed."""

    def __init__(self, goal: FleetGoal, schedule: Schedule) -> None:
        self.goal, self.schedule = goal, schedule
        slots = [stage.slot for stage in schedule.stages]
        self.slots = [*slots, *schedule.reserve]
        self.arrivals = Arrivals.of(goal, self.slots)
        self.now, self.left = np.zeros(COUNT), np.ones(COUNT)
        self.home, self.usd = np.zeros(COUNT), np.zeros(COUNT)
        self.there = {p: uniform(f"there {goal.pools[p].name}") < goal.pools[p].chance
                      for p in {slot.pool for slot in self.slots}}  # fmt: skip
        self.grants = {p: self._granted(goal.pools[p]) for p in self.there}
        self.where = np.full(COUNT, -1)

    def follow(self) -> tuple[Draws, Draws, Draws]:
        """Day of the end, US dollars, domestic share of the tokens."""
        stages = self.schedule.stages
        total = sum(stage.tokens for stage in stages) or 1.0
        for k, stage in enumerate(stages):
            self._train(k, stage.tokens / total)
        for k in (*reversed(range(len(stages))), *range(len(stages), len(self.slots))):
            self._train(k, 1.0)
        for purchase in self.schedule.purchases:
            self.usd += purchase.usd
        end = np.where(self.left <= 1e-9, self.now, NEVER)
        return end, self.usd, self.home

    # What is there

    def _granted(self, pool: Pool) -> list[_Window]:
        """The grants of a pool that are asked for, each as it turns out."""
        asked = {(g.name, g.first) for g in self.schedule.grants if self.goal.pools[g.pool] == pool}
        kept = [g for g in pool.grants if (g.name, g.first) in asked or not asked]
        return [self._grant(pool, g) for g in sorted(kept, key=lambda g: (g.last, g.first))]

    def _grant(self, pool: Pool, grant: Grant) -> _Window:
        name = f"{pool.name} {grant.name} {grant.first}"
        shift = grant.late_days * (2.0 * uniform(f"lead {name}") - 1.0)
        given = uniform(f"given {name}") < grant.chance
        hours = np.where(given, grant.most, 0.0)
        first, last = self._day(grant.first) + shift, self._day(grant.last) + shift
        return _Window(np.maximum(first, 0.0), last, hours, grant.usd_per_node_hour)

    def _windows(self, k: int) -> Iterator[_Window]:
        slot = self.slots[k]
        pool = self.goal.pools[slot.pool]
        first = max(self._day(pool.available(slot.speed.devices)), self._planned(k))
        end = self._day(pool.until)
        if not pool.grants:
            yield _Window(np.full(COUNT, first), np.full(COUNT, end), None)
        for grant in self.grants[slot.pool]:
            yield _Window(np.maximum(grant.first, first), np.minimum(grant.end, end),
                          grant.hours, grant.usd_per_node_hour)  # fmt: skip

    def _stage(self, k: int) -> Stage | None:
        return self.schedule.stages[k] if k < len(self.schedule.stages) else None

    def _planned(self, k: int) -> float:
        """Money that comes by the month holds a stage back; nothing else does."""
        stage = self._stage(k)
        return stage.first_day if stage and self.goal.month_budgets else 0.0

    def _stretch(self, k: int) -> float:
        """Calendar days per day of training: above 1 where money comes by the month."""
        stage = self._stage(k)
        if not self.goal.month_budgets or stage is None or stage.days <= 0:
            return 1.0
        return max((stage.last_day - stage.first_day - stage.move_days) / stage.days, 1.0)

    # Training

    def _train(self, k: int, share: float) -> None:
        """Train ``share`` of the run, or what is left of it, where this stage can."""
        slot = self.slots[k]
        wanted = np.minimum(share, self.left)
        for window in self._windows(k):
            wanted = wanted - self._in_window(k, slot, window, wanted)

    def _in_window(self, k: int, slot: Slot, window: _Window, share: Draws) -> Draws:
        """Shares of the run trained within one window."""
        pool, stretch = self.goal.pools[slot.pool], self._stretch(k)
        arrive = np.where(self.where == k, 0.0, self._move_days(k))
        first = np.maximum(self.now, window.first) + arrive
        per_share = two_sided(slot.speed.days, self._error(slot)) * stretch
        per_day = slot.speed.nodes * HOURS / stretch
        room = window.end - first
        if window.hours is not None:
            room = np.minimum(room, window.hours / per_day - arrive)
        room = np.where(self.there[slot.pool], np.maximum(room, 0.0), 0.0)
        days = np.minimum(share * per_share, room)
        days = np.where(days > 1e-9, days, 0.0)
        done, used = days / per_share, days > 0
        self.left = np.maximum(self.left - done, 0.0)
        self.left[self.left < 1e-9] = 0.0
        self.home += done * pool.domestic
        busy = np.where(used, days / stretch + arrive, 0.0)
        if window.hours is not None:
            window.hours[:] = np.maximum(window.hours - busy * slot.speed.nodes * HOURS, 0.0)
        self.usd += busy * self._price(slot, pool, window)
        self.now = np.where(used, first + days, self.now)
        self.where = np.where(used, k, self.where)
        return done

    def _move_days(self, k: int) -> Draws:
        """Arriving at stage ``k`` from wherever each draw is."""
        drawn = np.exp(self.goal.moves.spread * normal(f"move {k}"))
        ways = [move_days(self.arrivals, self.arrivals.way(before, self.slots[k]))
                for before in (None, *self.slots)]  # fmt: skip
        return np.asarray(np.array(ways)[self.where + 1] * drawn)

    def _error(self, slot: Slot) -> Draws:
        c = self.goal.correlation
        own = max(1.0 - c.shared - c.family, 0.0)
        return np.asarray(
            np.sqrt(c.shared) * normal("shared")
            + np.sqrt(c.family) * normal(f"family {slot.speed.family}")
            + np.sqrt(own) * normal(f"pool {self.goal.pools[slot.pool].name}")
        )

    def _price(self, slot: Slot, pool: Pool, window: _Window) -> Draws:
        """US dollars per day of use."""
        rent = np.zeros(COUNT)
        if pool.rent is not None:
            rent = two_sided(pool.rent, normal(f"rent {pool.name}"))
        per_day = (rent + pool.running) * slot.speed.devices * HOURS
        return np.asarray(per_day + window.usd_per_node_hour * slot.speed.nodes * HOURS)

    def _day(self, day: dt.date) -> float:
        return float(min(max((day - self.goal.start).days, 0), int(NEVER)))


def best_by(schedules: Sequence[Schedule], chances: Sequence[Odds]) -> int:
    """The index of the schedule that most surely meets the date; the cheaper of equals."""
    keys = [(-round(o.meets_date, 3), s.usd) for s, o in zip(schedules, chances, strict=True)]
    return keys.index(min(keys))
