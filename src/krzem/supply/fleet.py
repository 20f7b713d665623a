"""``krzem fleet``: the best portfolios of pools for one run, and the trade-off between them."""

from __future__ import annotations

import datetime as dt
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from krzem.errors import GoalError, KrzemError
from krzem.hardware.catalogue import find_id
from krzem.rules import Standing, standing
from krzem.supply.chance import Odds, best_by, odds
from krzem.supply.goal import FleetGoal, Grant, Pool
from krzem.supply.optimum import cheapest, earliest
from krzem.supply.programme import usd_per_day
from krzem.supply.relax import Relaxation, relaxations
from krzem.supply.speed import Progress, Slot, slots
from krzem.supply.stages import Schedule, reserve_of
from krzem.supply.verify import faults, retimed

FRONT_POINTS = 4
WARINESS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
"""Standard deviations by which pools are slowed in the search for a certain plan."""
CLOSED = 2.5e-3
"""Gaps up to which a plan counts as the best."""
PROMISING = 8
"""Slots on which plans between the cheapest and the fastest are sought."""


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
    sure: Portfolio | None
    """The cheapest that meets the date with the chance asked for; None where none does, or where
    no chance was asked for."""
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
    began = time.process_time()
    standings = _standings(goal)
    lawful, left_out = _lawful(goal, standings)
    found, reasons = slots(lawful, progress)
    planned = time.process_time()
    answer = solve(lawful, found, progress)
    return replace(
        answer,
        goal=goal if not left_out else lawful,
        left_out={**left_out, **reasons},
        standings=standings,
        plan_seconds=planned - began,
    )


def solve(goal: FleetGoal, found: Sequence[Slot], progress: Progress | None = None) -> Fleet:
    """The best portfolios for slots whose speed is known.

    Raises KrzemError where the solver is missing or stops without an answer, and where the plan
    that it calls the cheapest does not pass the check of :mod:`krzem.supply.verify`.
    """
    began = time.process_time()
    say = progress or (lambda _: None)
    say("the cheapest plan")
    least = cheapest(goal, found)
    relaxed: tuple[Relaxation, ...] = ()
    chosen = _Chosen()
    if least is None:
        say("what to relax")
        relaxed = relaxations(goal, found)
    else:
        _refuse_faulty(goal, least)
        chosen = _portfolios(goal, found, least, say)
    return Fleet(
        goal=goal,
        slots=tuple(found),
        left_out={},
        standings={},
        cheapest=chosen.cheapest,
        fastest=chosen.fastest,
        most_certain=chosen.most_certain,
        sure=chosen.sure,
        front=chosen.front,
        relaxations=relaxed,
        plan_seconds=0.0,
        solve_seconds=time.process_time() - began,
        notes=(*_notes(goal, found), *chosen.notes),
    )


def _refuse_faulty(goal: FleetGoal, schedule: Schedule) -> None:
    found = faults(goal, schedule)
    if found:
        why = "; ".join(found[:3])
        raise KrzemError(f"the plan that was found does not pass its check and is not shown: {why}")


def _standings(goal: FleetGoal) -> dict[str, Standing]:
    return {pool.name: pool_standing(pool, goal) for pool in goal.pools if pool.country}


def pool_standing(pool: Pool, goal: FleetGoal) -> Standing:
    """The rules on a pool where it stands, on the first day on which it may be used.

    A pool that is rented or granted is time on chips that others own.
    """
    of_others = pool.rent is not None or bool(pool.grants)
    return standing(
        find_id(str(pool.given["device"])),
        max(pool.first, goal.start),
        pool.country,
        goal.parent or None,
        rents=of_others and pool.buy is None and pool.acquired is None,
        acquired=pool.acquired,
    )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """The portfolios that are shown."""

    cheapest: Portfolio | None = None
    fastest: Portfolio | None = None
    most_certain: Portfolio | None = None
    sure: Portfolio | None = None
    front: tuple[Portfolio, ...] = ()
    notes: tuple[str, ...] = ()


