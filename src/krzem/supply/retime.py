"""A schedule made for slow pools, laid out again for pools of median speed.

A plan that is to be sure is sought with every pool slowed.  Its order and its shares of the tokens
are kept; each stage then takes the days that its pool is expected to need, and begins as soon as
the stage before it, its pool and its grants allow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from krzem.supply.goal import FleetGoal
from krzem.supply.programme import HOURS, MILLION, usd_per_day
from krzem.supply.stages import LEAST_DAYS, GrantUse, Schedule, Stage, money


@dataclass(slots=True)
class _Source:
    """When a pool may be used, and the grant that pays for it."""

    first: float
    end: float
    use: GrantUse | None
    hours_left: float
    taken: float = 0.0


def retimed(goal: FleetGoal, schedule: Schedule) -> Schedule | None:
    """``schedule`` at median speeds; None where it does not fit its pools and grants."""
    total = sum(stage.tokens for stage in schedule.stages)
    sources = {s.slot.pool: _sources(goal, schedule, s) for s in schedule.stages}
    stages, cursor = [], 0.0
    for stage in schedule.stages:
        share = stage.tokens / total
        days = share * stage.slot.speed.days.mid
        placed = _placed(goal, stage, sources[stage.slot.pool], cursor, stage.move_days + days)
        if placed is None:
            return None
        cursor = placed[-1][1]
        stages.append(_stage(goal, stage, placed, days, share))
    grants = tuple(_asked(source) for used in sources.values() for source in used
                   if source.use is not None and source.taken > 0)  # fmt: skip
    usd = money(stages, grants, schedule.purchases)
    return replace(schedule, stages=tuple(stages), grants=grants, usd=usd, objective=usd / MILLION,
                   bound=0.0)  # fmt: skip


def _stage(
    goal: FleetGoal, stage: Stage, placed: list[tuple[float, float]], days: float, share: float
) -> Stage:
    occupied = stage.move_days + days
    return replace(
        stage,
        stretches=tuple(placed),
        days=days,
        tokens=share * stage.slot.speed.tokens,
        node_hours=occupied * stage.slot.speed.nodes * HOURS,
        usd=occupied * usd_per_day(goal.pools[stage.slot.pool], stage.slot),
    )


def _sources(goal: FleetGoal, schedule: Schedule, stage: Stage) -> list[_Source]:
    """What pays for a pool, what ends first before what ends later."""
    pool = goal.pools[stage.slot.pool]
    end = float((pool.until - goal.start).days)
    if not pool.grants:
        return [_Source(0.0, end, None, float("inf"))]
    found = []
    for use in schedule.grants:
        if use.pool == stage.slot.pool:
            (grant, *_) = [g for g in pool.grants if (g.name, g.first) == (use.name, use.first)]
            first = float((grant.first - goal.start).days)
            last = min(float((grant.last - goal.start).days), end)
            found.append(_Source(first, last, use, grant.most))
    return sorted(found, key=lambda source: source.end)


def _placed(
    goal: FleetGoal, stage: Stage, sources: list[_Source], cursor: float, need: float
) -> list[tuple[float, float]] | None:
    """Stretches of ``need`` days from ``cursor`` on; None where they do not fit."""
    pool = goal.pools[stage.slot.pool]
    there = pool.available(stage.slot.speed.devices)
    cursor = max(cursor, float((there - goal.start).days) if there >= goal.start else 0.0)
    per_day = stage.slot.speed.nodes * HOURS
    placed: list[tuple[float, float]] = []
    for source in sources:
        first = max(cursor, source.first)
        days = min(need, source.end - first, source.hours_left / per_day)
        if days <= LEAST_DAYS:
            continue
        source.hours_left -= days * per_day
        source.taken += days * per_day
        placed.append((first, first + days))
        cursor, need = first + days, need - days
        if need <= LEAST_DAYS:
            return placed
    return None


def _asked(source: _Source) -> GrantUse:
    assert source.use is not None
    price = source.use.usd / source.use.node_hours
    return replace(source.use, node_hours=source.taken, usd=source.taken * price)
