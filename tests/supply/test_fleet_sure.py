"""The cheapest plan that is sure enough, against a search by hand over a few plans."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.supply.fleet_cases import START, made_goal, made_grant, made_pool, made_slots, made_speed

from krzem.estimate import Estimate
from krzem.supply.chance import odds
from krzem.supply.fleet import solve
from krzem.supply.linear import GAP
from krzem.supply.optimum import cheapest
from krzem.supply.verify import faults, retimed


def test_more_sure_is_never_cheaper_and_always_as_sure_as_asked() -> None:
    """A slow cheap pool and a quick dear one: certainty is bought with the quick one."""
    pools = [made_pool("slow", 1.0), made_pool("quick", 3.0)]
    goal = made_goal(pools, days=100, sure_asked=True)
    slots = made_slots(made_speed(95, sigma=0.12), made_speed(45, sigma=0.12))
    costs = []
    for sure in (0.3, 0.6, 0.9):
        found = solve(replace(goal, sure=sure), slots).sure
        assert found is not None
        assert found.odds.meets_date >= sure
        costs.append(found.odds.mean_usd)
    assert costs == sorted(costs)
    assert costs[-1] > costs[0]


def test_what_nothing_can_promise_is_said() -> None:
    pool = made_pool("a", chance=0.5)
    goal = made_goal([pool], days=100, sure=0.9, sure_asked=True)
    answer = solve(goal, made_slots(made_speed(60)))
    assert answer.sure is None
    assert any("no plan meets" in note and "50%" in note for note in answer.notes)


def test_a_plan_for_slow_pools_is_laid_out_again_at_median_speed() -> None:
    grant = replace(made_grant(0, 1e6), first=START + dt.timedelta(days=10))
    pools = [made_pool("a", until=START + dt.timedelta(days=50)),
             made_pool("b", None, grants=(grant,))]  # fmt: skip
    goal = made_goal(pools, days=150)
    slots = made_slots(made_speed(120, sigma=0.15), made_speed(100, sigma=0.15))
    slow = cheapest(goal, slots, pessimism=1.0)
    assert slow is not None
    laid = retimed(goal, slow)
    assert laid is not None
    assert not faults(goal, laid)
    assert laid.finish_day < slow.finish_day
    assert laid.token_shares() == pytest.approx(slow.token_shares())
    assert odds(goal, laid).meets_date == pytest.approx(odds(goal, slow).meets_date)


@pytest.mark.parametrize("rent", [0.01, 0.5, 3.0])
def test_a_free_pool_is_the_cheapest_however_many_node_hours_it_takes(rent: float) -> None:
    """Dollars and node-hours are never weighed against each other."""
    pools = [made_pool("rented", rent), made_pool("granted", None, grants=(made_grant(0, 1e9),))]
    goal = made_goal(pools, days=300)
    answer = solve(goal, made_slots(made_speed(40), made_speed(200)))
    assert answer.cheapest is not None
    assert answer.cheapest.schedule.usd == 0
    assert any(point.schedule.usd == 0 for point in answer.front)
    assert any(point.schedule.usd > 0 for point in answer.front)


@pytest.mark.parametrize("seed", range(8))
def test_each_portfolio_is_what_it_is_called(seed: int) -> None:
    """No point of the answer is cheaper than the cheapest, earlier than the fastest or surer."""
    draw = np.random.default_rng(seed)
    pools, speeds = [], []
    for number in range(draw.integers(2, 5)):
        kind = draw.choice(["rent", "grant", "buy"])
        more: dict[str, Any] = {"chance": float(draw.choice([0.6, 1.0]))}
        if kind == "grant":
            more["grants"] = (made_grant(0, float(draw.choice([2e5, 1e9]))),)
        if kind == "buy":
            price = float(draw.choice([5e3, 2e4]))
            more["buy"] = Estimate(price, price, price)
        rent = float(draw.choice([0.01, 0.5, 4.0])) if kind == "rent" else None
        pools.append(made_pool(f"p{number}", rent, **more))
        speeds.append(made_speed(float(draw.uniform(20, 200)), stack=str(draw.choice(["a", "b"])),
                                 sigma=float(draw.choice([0.05, 0.3]))))  # fmt: skip
    goal = made_goal(pools, days=int(draw.choice([120, 300])))
    answer = solve(goal, made_slots(*speeds))
    if answer.cheapest is None:
        assert answer.relaxations
        return
    shown = [answer.cheapest, answer.fastest, answer.most_certain, *answer.front]
    points = [point for point in shown if point is not None]
    assert not [fault for point in points for fault in faults(goal, point.schedule)]
    bare = [point.schedule for point in points if not point.schedule.reserve]
    assert answer.cheapest.schedule.usd <= min(s.usd for s in bare) * (1 + GAP) + 1
    assert answer.fastest is not None
    assert answer.fastest.schedule.finish == min(s.finish for s in bare)
    assert answer.most_certain is not None
    surest = max(point.odds.meets_date for point in points)
    assert answer.most_certain.odds.meets_date >= surest - 0.005
