"""Checks a finished schedule against its goal, from the goal alone.

Nothing here is shared with the programmes that find schedules but the values of the goal and the
speeds: dates, moves, money, node-hours and tokens are worked out a second time.  A schedule with a
fault is never shown.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from krzem.supply.goal import FleetGoal, Grant, Pool
from krzem.supply.programme import HOURS, MILLION, usd_per_day
from krzem.supply.stages import LEAST_DAYS, GrantUse, Schedule, Stage, money

DAYS = 2e-3
"""Rounding of the solver, in days."""
PART = 1e-3
"""The same, relative, of tokens and money."""


def faults(goal: FleetGoal, schedule: Schedule, until: dt.date | None = None) -> tuple[str, ...]:
    """What is wrong with ``schedule``; nothing where it keeps every limit.

    ``until``: the day before which it must end, the goal's date where it is None.
    """
    parts = (_order, _windows, _moves, _tokens, _domestic, _granted, _paid, _budgets)
    found = [fault for part in parts for fault in part(goal, schedule)]
    limit = _day(goal, until or goal.deadline)
    if schedule.finish_day > limit + DAYS:
        found.append(f"it ends on day {schedule.finish_day:.2f}, after day {limit:.0f}")
    return tuple(found)


def _day(goal: FleetGoal, day: dt.date) -> float:
    return float((day - goal.start).days)


def _name(goal: FleetGoal, stage: Stage) -> str:
    return f"{goal.pools[stage.slot.pool].name} at {stage.slot.speed.devices:,} devices"


def _order(goal: FleetGoal, schedule: Schedule) -> Iterator[str]:
    """One place at a time, from the start on."""
    if not schedule.stages:
        yield "it trains nowhere"
    every = [(stage, *stretch) for stage in schedule.stages for stretch in stage.stretches]
    for stage, first, last in every:
        if first < -DAYS or last < first:
            yield f"{_name(goal, stage)} from day {first:.2f} to {last:.2f}"
    for (a, _, last), (b, first, _) in pairwise(every):
        if first < last - DAYS:
            yield f"{_name(goal, b)} begins on day {first:.2f}, {_name(goal, a)} ends on {last:.2f}"


def _windows(goal: FleetGoal, schedule: Schedule) -> Iterator[str]:
    """Only while so many devices are there, and while a grant runs where grants pay."""
    for stage in schedule.stages:
        pool = goal.pools[stage.slot.pool]
        there = [d.on for d in pool.deliveries if d.devices >= stage.slot.speed.devices]
        first = _day(goal, min(there)) if there else (1e9 if pool.deliveries else 0.0)
        for a, b in stage.stretches:
            if a < first - DAYS or b > _day(goal, pool.until) + DAYS:
                yield f"{_name(goal, stage)} is not there from day {a:.2f} to {b:.2f}"
            if pool.grants and not _within_grants(goal, pool, a, b):
                yield f"{_name(goal, stage)} is used from day {a:.2f} to {b:.2f} without a grant"
        if stage.slot.speed.devices not in pool.sizes:
            yield f"{_name(goal, stage)}: not a size of the pool"


def _within_grants(goal: FleetGoal, pool: Pool, first: float, last: float) -> bool:
    """Whether grants cover the whole stretch, one after another."""
    cursor = first
    for grant in sorted(pool.grants, key=lambda g: g.first):
        if _day(goal, grant.first) <= cursor + DAYS:
            cursor = max(cursor, _day(goal, grant.last))
    return last <= cursor + DAYS


def _moves(goal: FleetGoal, schedule: Schedule) -> Iterator[str]:
    """Each move takes what the goal says it takes."""
    moves = goal.moves
    transfer = moves.bytes_per_s * 86_400.0
    before: Stage | None = None
    for stage in schedule.stages:
        if before is None:
            least = moves.start
        elif before.slot.pool == stage.slot.pool:
            least = 0.0 if before.slot is stage.slot else moves.resize
        else:
            same = before.slot.speed.stack == stage.slot.speed.stack
            size = before.slot.speed.checkpoint_bytes
            least = (moves.same_stack if same else moves.other_stack) + size / transfer
        if stage.move_days < least - DAYS:
            yield f"{_name(goal, stage)} is reached in {stage.move_days:.2f} of {least:.2f} days"
        before = stage


def _occupied(stage: Stage) -> float:
    return sum(last - first for first, last in stage.stretches)


def _tokens(goal: FleetGoal, schedule: Schedule) -> Iterator[str]:
    """Trained at each pool's own median speed; all of them, and never a negative number."""
    share = 0.0
    for stage in schedule.stages:
        days = _occupied(stage) - stage.move_days
        trained = days / stage.slot.speed.days.mid
        share += trained
        if days < -DAYS or stage.tokens < 0:
            yield f"{_name(goal, stage)} trains {days:.2f} days"
        if abs(stage.tokens / stage.slot.speed.tokens - trained) > PART:
            yield f"{_name(goal, stage)}: {stage.tokens:.3g} tokens in {days:.2f} days"
    if abs(share - 1.0) > PART:
        yield f"it trains {share:.2%} of the tokens"


