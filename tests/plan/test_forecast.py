"""The whole run: arithmetic that can be checked by hand, invariants, and what is unknown."""

from __future__ import annotations

import datetime
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krzem.errors import GoalError
from krzem.estimate import Estimate
from krzem.facts.table import Fact
from krzem.hardware.catalogue import Device
from krzem.hardware.cluster import Cluster
from krzem.layout.layout import StateBytes
from krzem.plan.forecast import Phase, WholeRun, forecast
from krzem.plan.goal import Goal
from krzem.plan.goodput import COUNT, KEY_OF, draw, normal, summary

STEP = Estimate(18.5, 19.8, 21.5)
GOAL = Goal(tokens=14.8e12, sequence=4096, global_batch=15_360)
RANGES = {
    "failures_per_device_day": (1 / 5000, 1 / 3160, 1 / 2000),
    "restart_seconds": (222.0, 900.0, 2334.0),
    "checkpoint_write_bytes_per_s": (5e10, 1e11, 2e11),
}
CLUSTER = Cluster(
    device=Device(id="test-card", vendor="Test", name="card", family="test"),
    devices=2048,
    devices_per_node=8,
    memory_bytes=80e9,
    memory_bytes_per_s=3e12,
    scale_up_domain=8,
    scale_up_bytes_per_s=2e11,
    scale_out_bytes_per_s=5e10,
    power_w=700.0,
    system_power_ratio=1.8,
    pue=1.25,
    usd_per_device_hour=2.0,
    failures_per_device_day=1 / 3160,
    restart_seconds=900.0,
    checkpoint_write_bytes_per_s=1e11,
    facts={
        name: Fact(what=name, low=low, mid=mid, high=high, unit="", source="test")
        for name, (low, mid, high) in RANGES.items()
    },
)
PERFECT = replace(
    CLUSTER, failures_per_device_day=0.0, restart_seconds=1e-6, checkpoint_write_bytes_per_s=1e30
)
PARAMETERS = 671e9


def run(step: Estimate = STEP, cluster: Cluster = CLUSTER, **options: object) -> WholeRun:
    goal = options.pop("goal", GOAL)
    return forecast(step, goal=goal, cluster=cluster, parameters=PARAMETERS, **options)  # type: ignore[arg-type]


def known(value: Estimate | None) -> Estimate:
    assert value is not None
    return value


def test_draws_keep_the_three_points_of_an_estimate() -> None:
    wide = Estimate(2.0, 3.0, 9.0)
    back = summary(draw(wide, "restart_seconds"))
    assert (back.low, back.mid, back.high) == pytest.approx((2.0, 3.0, 9.0), rel=2e-3)


def test_sources_of_chance_are_independent() -> None:
    correlation = np.corrcoef(normal("step_seconds"), normal("failures_per_device_day"))[0, 1]
    assert abs(correlation) < 3 / math.sqrt(COUNT)


def test_a_perfect_cluster_needs_the_time_of_its_steps() -> None:
    answer = run(cluster=PERFECT)
    steps = math.ceil(14.8e12 / (15_360 * 4096))
    assert answer.steps == steps == 235_240
    assert known(answer.days).mid == pytest.approx(steps * 19.8 / 86_400, rel=1e-6)
    assert known(answer.days).low == pytest.approx(steps * 18.5 / 86_400, rel=1e-3)
    assert known(answer.goodput).mid == pytest.approx(1.0, abs=1e-9)
    assert known(answer.interruptions).mid == 0.0


def test_units_agree_with_each_other() -> None:
    answer = run(cluster=PERFECT)
    hours = known(answer.days).mid * 24
    assert known(answer.device_hours).mid == pytest.approx(hours * 2048)
    assert known(answer.node_hours).mid == pytest.approx(hours * 256)
    assert known(answer.cost_usd).mid == pytest.approx(hours * 2048 * 2.0)
    energy = hours * 2048 * 700 * 1.8 * 1.25 / 1e6
    assert known(answer.energy_mwh).mid == pytest.approx(energy)


def test_deepseek_v3_sized_run_is_near_what_was_published() -> None:
    """2.664 M H800-hours of pre-training (arXiv 2412.19437, table 1), interruptions included."""
    hours = known(run().device_hours)
    assert hours.low < 2.664e6 < hours.high