def _portfolios(
    goal: FleetGoal, found: Sequence[Slot], least: Schedule, say: Callable[[str], None]
) -> _Chosen:
    """Cheapest, fastest, most certain, as sure as was asked for, and what lies between."""
    say("the fastest plan")
    least = _at_once(goal, least)
    fastest = earliest(goal, found) or least
    few = _promising(goal, found, (least, fastest))
    say("plans between")
    plain = [least, fastest, *(_at_once(goal, s) for s in _between(goal, few, fastest))]
    say("more certain plans")
    wary = _wary(goal, few)
    backed = [replace(s, reserve=reserve_of(goal, found, s)) for s in (least, fastest, *wary)]
    every = [s for s in (*plain, *wary, *backed) if not faults(goal, s)]
    points = [Portfolio(label="", schedule=s, odds=odds(goal, s)) for s in every]
    without = [point for point in points if not point.schedule.reserve]
    certain = best_by([p.schedule for p in points], [p.odds for p in points])
    sure, notes = _as_sure(goal, points)
    by_money = min(without, key=lambda p: (_spent(p), p.schedule.finish_day))
    by_date = min(without, key=lambda p: (p.schedule.finish, _spent(p)))
    labels = {id(points[certain]): "most certain", id(by_date): "fastest", id(by_money): "cheapest"}
    front = [replace(p, label=labels.get(id(p), "")) for p in points]
    return _Chosen(
        cheapest=replace(by_money, label="cheapest"),
        fastest=replace(by_date, label="fastest"),
        most_certain=replace(points[certain], label="most certain"),
        sure=sure,
        front=_undominated([p for p in front if p.label or not p.schedule.reserve]),
        notes=(*_gap_notes(by_money, by_date), *notes),
    )


def _at_once(goal: FleetGoal, schedule: Schedule) -> Schedule:
    """The schedule without waits that nothing asks for: what is cheapest may begin at any time.

    Followed by what happens (:func:`krzem.supply.chance.odds`), a run never waits either.
    """
    laid = retimed(goal, schedule)
    if laid is None or laid.finish_day > schedule.finish_day - 1e-6:
        return schedule
    if laid.usd > schedule.usd + 1.0 or faults(goal, laid):
        return schedule
    return replace(laid, objective=schedule.objective, bound=schedule.bound)


def _gap_notes(least: Portfolio, first: Portfolio) -> Iterator[str]:
    if least.schedule.gap > CLOSED:
        yield (
            f"cheapest: proved to within {least.schedule.gap:.1%} of the best possible: a plan"
            " cheaper by that much is not excluded"
        )
    if first.schedule.gap > CLOSED:
        yield (
            f"fastest: proved to within {first.schedule.gap:.1%} of the time to the date; an end"
            " earlier by that much is not excluded"
        )


def _promising(
    goal: FleetGoal, found: Sequence[Slot], used: Sequence[Schedule]
) -> tuple[Slot, ...]:
    """All slots where they are few; else those of plans found, the cheapest and the fastest."""
    if len(found) <= PROMISING:
        return tuple(found)
    taken = list(dict.fromkeys(stage.slot for s in used for stage in s.stages))
    by_price = sorted(found, key=lambda slot: _whole_price(goal, slot))
    by_speed = sorted(found, key=lambda slot: slot.speed.days.mid)
    mixed = [slot for pair in zip(by_price, by_speed, strict=True) for slot in pair]
    few = list(dict.fromkeys([*taken, *mixed]))[: max(PROMISING, len(taken))]
    return tuple(slot for slot in found if slot in few)


def _whole_price(goal: FleetGoal, slot: Slot) -> float:
    """US dollars of the whole run on one slot, rent alone; node-hours where it has none."""
    usd = usd_per_day(goal.pools[slot.pool], slot)
    return slot.speed.days.mid * (usd or slot.speed.nodes)


