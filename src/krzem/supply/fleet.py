"""``krzem fleet``: the best portfolios of pools for one run, and the trade-off between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from krzem.errors import GoalError
from krzem.supply.chance import Odds, best_by, odds
from krzem.supply.goal import FleetGoal
from krzem.supply.lawful import Standing, standing
from krzem.supply.months import Month, months_between
from krzem.supply.optimum import cheapest, earliest
from krzem.supply.relax import Relaxation, relaxations
from krzem.supply.speed import Progress, Slot, slots
from krzem.supply.stages import Schedule, reserve_of

FRONT_POINTS = 5
WARY = 1.2815515655446004
"""Standard deviations by which pools are slowed in the search for a certain plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Portfolio:
    """One schedule and its odds."""

    label: str
    """cheapest, fastest, most certain, or nothing for other points of the front."""
    schedule: Schedule
    odds: Odds


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The answer."""

    goal: FleetGoal
    slots: tuple[Slot, ...]
    left_out: Mapping[str, str]
    """Pools and sizes that cannot take part, and why."""
    standings: Mapping[str, Standing]
    """What the rules say of each pool, where a country is known."""
    cheapest: Portfolio | None
    fastest: Portfolio | None
    most_certain: Portfolio | None
    front: tuple[Portfolio, ...]
    """Plans that no other beats in date, cost and chance; by finish."""
    relaxations: tuple[Relaxation, ...]
    """Where no plan keeps every limit: which one to relax, and by how much."""
    plan_seconds: float
    solve_seconds: float
    notes: tuple[str, ...]

    @property
    def feasible(self) -> bool:
        """Whether a plan keeps every limit."""
        return self.cheapest is not None


def fleet(goal: FleetGoal, progress: Progress | None = None) -> Fleet:
    """The best portfolios for ``goal``.

    Raises:
        ClusterError, GoalError: no pool can run the model, or none is lawful.
        UnknownFactError: a quantity of a pool that nobody has published and the goal does not give.
    """
    began = time.perf_counter()
    standings = _standings(goal)
    lawful, left_out = _lawful(goal, standings)
    found, reasons = slots(lawful, progress)
    planned = time.perf_counter()
    answer = solve(lawful, found, progress)
    return replace(
        answer,
        goal=goal if not left_out else lawful,
        left_out={**left_out, **reasons},
        standings=standings,
        plan_seconds=planned - began,
    )


def solve(goal: FleetGoal, found: Sequence[Slot], progress: Progress | None = None) -> Fleet:
    """The best portfolios for slots whose speed is known."""
    began = time.perf_counter()
    say = progress or (lambda _: None)
    say("the cheapest plan")
    months = months_between(goal.start, goal.deadline)
    least = cheapest(goal, found, months)
    points: list[Portfolio] = []
    relaxed: tuple[Relaxation, ...] = ()
    if least is None:
        say("what to relax")
        relaxed = relaxations(goal, found)
    else:
        points = _portfolios(goal, found, months, least, say)
    by_label = {point.label: point for point in points if point.label}
    return Fleet(
        goal=goal,
        slots=tuple(found),
        left_out={},
        standings={},
        cheapest=by_label.get("cheapest"),
        fastest=by_label.get("fastest"),
        most_certain=by_label.get("most certain"),
        front=_undominated(points),
        relaxations=relaxed,
        plan_seconds=0.0,
        solve_seconds=time.perf_counter() - began,
        notes=_notes(goal),
    )


def _standings(goal: FleetGoal) -> dict[str, Standing]:
    return {pool.name: standing(pool, goal) for pool in goal.pools if pool.country}


def _lawful(goal: FleetGoal, standings: Mapping[str, Standing]) -> tuple[FleetGoal, dict[str, str]]:
    """The goal without the pools that the buyer may not have, where that is asked for."""
    if not goal.lawful_only:
        return goal, {}
    unplaced = [pool.name for pool in goal.pools if not pool.country]
    if unplaced:
        raise GoalError(
            f"lawful_only needs the place of every pool; {unplaced[0]!r} has none: write"
            ' to = "CN" in the goal or in the pool'
        )
    barred = {name: s.words for name, s in standings.items() if not s.lawful}
    kept = tuple(pool for pool in goal.pools if pool.name not in barred)
    if not kept:
        words = "; ".join(f"{name}: {why}" for name, why in barred.items())
        raise GoalError(f"no pool is lawful for this buyer on its day. {words}")
    return replace(goal, pools=kept), {
        name: f"not lawful without a licence: {why}" for name, why in barred.items()
    }


def _portfolios(
    goal: FleetGoal,
    found: Sequence[Slot],
    months: Sequence[Month],
    least: Schedule,
    say: Callable[[str], None],
) -> list[Portfolio]:
    """Cheapest, fastest, most certain, and what lies between."""
    say("the fastest plan")
    fastest = earliest(goal, found, months) or least
    say("plans between")
    between = _between(goal, found, months, fastest)
    say("the most certain plan")
    wary = _wary(goal, found, months)
    every = [least, fastest, *between, *wary]
    every += [replace(s, reserve=reserve_of(goal, found, s)) for s in (least, fastest, *wary)]
    chances = [odds(goal, schedule) for schedule in every]
    certain = best_by(every, chances)
    # Rounding of the solver may leave a front point a hair cheaper or earlier than the extremes.
    labels = ["cheapest", "fastest"] + [""] * (len(every) - 2)
    points = [
        Portfolio(label=label, schedule=schedule, odds=chance)
        for label, schedule, chance in zip(labels, every, chances, strict=True)
    ]
    plain = points[: -2 - len(wary)]
    return [*plain, replace(points[certain], label="most certain")]


def _between(
    goal: FleetGoal, found: Sequence[Slot], months: Sequence[Month], fastest: Schedule
) -> list[Schedule]:
    """The cheapest schedules for dates between the earliest end and the last month."""
    first = next(m for m, month in enumerate(months) if fastest.finish <= month.end)
    inner = list(range(first, len(months) - 1))
    if len(inner) > FRONT_POINTS:
        step = len(inner) / FRONT_POINTS
        inner = [inner[int(step * k)] for k in range(FRONT_POINTS)]
    tried = (cheapest(goal, found, months[: last + 1]) for last in inner)
    return [schedule for schedule in tried if schedule is not None]


def _wary(goal: FleetGoal, found: Sequence[Slot], months: Sequence[Month]) -> list[Schedule]:
    """Early schedules that mistrust slow errors, and pools that may not be there at all."""
    levels = sorted({goal.pools[slot.pool].chance for slot in found})
    result = []
    for level in levels:
        sure = [slot for slot in found if goal.pools[slot.pool].chance >= level]
        for pessimism in (WARY, WARY / 2, 0.0):
            schedule = earliest(goal, sure, months, pessimism)
            if schedule is not None:
                result.append(schedule)
                break
    return result


def _undominated(points: Sequence[Portfolio]) -> tuple[Portfolio, ...]:
    """Points that no other beats in finish, cost and chance at once; one of equals."""
    kept: list[Portfolio] = []
    for point in sorted(points, key=_order):
        if not any(_beats(other, point) for other in kept):
            kept.append(point)
    return tuple(sorted(kept, key=lambda p: p.schedule.finish_day))


def _order(point: Portfolio) -> tuple[float, float, float, str]:
    return (point.schedule.finish_day, point.schedule.usd, -point.odds.meets_date,
            "" if point.label else "~")  # fmt: skip


def _beats(a: Portfolio, b: Portfolio) -> bool:
    return (
        a.schedule.finish_day <= b.schedule.finish_day + 0.5
        and a.schedule.usd <= b.schedule.usd * (1 + 1e-3)
        and a.odds.meets_date >= b.odds.meets_date - 0.005
    )


def _notes(goal: FleetGoal) -> tuple[str, ...]:
    notes = [
        "one run trains in one place at a time; at most one move a month; pools that train at the"
        " same time are not planned",
    ]
    if any(pool.buy is not None for pool in goal.pools):
        notes.append("bought devices are paid for in full: what they are worth afterwards is not"
                     " counted")  # fmt: skip
    owned = [p for p in goal.pools if p.buy is not None or p.acquired]
    if any(pool.running == 0 and pool.rent is None for pool in owned):
        notes.append("owned devices without running = ... cost nothing to run here")
    if all(p.rent is None and p.buy is None and p.running == 0 for p in goal.pools) and not any(
        grant.usd_per_node_hour for p in goal.pools for grant in p.grants
    ):
        notes.append("nothing here costs money: the cheapest plan is that of least node-hours")
    if goal.lawful_only:
        notes.append("rules as known today; this is not legal advice")
    return tuple(notes)
