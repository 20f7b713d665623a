"""A solution of the network as stages: which pool trains which tokens, from when to when."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from krzem.supply.goal import FleetGoal
from krzem.supply.linear import Solution
from krzem.supply.network import HOURS, THOUSAND, Network
from krzem.supply.speed import Slot

LEAST_DAYS = 1e-4
"""Shorter visits are rounding of the solver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stretch of the run on one slot."""

    slot: Slot
    index: int
    """Of the slot."""
    first_day: float
    """Days after the start of the plan at which the pool is taken, moves included."""
    last_day: float
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


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantUse:
    """What is asked of one grant."""

    pool: int
    name: str
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
    finish_day: float
    """Days after the start of the plan."""
    start: dt.date
    gap: float
    """How much better the solver could still do, relative."""
    reserve: tuple[Stage, ...] = ()
    """Pools that are held ready and train only what the stages leave over."""

    @property
    def finish(self) -> dt.date:
        """The day on which the last token is trained."""
        return self.start + dt.timedelta(days=int(np.ceil(self.finish_day - 1e-6)))

    def token_shares(self) -> dict[int, float]:
        """Share of the tokens by pool."""
        total = sum(stage.tokens for stage in self.stages)
        shares: dict[int, float] = {}
        for stage in self.stages:
            shares[stage.slot.pool] = shares.get(stage.slot.pool, 0.0) + stage.tokens / total
        return shares


def schedule_of(network: Network, solution: Solution) -> Schedule:
    """The stages of a solution, packed from the start of each month."""
    visits = _visits(network, solution)
    stages = tuple(_merged(network, visits))
    grants = _grants(network, solution)
    purchases = _purchases(network, solution)
    usd = (
        sum(stage.usd for stage in stages)
        + sum(grant.usd for grant in grants)
        + sum(purchase.usd for purchase in purchases)
    )
    return Schedule(
        stages=stages,
        grants=grants,
        purchases=purchases,
        usd=usd,
        finish_day=max((stage.last_day for stage in stages), default=0.0),
        start=network.months[0].first,
        gap=solution.gap,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Visit:
    index: int
    first: float
    last: float
    days: float
    move: str
    move_days: float


def reserve_of(goal: FleetGoal, slots: Sequence[Slot], schedule: Schedule) -> tuple[Stage, ...]:
    """Every pool that ``schedule`` does not use, at its fastest size; the fastest first."""
    used = {stage.slot.pool for stage in schedule.stages}
    best: dict[int, Slot] = {}
    for slot in slots:
        held = best.get(slot.pool)
        if slot.pool not in used and (held is None or slot.speed.days.mid < held.speed.days.mid):
            best[slot.pool] = slot
    ready = sorted(best.values(), key=lambda slot: slot.speed.days.mid)
    move = goal.moves.other_stack
    return tuple(
        Stage(slot=slot, index=-1, first_day=0.0, last_day=0.0, days=0.0, tokens=0.0, move="far",
              move_days=move, node_hours=0.0, usd=0.0)
        for slot in ready
    )  # fmt: skip


def _visits(network: Network, solution: Solution) -> list[_Visit]:
    """Stays of at most a month, in order, as early as pools and grants allow.

    The solver may leave idle days where they cost nothing; only budgets by month need them.
    """
    place = np.round(solution.at(network.at)).astype(int)
    x = solution.at(network.x)
    start = network.months[0].first
    found: list[_Visit] = []
    cursor, here = 0.0, -1
    for m, month in enumerate(network.months):
        if network.goal.month_budgets:
            cursor = max(cursor, float((month.first - start).days))
        there = int(np.argmax(place[:, m])) if place[:, m].any() else -1
        if here >= 0 and here != there and x[here, m] > LEAST_DAYS:
            found.append(_stay(here, cursor, float(x[here, m])))
            cursor = found[-1].last
        if there >= 0:
            visit = _arrival(network, here, there, cursor, float(x[there, m]), start)
            if visit.last > visit.first + LEAST_DAYS:
                found.append(visit)
                cursor = visit.last
        here = there
    return found


def _stay(index: int, first: float, days: float) -> _Visit:
    return _Visit(index=index, first=first, last=first + days, days=days, move="", move_days=0.0)


def _arrival(
    network: Network, here: int, there: int, cursor: float, days: float, start: dt.date
) -> _Visit:
    """The stay at ``there``, with the move to it if the run was elsewhere."""
    if here == there:
        return _stay(there, cursor, days)
    move, move_days = _move(network, here, there)
    pool = network.pool(there)
    available = pool.available(network.slots[there].speed.devices)
    if pool.grants:
        available = max(available, min(grant.first for grant in pool.grants))
    first = max(cursor, float((max(available, start) - start).days))
    return _Visit(
        index=there, first=first, last=first + move_days + days, days=days, move=move,
        move_days=move_days,
    )  # fmt: skip


def _move(network: Network, here: int, there: int) -> tuple[str, float]:
    moves = network.goal.moves
    if here < 0:
        return "begin", moves.start
    before, after = network.slots[here], network.slots[there]
    if before.pool == after.pool:
        return "resize", moves.resize
    if before.speed.stack == after.speed.stack:
        return "near", moves.same_stack + network.transfer_days()
    return "far", moves.other_stack + network.transfer_days()


def _merged(network: Network, visits: Sequence[_Visit]) -> list[Stage]:
    """Visits to the same slot one after the other are one stage; empty ones are dropped."""
    stages: list[Stage] = []
    for visit in visits:
        slot = network.slots[visit.index]
        stage = _stage(network, visit, slot)
        if stages and stages[-1].index == visit.index and visit.move == "":
            stages[-1] = _joined(stages[-1], stage)
        else:
            stages.append(stage)
    return _without_empty(stages)


def _without_empty(stages: Sequence[Stage]) -> list[Stage]:
    """Stages that train; what passing through another took belongs to the next one."""
    kept: list[Stage] = []
    passed: Stage | None = None
    for stage in stages:
        whole = stage if passed is None else _after(passed, stage)
        if stage.days > LEAST_DAYS:
            kept.append(whole)
            passed = None
        else:
            passed = whole
    return kept


def _after(passed: Stage, stage: Stage) -> Stage:
    return replace(
        stage,
        first_day=passed.first_day,
        move=passed.move if stage.move in ("", "resize") else stage.move,
        move_days=passed.move_days + stage.move_days,
        node_hours=passed.node_hours + stage.node_hours,
        usd=passed.usd + stage.usd,
    )


def _stage(network: Network, visit: _Visit, slot: Slot) -> Stage:
    occupied = visit.days + visit.move_days
    return Stage(
        slot=slot,
        index=visit.index,
        first_day=visit.first,
        last_day=visit.last,
        days=visit.days,
        tokens=visit.days * float(network.rates[visit.index]) * slot.speed.tokens,
        move=visit.move,
        move_days=visit.move_days,
        node_hours=occupied * slot.speed.nodes * HOURS,
        usd=occupied * network.usd_per_day(visit.index),
    )


def _joined(a: Stage, b: Stage) -> Stage:
    return replace(
        a,
        last_day=b.last_day,
        days=a.days + b.days,
        tokens=a.tokens + b.tokens,
        node_hours=a.node_hours + b.node_hours,
        usd=a.usd + b.usd,
    )


def _grants(network: Network, solution: Solution) -> tuple[GrantUse, ...]:
    hours = solution.at(network.hours).sum(axis=1) * THOUSAND
    return tuple(
        GrantUse(pool=p, name=grant.name, node_hours=float(used),
                 usd=float(used) * grant.usd_per_node_hour)
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