def _between(goal: FleetGoal, found: Sequence[Slot], fastest: Schedule) -> list[Schedule]:
    """The cheapest schedules for dates between the earliest end and the last."""
    first = goal.start + dt.timedelta(days=math.ceil(fastest.finish_day))
    room = (goal.deadline - first).days
    steps = range(min(FRONT_POINTS, room))
    days = [first + dt.timedelta(days=room * k // len(steps)) for k in steps]
    tried = (cheapest(goal, found, day) for day in days)
    return [schedule for schedule in tried if schedule is not None]


def _chance_of(goal: FleetGoal, slot: Slot) -> float:
    pool = goal.pools[slot.pool]
    return pool.chance * max((grant.chance for grant in pool.grants), default=1.0)


def _wary(goal: FleetGoal, found: Sequence[Slot]) -> list[Schedule]:
    """Plans that mistrust slow errors, and pools that may not be there at all.

    The earliest for pools slowed by as much as any plan can bear; where a chance is asked for, the
    cheapest ones for pools slowed by less and less too.
    """
    result: list[Schedule] = []
    for level in sorted({_chance_of(goal, slot) for slot in found}):
        sure = [slot for slot in found if _chance_of(goal, slot) >= level]
        result += _slowed(goal, sure, earliest, WARINESS[2::-1])
        if goal.sure_asked:
            for wariness in WARINESS[1:]:
                result += _slowed(goal, sure, cheapest, (wariness,))
    return result


def _slowed(
    goal: FleetGoal,
    found: Sequence[Slot],
    solver: Callable[..., Schedule | None],
    levels: Sequence[float],
) -> list[Schedule]:
    """The plan for the first of ``levels`` at which there is one, laid out at median speeds."""
    for wariness in levels:
        schedule = solver(goal, found, pessimism=wariness)
        if schedule is not None:
            laid = schedule if not wariness else retimed(goal, schedule)
            return [] if laid is None else [laid]
    return []


def _as_sure(
    goal: FleetGoal, points: Sequence[Portfolio]
) -> tuple[Portfolio | None, tuple[str, ...]]:
    """The point of least mean cost among those that meet the date so surely."""
    if not goal.sure_asked:
        return None, ()
    enough = [p for p in points if p.odds.meets_date >= goal.sure]
    if not enough:
        most = max(p.odds.meets_date for p in points)
        return None, (
            f"no plan meets {goal.deadline} with {goal.sure:.0%}; the most certain one does with"
            f" {most:.0%}: move the date, or add pools",
        )
    best = min(enough, key=lambda p: (p.odds.mean_usd, p.schedule.finish_day))
    return replace(best, label=f"{goal.sure:.0%} sure"), ()


def _undominated(points: Sequence[Portfolio]) -> tuple[Portfolio, ...]:
    """Points that no other beats in finish, cost and chance at once; one of equals."""
    kept: list[Portfolio] = []
    for point in sorted(points, key=_order):
        if not any(_beats(other, point) for other in kept):
            kept.append(point)
    return tuple(sorted(kept, key=lambda p: p.schedule.finish_day))


def _spent(point: Portfolio) -> tuple[float, float]:
    """US dollars and node-hours; the hours decide where the money is equal, or none at all."""
    return point.schedule.usd, sum(stage.node_hours for stage in point.schedule.stages)


def _no_dearer(a: Portfolio, b: Portfolio) -> bool:
    """Whether ``a`` costs no more than ``b``, a thousandth aside."""
    (usd, hours), (other_usd, other_hours) = _spent(a), _spent(b)
    if usd or other_usd:
        return usd <= other_usd * (1 + 1e-3)
    return hours <= other_hours * (1 + 1e-3)


def _order(point: Portfolio) -> tuple[dt.date, tuple[float, float], float, str]:
    return (point.schedule.finish, _spent(point), -point.odds.meets_date,
            "" if point.label else "~")  # fmt: skip


def _beats(a: Portfolio, b: Portfolio) -> bool:
    return (
        a.schedule.finish <= b.schedule.finish
        and _no_dearer(a, b)
        and a.odds.meets_date >= b.odds.meets_date - 0.005
    )


def _notes(goal: FleetGoal, found: Sequence[Slot]) -> tuple[str, ...]:
    notes = [
        "one run trains in one place at a time, and a visit trains a day or a hundredth of the run"
        " at least; pools that train at the same time are not planned",
    ]
    notes += [words for pool in goal.pools for grant in pool.grants
              if (words := _grant_note(pool, grant))]  # fmt: skip
    if len(found) > PROMISING:
        notes.append(
            f"plans between and more certain ones are sought on at most {PROMISING} of the"
            f" {len(found)} pools and sizes, those of the cheapest and the fastest plan among them"
        )
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


def _grant_note(pool: Pool, grant: Grant) -> str:
    """What is assumed of a grant that its call does not say."""
    words = []
    if grant.applied is not None:
        early, late = (grant.first + dt.timedelta(days=round(d * grant.late_days)) for d in (-1, 1))
        words.append(f"asked for on {grant.applied}, begins {grant.first} ({early} to {late})")
    if grant.chance == 1.0:
        words.append("taken to be given for certain: give chance where it may be refused")
    return f"grant {grant.name} of {pool.name}: {'; '.join(words)}" if words else ""