def test_checkpoint_holds_weights_master_and_moments() -> None:
    answer = run().checkpoint
    assert answer.bytes == PARAMETERS * (2 + 4 + 8)
    assert known(answer.write_seconds).mid == pytest.approx(PARAMETERS * 14 / 1e11)
    assert answer.optimal
    small = replace(GOAL, states=StateBytes(weight=2, master=0, moments=4))
    assert run(goal=small).checkpoint.bytes == PARAMETERS * 6


def test_the_users_interval_is_kept_and_is_no_better() -> None:
    given_interval = run(checkpoint_interval_seconds=20 * 3600.0)
    assert given_interval.checkpoint.interval_seconds == 72_000.0
    assert given_interval.checkpoint.interval_steps == round(72_000 / 19.8)
    assert not given_interval.checkpoint.optimal
    assert known(given_interval.days).mid > known(run().days).mid


def test_interval_is_at_least_a_step_and_at_most_the_run() -> None:
    short = run(step=Estimate(90_000.0, 100_000.0, 110_000.0))
    assert short.checkpoint.interval_steps == 1
    long = run(cluster=PERFECT).checkpoint
    assert long.interval_seconds is not None
    assert long.interval_seconds <= known(run(cluster=PERFECT).days).mid * 86_400 * (1 + 1e-9)


def test_ramp_adds_its_own_steps_and_time() -> None:
    phase = Phase(tokens=0.4e12, global_batch=3072, step_seconds=STEP.scaled(0.25))
    answer = run(cluster=PERFECT, ramp=[phase])
    ramped = math.ceil(0.4e12 / (3072 * 4096))
    rest = math.ceil(14.4e12 / (15_360 * 4096))
    assert answer.steps == ramped + rest
    expected = (ramped * 19.8 / 4 + rest * 19.8) / 86_400
    assert known(answer.days).mid == pytest.approx(expected, rel=1e-6)


def test_ramp_of_all_tokens_leaves_no_full_batch() -> None:
    phase = Phase(tokens=GOAL.tokens, global_batch=3072, step_seconds=STEP)
    assert run(ramp=[phase]).steps == math.ceil(GOAL.tokens / (3072 * 4096))


@pytest.mark.parametrize(
    ("phase", "says"),
    [
        (Phase(tokens=15e12, global_batch=3072, step_seconds=STEP), "more than the 14,800"),
        (Phase(tokens=1e12, global_batch=20_000, step_seconds=STEP), "full 15360"),
        (Phase(tokens=0, global_batch=3072, step_seconds=STEP), "above 0"),
    ],
)
def test_impossible_ramps_are_refused(phase: Phase, says: str) -> None:
    with pytest.raises(GoalError, match=says):
        run(ramp=[phase])


@pytest.mark.parametrize("interval", [0.0, -1.0, math.inf, math.nan])
def test_impossible_intervals_are_refused(interval: float) -> None:
    with pytest.raises(GoalError, match="above 0"):
        run(checkpoint_interval_seconds=interval)


def test_dates_enclose_the_middle() -> None:
    start = datetime.date(2026, 12, 1)
    answer = run(start=start)
    assert answer.finish is not None
    early, middle, late = answer.finish
    assert start < early <= middle <= late
    assert (middle - start).days == math.ceil(known(answer.days).mid)
    assert run().finish is None


def test_probabilities_are_shares_of_the_same_draws() -> None:
    days = known(run().days)
    for limit, expected in ((days.low, 0.1), (days.mid, 0.5), (days.high, 0.9)):
        got = run(goal=replace(GOAL, deadline_days=limit)).deadline_probability
        assert got == pytest.approx(expected, abs=1e-3)
    cost = known(run().cost_usd)
    got = run(goal=replace(GOAL, budget_usd=cost.high)).budget_probability
    assert got == pytest.approx(0.9, abs=1e-3)
    assert run().deadline_probability is None