def _domestic(goal: FleetGoal, schedule: Schedule) -> Iterator[str]:
    total = sum(stage.tokens for stage in schedule.stages)
    home = sum(s.tokens for s in schedule.stages if goal.pools[s.slot.pool].domestic)
    if goal.domestic_share and home < (goal.domestic_share - PART) * total:
        yield f"a domestic share of {home / total:.2%} instead of {goal.domestic_share:.2%}"


def _hours(stage: Stage) -> float:
    return _occupied(stage) * 24.0 * stage.slot.speed.nodes


def _granted(goal: FleetGoal, schedule: Schedule) -> Iterator[str]:
    """Node-hours of each pool are those of its grants, each between its least and its most."""
    for p, pool in enumerate(goal.pools):
        if not pool.grants:
            continue
        used = sum(_hours(stage) for stage in schedule.stages if stage.slot.pool == p)
        given = sum(use.node_hours for use in schedule.grants if use.pool == p)
        if abs(used - given) > PART * max(used, 1.0):
            yield f"{pool.name} uses {used:,.0f} node-hours of {given:,.0f} granted"
        for use in schedule.grants:
            if use.pool == p:
                yield from _one_grant(pool, use.name, use.first, use.node_hours)


def _one_grant(pool: Pool, name: str, first: dt.date, hours: float) -> Iterator[str]:
    found: list[Grant] = [g for g in pool.grants if (g.name, g.first) == (name, first)]
    if not any(g.least * (1 - PART) <= hours <= g.most * (1 + PART) for g in found):
        yield f"{hours:,.0f} node-hours of grant {name} of {pool.name}, outside its limits"


def _rent(goal: FleetGoal, stage: Stage, days: float) -> float:
    pool = goal.pools[stage.slot.pool]
    per_hour = (pool.rent.mid if pool.rent else 0.0) + pool.running
    return per_hour * stage.slot.speed.devices * 24.0 * days


def _paid(goal: FleetGoal, schedule: Schedule) -> Iterator[str]:
    """The money, added up again; what is bought is enough for what is used."""
    total = sum(_rent(goal, stage, _occupied(stage)) for stage in schedule.stages)
    for use in schedule.grants:
        prices = [g.usd_per_node_hour for g in goal.pools[use.pool].grants
                  if (g.name, g.first) == (use.name, use.first)]  # fmt: skip
        total += use.node_hours * max(prices, default=0.0)
    for p, pool in enumerate(goal.pools):
        if pool.buy is None:
            continue
        sizes = [s.slot.speed.devices for s in schedule.stages if s.slot.pool == p]
        bought = sum(b.devices for b in schedule.purchases if b.pool == p)
        if bought < max(sizes, default=0) * (1 - PART):
            yield f"{bought:,.0f} devices of {pool.name} are bought, {max(sizes):,} are used"
        total += bought * pool.buy.mid
    if abs(total - schedule.usd) > PART * max(total, 1.0):
        yield f"it costs ${total:,.0f} and not ${schedule.usd:,.0f}"


def _budgets(goal: FleetGoal, schedule: Schedule) -> Iterator[str]:
    """Of the whole, and of each month that has one."""
    if goal.budget_usd is not None and schedule.usd > goal.budget_usd * (1 + PART) + 1.0:
        yield f"it costs ${schedule.usd:,.0f}, and the budget is ${goal.budget_usd:,.0f}"
    for month, limit in goal.month_budgets.items():
        spent = _spent(goal, schedule, month)
        if spent > limit * (1 + PART) + 1.0:
            yield f"${spent:,.0f} in {month}, and its budget is ${limit:,.0f}"


def _spent(goal: FleetGoal, schedule: Schedule, month: str) -> float:
    """Rents and purchases of one month; granted hours by their share of the days."""
    first = dt.date.fromisoformat(f"{month}-01")
    end = (first + dt.timedelta(days=32)).replace(day=1)
    low, high = _day(goal, first), _day(goal, end)
    total = 0.0
    for stage in schedule.stages:
        inside = sum(max(min(b, high) - max(a, low), 0.0) for a, b in stage.stretches)
        total += _rent(goal, stage, inside)
        used = sum(_hours(s) for s in schedule.stages if s.slot.pool == stage.slot.pool)
        granted = sum(g.usd for g in schedule.grants if g.pool == stage.slot.pool)
        total += granted * inside * 24.0 * stage.slot.speed.nodes / used if used else 0.0
    for bought in schedule.purchases:
        paid = max(goal.pools[bought.pool].first, goal.start)
        total += bought.usd if first <= paid < end else 0.0
    return total


# A schedule made for slow pools, laid out again for pools of median speed
# ------------------------------------------------------------------------


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
