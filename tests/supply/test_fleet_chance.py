"""Odds of schedules."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import numpy as np
import pytest
from tests.supply.fleet_cases import (
    START,
    made_goal,
    made_grant,
    made_pool,
    made_slots,
    made_speed,
)

from krzem.estimate import Estimate
from krzem.supply.chance import normal, odds, two_sided
from krzem.supply.goal import Correlation, FleetGoal
from krzem.supply.optimum import cheapest
from krzem.supply.speed import Slot
from krzem.supply.stages import Schedule, reserve_of


def plan(goal: FleetGoal, slots: tuple[Slot, ...]) -> Schedule:
    found = cheapest(goal, slots)
    assert found is not None
    return found


def test_draws_keep_the_interval_of_what_they_draw() -> None:
    values = two_sided(Estimate(80.0, 100.0, 150.0), normal("x"))
    low, mid, high = np.quantile(values, (0.1, 0.5, 0.9))
    assert (low, mid, high) == pytest.approx((80, 100, 150), rel=0.04)
    assert np.all(two_sided(Estimate(5.0, 5.0, 5.0), normal("x")) == 5.0)


def test_half_of_the_draws_are_slower_than_the_middle() -> None:
    slots = made_slots(made_speed(100, sigma=0.15))
    goal = made_goal([made_pool("a")], days=102)
    assert odds(goal, plan(goal, slots)).meets_date == pytest.approx(0.5, abs=0.06)
    wide = replace(goal, deadline=goal.deadline.replace(month=6, day=20))
    assert odds(wide, plan(goal, slots)).meets_date > 0.99


def test_a_pool_that_may_not_come_bounds_the_chance() -> None:
    goal = made_goal([made_pool("a", chance=0.6)])
    found = odds(goal, plan(goal, made_slots(made_speed(60))))
    assert found.meets_date == pytest.approx(0.6, abs=0.03)
    assert found.finishes == pytest.approx(0.6, abs=0.03)


def test_a_reserve_trains_what_is_left() -> None:
    goal = made_goal([made_pool("a", 1.0, chance=0.6), made_pool("b", 5.0)])
    slots = made_slots(made_speed(60), made_speed(60))
    alone = plan(goal, slots)
    assert {stage.slot.pool for stage in alone.stages} == {0}
    backed = replace(alone, reserve=reserve_of(goal, slots, alone))
    assert odds(goal, backed).meets_date > 0.97
    assert odds(goal, backed).usd.high > odds(goal, alone).usd.high


def test_grants_end_a_stage_and_the_rest_stays_untrained() -> None:
    hours = 128 * 24 * 101.5
    goal = made_goal([made_pool("a", None, grants=(made_grant(0, hours),))])
    found = odds(goal, plan(goal, made_slots(made_speed(100, sigma=0.2))))
    assert 0.4 < found.finishes < 0.6


def test_common_errors_do_not_average_out() -> None:
    hours = 128 * 24 * 60.0
    pools = [made_pool(n, None, grants=(made_grant(0, hours),)) for n in "ab"]
    slots = made_slots(
        made_speed(100, sigma=0.3, family="f"), made_speed(100, sigma=0.3, family="g")
    )

    def width(shared: float) -> float:
        goal = made_goal(pools, days=150, correlation=Correlation(shared=shared, family=0.0))
        days = odds(goal, plan(goal, slots)).finish_days
        assert days is not None
        return days.high / days.low

    assert width(1.0) > width(0.0)


def test_budget_and_price_uncertainty() -> None:
    pool = replace(made_pool("a"), rent=Estimate(0.5, 1.0, 2.0))
    goal = made_goal([pool], budget_usd=101 * 24 * 1024 * 1.05)
    found = odds(goal, plan(goal, made_slots(made_speed(100, sigma=0.01))))
    assert found.within_budget == pytest.approx(0.55, abs=0.1)
    assert found.usd.high / found.usd.low > 3


def test_equal_questions_get_equal_answers() -> None:
    goal = made_goal([made_pool("a")])
    schedule = plan(goal, made_slots(made_speed(100)))
    assert odds(goal, schedule) == odds(goal, schedule)


def test_draws_wait_for_the_first_day_of_a_grant() -> None:
    """A run whose grant begins in March does not end in January."""
    first = START + dt.timedelta(days=59)
    grant = replace(made_grant(0, 1e6), first=first)
    goal = made_goal([made_pool("a", None, grants=(grant,))], days=100)
    schedule = plan(goal, made_slots(made_speed(20)))
    found = odds(goal, schedule).finish_days
    assert found is not None
    assert schedule.finish_day == pytest.approx(59 + 21)
    assert found.low > 59 + 1
    assert found.low <= schedule.finish_day <= found.high


def test_a_grant_that_may_be_refused_or_late_bounds_the_chance() -> None:
    grant = replace(made_grant(0, 1e6), first=START + dt.timedelta(days=20))
    goal = made_goal([made_pool("a", None, grants=(grant,))], days=100)
    schedule = plan(goal, made_slots(made_speed(40, sigma=0.02)))
    refused = replace(goal, pools=(replace(goal.pools[0], grants=(replace(grant, chance=0.4),)),))
    assert odds(refused, schedule).meets_date == pytest.approx(0.4, abs=0.03)
    late = replace(goal, pools=(replace(goal.pools[0], grants=(replace(grant, late_days=15),)),))
    days = odds(late, schedule).finish_days
    assert days is not None
    assert days.high - days.low == pytest.approx(24, abs=3)


def test_names_that_begin_alike_have_luck_of_their_own() -> None:
    assert abs(np.corrcoef(normal("family nvidia-a"), normal("family nvidia-b"))[0, 1]) < 0.1