def test_unknown_failure_rate_leaves_the_time_of_the_steps() -> None:
    answer = run(cluster=replace(CLUSTER, failures_per_device_day=None))
    assert answer.days is answer.goodput is answer.device_hours is None
    assert answer.training_days.mid == pytest.approx(235_240 * 19.8 / 86_400)
    hours = 235_240 * 19.8 / 3600 * 2048
    assert known(answer.cost_usd).mid == pytest.approx(hours * 2.0)
    assert known(answer.energy_mwh).mid == pytest.approx(hours * 700 * 1.8 * 1.25 / 1e6)
    assert known(answer.checkpoint.write_seconds).mid > 0
    assert answer.checkpoint.interval_seconds is None
    (sentence,) = answer.unknown
    assert "test-card" in sentence
    assert "device_days_between_interruptions = " in sentence


def test_a_rate_borrowed_from_the_class_gives_days_and_is_said() -> None:
    borrowed = replace(CLUSTER.facts["failures_per_device_day"], basis="class", notes="class. Kind")
    facts = {**CLUSTER.facts, "failures_per_device_day": borrowed}
    answer = run(cluster=replace(CLUSTER, facts=facts))
    assert known(answer.days).mid == known(run().days).mid
    (note,) = answer.notes
    assert "2,000 to 5,000" in note
    assert "device_days_between_interruptions = " in note


@pytest.mark.parametrize(
    ("field", "lost", "kept"),
    [
        ("power_w", "energy_mwh", "cost_usd"),
        ("pue", "energy_mwh", "cost_usd"),
        ("system_power_ratio", "energy_mwh", "cost_usd"),
        ("usd_per_device_hour", "cost_usd", "energy_mwh"),
    ],
)
def test_each_unknown_takes_only_what_needs_it(field: str, lost: str, kept: str) -> None:
    answer = run(cluster=replace(CLUSTER, **{field: None}), goal=replace(GOAL, budget_usd=1e9))
    assert getattr(answer, lost) is None
    assert known(getattr(answer, kept)).mid > 0
    assert known(answer.days).mid > 0
    assert (answer.budget_probability is None) == (lost == "cost_usd")
    assert any(f"{KEY_OF[field]} = " in sentence for sentence in answer.unknown)


def test_a_run_that_hardly_progresses_says_so() -> None:
    answer = run(cluster=replace(CLUSTER, devices=10**6, failures_per_device_day=1 / 400, facts={}))
    assert any("more than half of the time is lost" in note for note in answer.notes)
    assert all(math.isfinite(x) for x in known(answer.days).as_dict().values())
    assert not any("more than half" in note for note in run().notes)


def test_ranges_of_facts_widen_the_answer() -> None:
    sure = known(run(cluster=replace(CLUSTER, facts={})).goodput)
    vague = known(run().goodput)
    assert vague.low < sure.low
    assert vague.high > sure.high


sizes = st.integers(1, 10_000)
factors = st.floats(1.0, 50.0)


@settings(max_examples=40)
@given(devices=sizes, factor=st.integers(1, 50))
def test_more_devices_never_raise_goodput(devices: int, factor: int) -> None:
    few = known(run(cluster=replace(CLUSTER, devices=devices)).goodput)
    many = known(run(cluster=replace(CLUSTER, devices=devices * factor)).goodput)
    assert many.mid <= few.mid * (1 + 1e-9)
    assert many.low <= few.low * (1 + 1e-9)


@settings(max_examples=40)
@given(devices=sizes, factor=factors)
def test_faster_checkpoints_never_lower_goodput(devices: int, factor: float) -> None:
    slow = replace(CLUSTER, devices=devices, facts={})
    fast = replace(slow, checkpoint_write_bytes_per_s=1e11 * factor)
    assert known(run(cluster=fast).goodput).mid >= known(run(cluster=slow).goodput).mid * (1 - 1e-9)


@settings(max_examples=40)
@given(devices=sizes, factor=factors)
def test_a_shorter_step_never_finishes_later(devices: int, factor: float) -> None:
    cluster = replace(CLUSTER, devices=devices)
    long = known(run(cluster=cluster).days)
    short = known(run(step=STEP.scaled(1 / factor), cluster=cluster).days)
    for a, b in zip(short.as_dict().values(), long.as_dict().values(), strict=True):
        assert a <= b * (1 + 1e-9)
