"""A solution of the network as stages: which pool trains which tokens, from when to when."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from krzem.supply.goal import FleetGoal
from krzem.supply.linear import Solution
from krzem.supply.network import Network
from krzem.supply.programme import HOURS, THOUSAND, Arrivals, usd_per_day
from krzem.supply.speed import Slot

LEAST_DAYS = 1e-4
"""Shorter stretches are rounding of the solver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of the run on one slot."""

    slot: Slot
    stretches: tuple[tuple[float, float], ...]
    """Days after the start of the plan, from when to when the pool is occupied, in order."""
    days: float
    """Of training."""
    tokens: float
    move: str
    """How the run came here: begin, near, far or resize."""
    move_days: float
    """Checkpoint transfer and requalification, before the training."""
    node_hours: float
    usd: float
    """Rent and running costs; purchases and granted hours are counted apart."""

    @property
    def first_day(self) -> float:
        """When the pool is taken, moves included."""
        return self.stretches[0][0]

    @property
    def last_day(self) -> float:
        """When it is left."""
        return self.stretches[-1][1]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantUse:
    """What is asked of one grant."""

    pool: int
    name: str
    first: dt.date
    last: dt.date
    """The day after the last."""
    node_hours: float
    usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """Devices bought for the run."""

    pool: int
    devices: float
    usd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A whole path with its money, before chance."""

    stages: tuple[Stage, ...]
    grants: tuple[GrantUse, ...]
    purchases: tuple[Purchase, ...]
    usd: float
    start: dt.date
    gap: float
    """How much better the best schedule could still be, relative."""
    objective: float
    """What was minimised: millions of US dollars, thousands of node-hours, or days."""
    bound: float
    """No schedule on these slots has a lower objective."""
    reserve: tuple[Slot, ...] = ()
    """Pools that are held ready and train only what the stages leave over."""

    @property
    def finish_day(self) -> float:
        """Days after the start of the plan."""
        return max((stage.last_day for stage in self.stages), default=0.0)

    @property
    def finish(self) -> dt.date:
        """The day on which the last token is trained."""
        return day_of(self.start, self.finish_day, ends=True)

    def token_shares(self) -> dict[int, float]:
        """Share of the tokens by pool."""
        total = sum(stage.tokens for stage in self.stages)
        shares: dict[int, float] = {}
        for stage in self.stages:
            shares[stage.slot.pool] = shares.get(stage.slot.pool, 0.0) + stage.tokens / total
        return shares


def day_of(start: dt.date, days: float, *, ends: bool = False) -> dt.date:
    """The day on which something begins ``days`` after ``start``, or ends."""
    moment = days - 1e-4 if ends else days + 1e-4
    return start + dt.timedelta(days=max(math.floor(moment), 0))


def schedule_of(network: Network, solution: Solution) -> Schedule:
    """The stages of a solution, as early in each period as what comes before allows."""
    stages = tuple(_stage(network, visit) for visit in _visits(network, solution))
    grants = _grants(network, solution)
    purchases = _purchases(network, solution)
    usd = money(stages, grants, purchases)
    return Schedule(
        stages=stages, grants=grants, purchases=purchases, usd=usd, gap=solution.gap,
        start=network.goal.start, objective=solution.objective,
        bound=solution.bound,
    )  # fmt: skip


def money(
    stages: Sequence[Stage], grants: Sequence[GrantUse], purchases: Sequence[Purchase]
) -> float:
    """US dollars of all of them."""
    usd = [*(s.usd for s in stages), *(g.usd for g in grants), *(p.usd for p in purchases)]
    return float(sum(usd))


def reserve_of(goal: FleetGoal, slots: Sequence[Slot], schedule: Schedule) -> tuple[Slot, ...]:
    """Every pool that ``schedule`` does not use, at its fastest size; the fastest first."""
    used = {stage.slot.pool for stage in schedule.stages}
    best: dict[int, Slot] = {}
    for slot in slots:
        held = best.get(slot.pool)
        if slot.pool not in used and (held is None or slot.speed.days.mid < held.speed.days.mid):
            best[slot.pool] = slot
    return tuple(sorted(best.values(), key=lambda slot: slot.speed.days.mid))


@dataclass(slots=True)
class _Visit:
    """One stay at a slot, however many periods it lasts."""

    index: int
    move: str
    move_days: float
    stretches: list[tuple[float, float]]


def _visits(network: Network, solution: Solution) -> list[_Visit]:
    """Stays in order; days are laid one after the other within each period."""
    found: list[_Visit] = []
    period, cursor = -1, 0.0
    for m, index, days, came in _steps(network, solution):
        if m != period:
            period = m
            cursor = float((network.periods[m].first - network.goal.start).days)
        if came or not found:
            before = found[-1].index if found else None
            found.append(_visit(network, before, index))
        if days > LEAST_DAYS:
            _lengthen(found[-1], cursor, cursor + days)
            cursor += days
    return [visit for visit in found if visit.stretches]


def _steps(network: Network, solution: Solution) -> Iterator[tuple[int, int, float, bool]]:
    """Period, slot, days there, and whether the run has just come, in order of time."""
    place = np.round(solution.at(network.at)).astype(int)
    days = solution.at(network.days)
    here = -1
    for b, (m, _) in enumerate(network.steps):
        there = int(np.argmax(place[:, b])) if place[:, b].any() else -1
        if here >= 0:
            yield m, here, float(days[here, b]), False
        if there >= 0 and there != here:
            yield m, there, float(days[there, b]), True
        here = there


def _visit(network: Network, before: int | None, index: int) -> _Visit:
    slot = network.slots[index]
    way = network.arrivals.way(None if before is None else network.slots[before], slot)
    return _Visit(index, way, move_days(network.arrivals, way), [])


def move_days(arrivals: Arrivals, way: str) -> float:
    """Days of one way to come to a place."""
    return float(getattr(arrivals, way))


def _lengthen(visit: _Visit, first: float, last: float) -> None:
    if visit.stretches and abs(visit.stretches[-1][1] - first) < LEAST_DAYS:
        visit.stretches[-1] = (visit.stretches[-1][0], last)
    else:
        visit.stretches.append((first, last))


def _stage(network: Network, visit: _Visit) -> Stage:
    slot = network.slots[visit.index]
    occupied = sum(last - first for first, last in visit.stretches)
    days = max(occupied - visit.move_days, 0.0)
    return Stage(
        slot=slot,
        stretches=tuple(visit.stretches),
        days=days,
        tokens=days * float(network.rates[visit.index]) * slot.speed.tokens,
        move=visit.move,
        move_days=visit.move_days,
        node_hours=occupied * slot.speed.nodes * HOURS,
        usd=occupied * usd_per_day(network.pool(visit.index), slot),
    )


def _grants(network: Network, solution: Solution) -> tuple[GrantUse, ...]:
    hours = solution.at(network.hours).sum(axis=1) * THOUSAND
    return tuple(
        GrantUse(pool=p, name=grant.name, first=grant.first, last=grant.last,
                 node_hours=float(used), usd=float(used) * grant.usd_per_node_hour)
        for (p, grant), used in zip(network.grants, hours, strict=True)
        if used > 1e-3
    )  # fmt: skip


def _purchases(network: Network, solution: Solution) -> tuple[Purchase, ...]:
    bought = solution.at(network.bought) * THOUSAND
    return tuple(
        Purchase(pool=p, devices=float(np.round(n)), usd=float(n) * pool.buy.mid)
        for p, (pool, n) in enumerate(zip(network.goal.pools, bought, strict=True))
        if pool.buy is not None and n > 0.5
    )
