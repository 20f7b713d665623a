"""The optimisation: known answers, and what can never happen."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.supply.fleet_cases import (
    START,
    TOKENS,
    made_goal,
    made_grant,
    made_pool,
    made_slots,
    made_speed,
    slower,
)

from krzem.estimate import Estimate
from krzem.supply.fleet import solve
from krzem.supply.goal import Delivery, FleetGoal
from krzem.supply.linear import GAP, Linear
from krzem.supply.optimum import cheapest, earliest
from krzem.supply.speed import Slot
from krzem.supply.stages import Schedule
from krzem.supply.verify import faults

NEAR = 2 * GAP + 1e-6


def least(goal: FleetGoal, slots: tuple[Slot, ...]) -> Schedule | None:
    return cheapest(goal, slots)


def first(goal: FleetGoal, slots: tuple[Slot, ...]) -> Schedule | None:
    return earliest(goal, slots)


def usd(goal: FleetGoal, slots: tuple[Slot, ...]) -> float:
    found = least(goal, slots)
    return float("inf") if found is None else found.usd


def finish(goal: FleetGoal, slots: tuple[Slot, ...]) -> float:
    found = first(goal, slots)
    return float("inf") if found is None else found.finish_day


def test_a_linear_programme_with_a_known_answer() -> None:
    lp = Linear()
    x = lp.columns(2, high=10.0, whole=True)
    lp.row([(int(x[0]), 2.0), (int(x[1]), 3.0)], low=7.0)
    found = lp.minimise({int(x[0]): 1.0, int(x[1]): 1.4})
    assert found is not None
    assert found.objective == pytest.approx(3.4)
    lp.row([(int(x[0]), 1.0)], low=11.0)
    assert lp.minimise({}) is None


def test_one_pool_costs_its_days_and_its_start() -> None:
    found = least(made_goal([made_pool("a", 2.0)]), made_slots(made_speed(100)))
    assert found is not None
    assert found.usd == pytest.approx(101 * 24 * 1024 * 2.0, rel=NEAR)
    assert found.finish_day == pytest.approx(101, rel=1e-3)
    assert sum(stage.tokens for stage in found.stages) == pytest.approx(TOKENS, rel=1e-3)


def test_a_late_fast_pool_takes_over_from_a_slow_early_one() -> None:
    late = (Delivery(on=dt.date(2027, 3, 1), devices=10**6),)
    goal = made_goal([made_pool("slow"), made_pool("fast", deliveries=late)])
    slots = made_slots(made_speed(140), made_speed(50))
    found = first(goal, slots)
    assert found is not None
    assert [stage.slot.pool for stage in found.stages] == [0, 1]
    # 58 days at 1/140 after the start, then the rest at 1/50 after a move of two days.
    rest = 1 - 58 / 140
    assert found.finish_day == pytest.approx(59 + 2 + rest * 50, abs=1.0)
    assert found.stages[1].first_day >= 59 - 1e-6


def test_other_software_takes_the_longer_move() -> None:
    until = dt.date(2027, 2, 1)
    goal = made_goal([made_pool("a", until=until), made_pool("b")])
    same = first(goal, made_slots(made_speed(60), made_speed(110)))
    other = first(goal, made_slots(made_speed(60), made_speed(110, stack="npu")))
    assert same is not None
    assert other is not None
    assert [stage.move for stage in same.stages] == ["begin", "near"]
    assert [stage.move for stage in other.stages] == ["begin", "far"]
    assert other.finish_day == pytest.approx(same.finish_day + 3.0, abs=0.2)


def test_a_grant_that_is_too_small_is_combined_with_another() -> None:
    hours = 128 * 24 * 60.0  # 60 days of a run that needs 100
    pools = [made_pool(name, None, grants=(made_grant(0, hours),)) for name in "ab"]
    found = least(made_goal(pools), made_slots(made_speed(100), made_speed(100)))
    assert found is not None
    assert {stage.slot.pool for stage in found.stages} == {0, 1}
    assert all(use.node_hours <= hours * (1 + 1e-6) for use in found.grants)


def test_the_least_of_a_grant_binds_where_it_is_used() -> None:
    need = 128 * 24 * 101.0
    pool = made_pool("a", None, grants=(made_grant(0.5 * need, 3 * need),))
    assert least(made_goal([pool]), made_slots(made_speed(100))) is not None
    tight = replace(pool, sizes=(1024,), grants=(made_grant(5 * need, 6 * need),))
    answer = solve(made_goal([tight]), made_slots(made_speed(100)))
    assert not answer.feasible
    assert any(r.limit == "grants_least" and r.by for r in answer.relaxations)


def test_a_domestic_share_is_kept_exactly_where_it_costs_money() -> None:
    pools = [made_pool("home", 3.0, domestic=True), made_pool("abroad", 1.0)]
    goal = made_goal(pools, domestic_share=0.4)
    found = least(goal, made_slots(made_speed(100), made_speed(100)))
    assert found is not None
    assert found.token_shares()[0] == pytest.approx(0.4, abs=0.01)


def test_buying_is_paid_once_and_by_the_largest_number_used() -> None:
    pool = made_pool("own", None, buy=Estimate(1e4, 1e4, 1e4), running=0.1)
    found = least(made_goal([pool]), made_slots(made_speed(100)))
    assert found is not None
    assert found.purchases[0].devices == 1024
    assert found.usd == pytest.approx(1024 * 1e4 + 101 * 24 * 1024 * 0.1, rel=NEAR)


def test_budgets_by_month_hold_the_run_back() -> None:
    slots = made_slots(made_speed(60))
    free = made_goal([made_pool("a", 2.0)])
    month = 24 * 1024 * 2.0 * 20  # twenty days of each month
    held = replace(free, month_budgets={f"2027-0{m}": month for m in range(1, 7)})
    early, late = first(free, slots), first(held, slots)
    assert early is not None
    assert late is not None
    assert late.finish_day > early.finish_day + 20


@pytest.mark.parametrize(
    ("limit", "change"),
    [
        ("date", {"deadline": START + dt.timedelta(days=60)}),
        ("budget", {"budget_usd": 1e6}),
        ("domestic_share", {"domestic_share": 0.5}),
    ],
)
def test_the_relaxation_that_is_named_makes_it_possible(limit: str, change: dict) -> None:  # type: ignore[type-arg]
    pools = [made_pool("a"), made_pool("home", 9.0, domestic=True)]
    goal = replace(made_goal(pools), **change)
    slots = made_slots(made_speed(100), made_speed(900))
    answer = solve(goal, slots)
    assert not answer.feasible
    by = {r.limit: r.by for r in answer.relaxations}[limit]
    assert by is not None
    assert by > 0
    if limit == "date":
        goal = replace(goal, deadline=goal.deadline + dt.timedelta(days=by + 1))
    elif limit == "budget":
        goal = replace(goal, budget_usd=(goal.budget_usd or 0) + by * 1.01)
    else:
        goal = replace(goal, domestic_share=max(goal.domestic_share - by - 1e-3, 0.0))
    assert least(goal, slots) is not None


def test_relaxing_tokens_says_how_many_can_be_trained() -> None:
    answer = solve(made_goal([made_pool("a")], days=51), made_slots(made_speed(100)))
    by = {r.limit: r.by for r in answer.relaxations}["tokens"]
    assert by == pytest.approx(TOKENS * 0.5, rel=0.02)


def test_the_front_trades_date_for_money() -> None:
    pools = [made_pool("slow", 1.0), made_pool("fast", 4.0)]
    answer = solve(made_goal(pools, days=140), made_slots(made_speed(130), made_speed(60)))
    assert answer.cheapest is not None
    assert answer.fastest is not None
    assert answer.most_certain is not None
    finishes = [point.schedule.finish_day for point in answer.front]
    costs = [point.schedule.usd for point in answer.front]
    assert finishes == sorted(finishes)
    assert answer.cheapest.schedule.usd <= min(costs) * (1 + NEAR)
    assert answer.fastest.schedule.finish_day <= min(finishes) + 0.5
    assert (
        answer.most_certain.odds.meets_date >= max(p.odds.meets_date for p in answer.front) - 0.01
    )


def test_equal_questions_get_equal_answers_whatever_the_clock_says() -> None:
    goal, slots = _crowd()
    assert cheapest(goal, slots) == cheapest(goal, slots)


def test_what_is_shown_passes_its_check_and_nothing_is_cheaper_than_the_cheapest() -> None:
    goal, slots = _crowd()
    answer = solve(replace(goal, sure=0.6, sure_asked=True), slots)
    assert answer.cheapest is not None
    assert answer.fastest is not None
    assert answer.sure is not None
    assert answer.sure.odds.meets_date >= 0.6
    for point in (answer.cheapest, answer.fastest, answer.sure, *answer.front):
        assert not faults(goal, point.schedule)
        assert answer.cheapest.schedule.usd <= point.schedule.usd
        assert answer.fastest.schedule.finish_day <= point.schedule.finish_day + 1e-3
        assert all(stage.tokens >= 0 for stage in point.schedule.stages)


def _crowd() -> tuple[FleetGoal, tuple[Slot, ...]]:
    """Five pools with windows that overlap: solved set by set."""
    names = "abcde"
    pools = [
        made_pool(
            name, 1.0 + 0.3 * k, domestic=k % 2 == 0,
            deliveries=(Delivery(on=START + dt.timedelta(days=9 * k), devices=10**6),),
            until=START + dt.timedelta(days=60 + 14 * k), chance=0.9 if k % 3 else 1.0,
        )
        for k, name in enumerate(names)
    ]  # fmt: skip
    speeds = [made_speed(140 - 15 * k, stack="npu" if k % 2 == 0 else "cuda") for k in range(5)]
    return made_goal(pools, days=140, domestic_share=0.2), made_slots(*speeds)


FAULTY = {
    "not there": lambda s: replace(s, stretches=((-1.0, s.last_day),)),
    "tokens in": lambda s: replace(s, tokens=s.tokens * 1.2),
    "and not": lambda s: replace(s, stretches=((s.first_day, s.last_day + 40),)),
    "is reached in": lambda s: replace(s, move_days=0.0),
    "not a size": lambda s: replace(
        s, slot=replace(s.slot, speed=replace(s.slot.speed, devices=77))
    ),
}


@pytest.mark.parametrize("words", FAULTY)
def test_a_schedule_with_a_fault_is_found_out(words: str) -> None:
    late = (Delivery(on=START + dt.timedelta(days=3), devices=10**6),)
    goal = made_goal([made_pool("a", deliveries=late)])
    found = least(goal, made_slots(made_speed(100)))
    assert found is not None
    assert not faults(goal, found)
    broken = replace(found, stages=(FAULTY[words](found.stages[0]),))
    assert any(words in fault for fault in faults(goal, broken)), faults(goal, broken)


def test_limits_that_a_schedule_breaks_are_found() -> None:
    goal = made_goal([made_pool("a"), made_pool("b", domestic=True)])
    found = least(goal, made_slots(made_speed(100), made_speed(300)))
    assert found is not None
    for change, words in (
        ({"domestic_share": 0.5}, "domestic share"),
        ({"budget_usd": 1e5}, "budget"),
        ({"month_budgets": {"2027-02": 1e5}}, "2027-02"),
        ({"deadline": START + dt.timedelta(days=50)}, "it ends"),
    ):
        assert any(words in fault for fault in faults(replace(goal, **change), found))


def test_a_pool_is_not_used_on_or_after_the_day_it_goes() -> None:
    """Slow, then quick while it is there, then slow again: to the day, inside one month."""
    window = {"deliveries": (Delivery(on=dt.date(2027, 2, 1), devices=10**6),),
              "until": dt.date(2027, 2, 11)}  # fmt: skip
    goal = made_goal([made_pool("slow", 5.0), made_pool("quick", 1.0, **window)], days=90)
    found = least(goal, made_slots(made_speed(100), made_speed(30)))
    assert found is not None
    assert [stage.slot.pool for stage in found.stages] == [0, 1, 0]
    assert found.stages[1].first_day >= 31 - 1e-6
    assert found.stages[1].last_day <= 41 + 1e-6


cases = st.tuples(
    st.lists(
        st.tuples(st.floats(30, 200), st.floats(0.5, 4.0), st.integers(0, 60), st.booleans()),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([0.0, 0.3]),
)


def build(case: tuple[list[tuple[float, float, int, bool]], float]) -> tuple[FleetGoal, tuple]:  # type: ignore[type-arg]
    rows, share = case
    pools = [
        made_pool(
            f"p{i}",
            rent,
            deliveries=(Delivery(on=START + dt.timedelta(days=wait), devices=10**6),),
            domestic=home,
        )
        for i, (_, rent, wait, home) in enumerate(rows)
    ]
    speeds = [made_speed(days, stack="npu" if home else "cuda") for days, _, _, home in rows]
    home = any(pool.domestic for pool in pools)
    return made_goal(pools, domestic_share=share if home else 0.0), made_slots(*speeds)


@settings(max_examples=8, deadline=None)
@given(cases)
def test_a_cheaper_pool_never_raises_the_cost(case: tuple) -> None:  # type: ignore[type-arg]
    goal, slots = build(case)
    pool = goal.pools[0]
    assert pool.rent is not None
    cheap = replace(goal, pools=(replace(pool, rent=pool.rent.scaled(0.7)), *goal.pools[1:]))
    assert usd(cheap, slots) <= usd(goal, slots) * (1 + NEAR)


@settings(max_examples=8, deadline=None)
@given(cases, st.floats(1e6, 5e6))
def test_more_budget_never_delays(case: tuple, budget: float) -> None:  # type: ignore[type-arg]
    goal, slots = build(case)
    poor = finish(replace(goal, budget_usd=budget), slots)
    assert finish(replace(goal, budget_usd=budget * 1.3), slots) <= poor + 0.5


@settings(max_examples=8, deadline=None)
@given(cases)
def test_relaxing_a_limit_never_worsens(case: tuple) -> None:  # type: ignore[type-arg]
    goal, slots = build(case)
    free = replace(goal, domestic_share=0.0)
    assert usd(free, slots) <= usd(goal, slots) * (1 + NEAR)
    later = replace(goal, deadline=goal.deadline + dt.timedelta(days=31))
    assert usd(later, slots) <= usd(goal, slots) * (1 + NEAR)


@settings(max_examples=8, deadline=None)
@given(cases)
def test_a_schedule_is_one_that_can_be_followed(case: tuple) -> None:  # type: ignore[type-arg]
    goal, slots = build(case)
    found = least(goal, slots)
    if found is None:
        return
    assert sum(stage.tokens for stage in found.stages) == pytest.approx(TOKENS, rel=1e-3)
    assert found.finish <= goal.deadline
    for before, after in pairwise(found.stages):
        assert after.first_day >= before.last_day - 1e-3
    for stage in found.stages:
        available = goal.pools[stage.slot.pool].available(stage.slot.speed.devices)
        assert stage.first_day >= (available - START).days - 1e-3
        assert stage.last_day - stage.first_day >= stage.days + stage.move_days - 1e-3
    assert finish(goal, tuple(slower(slot, 1.2) for slot in slots)) >= finish(goal, slots) - 0.5


def test_where_only_a_purchase_costs_money_no_more_is_trained_than_asked_for() -> None:
    """Days are free once the devices are bought: nothing may be wasted on moves that go nowhere."""
    late = replace(made_grant(0, 1e6), first=START + dt.timedelta(days=30))
    pools = [
        made_pool("bought", None, buy=Estimate(5e3, 5e3, 5e3)),
        made_pool("late", None, grants=(late,)),
        made_pool("rented", 4.0),
        made_pool("granted", None, grants=(made_grant(0, 1e6),)),
    ]
    speeds = [
        made_speed(days, stack=stack)
        for days, stack in (
            (58.95595695304831, "cann"),
            (219.1276506769405, "cann"),
            (176.82609543247688, "rocm"),
            (144.67981315602358, "rocm"),
        )
    ]
    found = cheapest(made_goal(pools, days=120), made_slots(*speeds))
    assert found is not None
    assert sum(stage.tokens for stage in found.stages) == pytest.approx(TOKENS, rel=1e-3)
