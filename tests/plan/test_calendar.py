"""What a run takes beyond its steps: parts that add up, order, and that nothing shortens a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krzem.estimate import Estimate
from krzem.facts.table import published
from krzem.hardware.catalogue import Device
from krzem.hardware.cluster import Cluster
from krzem.layout.layout import parse_layout
from krzem.plan.calendar import PARTS, SHARES, STOPS, Beyond, Distance, without_distance
from krzem.plan.forecast import Phase, WholeRun, forecast
from krzem.plan.goal import Goal, recipes
from krzem.plan.plan import explain, plan
from krzem.plan.question import Question
from krzem.plan.request import settle

STEP = Estimate(18.5, 19.8, 21.5)
GOAL = Goal(tokens=14.8e12, sequence=4096, global_batch=15_360)
CLUSTER = Cluster(
    device=Device(id="test-card", vendor="Test", name="card", family="test"),
    devices=2048,
    devices_per_node=8,
    memory_bytes=80e9,
    memory_bytes_per_s=3e12,
    scale_up_domain=8,
    scale_up_bytes_per_s=2e11,
    scale_out_bytes_per_s=5e10,
    failures_per_device_day=1 / 3160,
    restart_seconds=900.0,
    checkpoint_write_bytes_per_s=1e11,
)
MORE = without_distance(256, Estimate.lognormal(1.2, 0.12))
RAMP = (Phase(tokens=4e11, global_batch=3072, step_seconds=STEP.scaled(0.4)),)


def run(more: Beyond | None = MORE, cluster: Cluster = CLUSTER, **options: object) -> WholeRun:
    return forecast(STEP, goal=GOAL, cluster=cluster, parameters=671e9, more=more, **options)  # type: ignore[arg-type]


def days(answer: WholeRun) -> Estimate:
    assert answer.days is not None
    return answer.days


@pytest.mark.parametrize("more", [None, MORE, without_distance(256), without_distance(1)])
@pytest.mark.parametrize("ramp", [(), RAMP])
def test_parts_add_up_to_the_days(more: Beyond | None, ramp: tuple[Phase, ...]) -> None:
    answer = run(more, ramp=ramp)
    assert sum(part.days.mid for part in answer.parts) == pytest.approx(days(answer).mid)
    assert all(part.days.low <= part.days.mid <= part.days.high for part in answer.parts)
    names = [name for name, _ in PARTS]
    assert [p.name for p in answer.parts] == [
        n for n in names if n in {p.name for p in answer.parts}
    ]
    assert ("ramp" in {p.name for p in answer.parts}) == bool(ramp)


def test_steps_are_a_part_as_they_stand_alone() -> None:
    answer = run()
    assert answer.parts[0].name == "steps"
    assert answer.parts[0].days.mid == pytest.approx(answer.training_days.mid)


def test_a_run_without_days_has_no_parts() -> None:
    unknown = run(cluster=replace(CLUSTER, failures_per_device_day=None))
    assert unknown.days is None
    assert unknown.parts == ()


def test_equal_questions_get_equal_answers() -> None:
    assert run() == run()


def test_everything_beyond_steps_lengthens_a_run_and_widens_it() -> None:
    plain, shares, far = run(None), run(without_distance(256)), run()
    assert days(plain).mid < days(shares).mid < days(far).mid
    assert days(far).high / days(far).low > days(plain).high / days(plain).low
    assert days(far).low <= days(far).mid <= days(far).high
    assert plain.training_days == far.training_days


@pytest.mark.parametrize("name", [*SHARES, STOPS, "distance"])
@settings(max_examples=15)
@given(factor=st.floats(1.0, 3.0))
def test_more_of_a_part_never_shortens_a_run(name: str, factor: float) -> None:
    if name == "distance":
        more = replace(MORE, distance=MORE.distance.scaled(factor))
    elif name == STOPS:
        more = replace(MORE, stops=MORE.stops.scaled(factor))
    else:
        more = replace(MORE, shares={**MORE.shares, name: MORE.shares[name].scaled(factor)})
    longer, shorter = days(run(more)), days(run())
    assert longer.mid >= shorter.mid * (1 - 1e-9)
    assert longer.low >= shorter.low * (1 - 1e-9)


@settings(max_examples=25)
@given(devices=st.integers(1, 1000), factor=st.integers(1, 16))
def test_at_one_step_time_more_devices_never_finish_sooner(devices: int, factor: int) -> None:
    """They are interrupted more often; they gain only by a shorter step."""
    few = days(run(cluster=replace(CLUSTER, devices=8 * devices)))
    many = days(run(cluster=replace(CLUSTER, devices=8 * devices * factor)))
    assert many.mid >= few.mid * (1 - 1e-9)


@settings(max_examples=25)
@given(batch=st.integers(64, 15_360), tokens=st.floats(1e10, 5e12))
def test_a_ramp_whose_steps_are_no_shorter_in_proportion_costs_time(
    batch: int, tokens: float
) -> None:
    share = min(1.0, batch / GOAL.global_batch + 0.05)
    phase = Phase(tokens=tokens, global_batch=batch, step_seconds=STEP.scaled(share))
    ramped = run(ramp=[phase])
    assert days(ramped).mid >= days(run()).mid * (1 - 1e-6)
    assert sum(part.days.mid for part in ramped.parts) == pytest.approx(days(ramped).mid)


def test_a_single_node_waits_for_no_other() -> None:
    assert "slow_share" in without_distance(2).shares
    assert "slow_share" not in without_distance(1).shares


@pytest.mark.parametrize("name", [*SHARES, STOPS])
def test_every_share_has_a_published_range(name: str) -> None:
    fact = published(name, ())
    assert fact is not None
    assert 0 < fact.low < fact.mid < fact.high < 0.1


def test_a_layout_that_runs_stands_by_its_own_middle() -> None:
    far = Distance(searched=0.2, given=0.0, sigma=0.1)
    assert far.estimate(given=True).mid == pytest.approx(1.0)
    assert far.estimate(given=False).mid > far.estimate(given=True).mid
    one = far.estimate(given=False)
    assert one.high / one.mid == pytest.approx(one.mid / one.low)


def test_recipes_ramp_upwards_and_within_their_tokens() -> None:
    ramped = [recipe for recipe in recipes().values() if recipe.ramp]
    assert ramped
    for recipe in ramped:
        sizes = [stage.global_batch for stage in recipe.ramp]
        assert sizes == sorted(sizes)
        assert recipe.global_batch is not None
        assert sizes[-1] < recipe.global_batch
        assert sum(stage.tokens for stage in recipe.ramp) < (recipe.tokens or 0)


def test_a_plan_of_a_recipe_has_its_ramp_and_one_with_another_batch_has_none() -> None:
    asked = settle(Question(model="llama-3.1-405b", on="h100:16384"))
    assert asked.task.goal.ramp
    assert "ramp" in asked.from_recipe
    assert not settle(
        Question(model="llama-3.1-405b", on="h100:16384", global_batch=4096)
    ).task.goal.ramp
    assert not settle(Question(model="llama-3.1-405b", on="h100:16384", tokens="2T")).task.goal.ramp


def test_smaller_batches_cost_time_in_a_priced_layout() -> None:
    task = settle(Question(model="llama-3.1-405b", on="h100:16384")).task
    layout = parse_layout("tp=8,pp=16,dp=128,mbs=1")
    ramped = explain(task, layout).whole_run
    flat = explain(replace(task, goal=replace(task.goal, ramp=())), layout).whole_run
    assert ramped is not None
    assert flat is not None
    assert ramped.training_days.mid > flat.training_days.mid
    assert ramped.steps > flat.steps


def test_the_best_of_a_search_stands_farther_from_published_totals_than_a_given_layout() -> None:
    task = settle(Question(model="llama-3.1-8b", on="h100:64", tokens="1T", global_batch=512)).task
    found = plan(task, alternatives=0)
    same = explain(task, found.best.layout)
    assert same.whole_run is not None
    assert days(found.whole_run).mid >= days(same.whole_run).mid
    assert found.whole_run.training_days == same.whole_run.training_days
