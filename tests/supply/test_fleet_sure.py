"""The cheapest plan that is sure enough, against a search by hand over a few plans."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest
from tests.supply.fleet_cases import START, made_goal, made_grant, made_pool, made_slots, made_speed

from krzem.supply.chance import odds
from krzem.supply.fleet import solve
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
