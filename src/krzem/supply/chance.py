"""How a schedule fares when step times, prices, moves and pools are not what was expected.

The schedule is followed by tokens: each stage trains its share, however long that takes, as far
as its pool, its dates and its grants reach; what is left is trained by the last stages that can.
Step-time errors are log-normal with the planner's own spread; a part is common to all pools, a
part to those of one device family, the rest is the pool's own.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from krzem.estimate import Basis, Estimate
from krzem.supply.goal import FleetGoal, Pool
from krzem.supply.network import HOURS
from krzem.supply.stages import Schedule, Stage

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
    meets_domestic: float | None


def odds(goal: FleetGoal, schedule: Schedule) -> Odds:
    """Follow ``schedule`` through every draw."""
    run = _Run(goal, schedule)
    end, usd, home = run.follow()
    done = end < NEVER
    limit = float((goal.deadline - goal.start).days)
    share = home >= goal.domestic_share - 1e-3
    return Odds(
        meets_date=float(np.mean(end <= limit)),
        within_budget=None if goal.budget_usd is None else float(np.mean(usd <= goal.budget_usd)),
        finishes=float(np.mean(done)),
        finish_days=_interval(end[done]) if np.mean(done) >= 0.5 else None,
        usd=_interval(usd),
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
    seed = int.from_bytes(source.encode()[:64].ljust(8, b"\0"), "little") % (2**63)
    values = np.random.default_rng([20261123, seed]).standard_normal(COUNT)
    values.setflags(write=False)
    return values


class _Run:
    """One schedule and the state of every draw while it is followed."""

    def __init__(self, goal: FleetGoal, schedule: Schedule) -> None:
        self.goal, self.schedule = goal, schedule
        self.stages = (*schedule.stages, *schedule.reserve)
        self.now = np.zeros(COUNT)
        self.left = np.ones(COUNT)
        self.home = np.zeros(COUNT)
        self.usd = np.zeros(COUNT)
        self.hours = {stage.slot.pool: np.zeros(COUNT) for stage in self.stages}
        self.there = {p: self._there(goal.pools[p]) for p in self.hours}
        self.where = np.full(COUNT, -1)

    def follow(self) -> tuple[Draws, Draws, Draws]:
        """Day of the end, US dollars, domestic share of the tokens."""
        planned = range(len(self.schedule.stages))
        for k in planned:
            self._train(k, self.stages[k], self.stages[k].tokens / self.stages[k].slot.speed.tokens)
        for k in (*reversed(planned), *range(len(planned), len(self.stages))):
            self._train(k, self.stages[k], 1.0)
        for purchase in self.schedule.purchases:
            self.usd += purchase.usd
        end = np.where(self.left <= 1e-9, self.now, NEVER)
        return end, self.usd, self.home

    def _there(self, pool: Pool) -> NDArray[np.bool_]:
        uniform = np.argsort(np.argsort(normal(f"there {pool.name}"))) / COUNT
        return np.asarray(uniform < pool.chance)

    def _train(self, k: int, stage: Stage, share: float) -> None:
        """Train ``share`` of the run, or what is left of it, where this stage can."""
        pool = self.goal.pools[stage.slot.pool]
        begin = max(self._day(pool.available(stage.slot.speed.devices)), self._planned(stage))
        arrive = np.where(self.where == k, 0.0, self._move_days(k, stage))
        first = np.maximum(self.now, begin) + arrive
        per_share = two_sided(stage.slot.speed.days, self._error(stage)) * self._stretch(stage)
        wanted = np.minimum(share, self.left) * per_share
        room = self._room(stage, first, arrive)
        days = np.where(self.there[stage.slot.pool], np.minimum(wanted, room), 0.0)
        used = days > 1e-9
        done = days / per_share
        self.left = np.maximum(self.left - done, 0.0)
        self.left[self.left < 1e-9] = 0.0
        self.home += done * pool.domestic
        busy = np.where(used, days / self._stretch(stage) + arrive, 0.0)
        self.hours[stage.slot.pool] += busy * stage.slot.speed.nodes * HOURS
        self.usd += busy * self._price(stage, pool)
        self.now = np.where(used, first + days, self.now)
        self.where = np.where(used, k, self.where)

    def _planned(self, stage: Stage) -> float:
        """Money that comes by the month holds a stage back; nothing else does."""
        return stage.first_day if self.goal.month_budgets else 0.0

    def _stretch(self, stage: Stage) -> float:
        """Calendar days per day of training: above 1 where money comes by the month."""
        if not self.goal.month_budgets:
            return 1.0
        return max((stage.last_day - stage.first_day - stage.move_days) / stage.days, 1.0)

    def _move_days(self, k: int, stage: Stage) -> Draws:
        spread = self.goal.moves.spread
        move = stage.move_days or self.goal.moves.same_stack
        return np.asarray(move * np.exp(spread * normal(f"move {k}")))

    def _error(self, stage: Stage) -> Draws:
        c, speed = self.goal.correlation, stage.slot.speed
        own = max(1.0 - c.shared - c.family, 0.0)
        return np.asarray(
            np.sqrt(c.shared) * normal("shared")
            + np.sqrt(c.family) * normal(f"family {speed.family}")
            + np.sqrt(own) * normal(f"pool {self.goal.pools[stage.slot.pool].name}")
        )

    def _room(self, stage: Stage, first: Draws, arrive: Draws) -> Draws:
        """Days of training that dates and grants still allow."""
        pool = self.goal.pools[stage.slot.pool]
        until = self._day(pool.until)
        if not pool.grants:
            return np.maximum(until - first, 0.0)
        last = max(self._day(grant.last) for grant in pool.grants)
        most = sum(grant.most for grant in pool.grants)
        left = (most - self.hours[stage.slot.pool]) / (stage.slot.speed.nodes * HOURS) - arrive
        return np.maximum(np.minimum(left, min(until, last) - first), 0.0)

    def _price(self, stage: Stage, pool: Pool) -> Draws:
        """US dollars per day of use."""
        rent = np.zeros(COUNT)
        if pool.rent is not None:
            rent = two_sided(pool.rent, normal(f"rent {pool.name}"))
        per_day = (rent + pool.running) * stage.slot.speed.devices * HOURS
        granted = [g for g in self.schedule.grants if g.pool == stage.slot.pool]
        hours = sum(g.node_hours for g in granted)
        if hours:
            per_hour = sum(g.usd for g in granted) / hours
            per_day = per_day + per_hour * stage.slot.speed.nodes * HOURS
        return np.asarray(per_day)

    def _day(self, day: dt.date) -> float:
        return float(min(max((day - self.goal.start).days, 0), int(NEVER)))


def best_by(schedules: Sequence[Schedule], chances: Sequence[Odds]) -> int:
    """The index of the schedule that most surely meets the date; the cheaper of equals."""
    keys = [(-round(o.meets_date, 3), s.usd) for s, o in zip(schedules, chances, strict=True)]
    return keys.index(min(keys))
