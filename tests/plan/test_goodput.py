"""Goodput: the closed form against a simulation, its optimum, and what must never happen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.plan.goodput import goodput, lost_variance, optimal_interval

seconds = st.floats(1.0, 1e4)
mean_times = st.floats(1e3, 1e7)


def simulate(
    interval: float, write: float, recovery: float, mean_time: float, intervals: int, seed: int
) -> float:
    """Wall clock of a run of ``intervals`` kept intervals, one event after the other."""
    rng = np.random.default_rng(seed)
    wall, kept = 0.0, 0
    next_fault = rng.exponential(mean_time)
    while kept < intervals:
        if next_fault >= interval + write:
            next_fault -= interval + write
            wall += interval + write
            kept += 1
            continue
        wall += next_fault
        next_fault = rng.exponential(mean_time)
        while next_fault < recovery:
            wall += next_fault
            next_fault = rng.exponential(mean_time)
        wall += recovery
        next_fault -= recovery
    return wall


@pytest.mark.parametrize(
    ("interval", "write", "recovery", "mean_time"),
    [
        (3600.0, 60.0, 600.0, 36_000.0),
        (1200.0, 120.0, 900.0, 4_000.0),
        (600.0, 300.0, 1800.0, 1_500.0),  # interrupted again and again, mostly lost
    ],
)
def test_closed_form_agrees_with_the_simulation(
    interval: float, write: float, recovery: float, mean_time: float
) -> None:
    runs = [simulate(interval, write, recovery, mean_time, 400, seed) for seed in range(60)]
    expected = 400 * interval / float(goodput(interval, write, recovery, mean_time))
    error = np.std(runs) / np.sqrt(len(runs))
    assert abs(np.mean(runs) - expected) < 3.5 * error
    assert error < 0.02 * expected  # the comparison can fail


def test_variance_agrees_with_the_simulation_where_faults_are_rare() -> None:
    interval, write, recovery, mean_time = 1800.0, 30.0, 900.0, 60_000.0
    runs = [simulate(interval, write, recovery, mean_time, 2000, seed) for seed in range(300)]
    interruptions = float(np.mean(runs)) / mean_time
    expected = np.sqrt(float(lost_variance(interval, recovery, interruptions)))
    assert np.std(runs) == pytest.approx(expected, rel=0.12)


def test_rare_faults_cost_what_the_rule_of_thumb_says() -> None:
    lost = 1.0 - float(goodput(3600.0, 36.0, 600.0, 1e6))
    assert lost == pytest.approx(36 / 3600 + (3600 / 2 + 600) / 1e6, rel=0.02)


@given(write=seconds, recovery=seconds, mean_time=mean_times, off=st.floats(0.3, 3.0))
def test_no_other_interval_is_better_than_the_optimal_one(
    write: float, recovery: float, mean_time: float, off: float
) -> None:
    best = float(optimal_interval(write, mean_time))
    at_best = float(goodput(best, write, recovery, mean_time))
    assert float(goodput(best * off, write, recovery, mean_time)) <= at_best * (1 + 1e-12)


@given(write=st.floats(1.0, 100.0), mean_time=st.floats(1e5, 1e7))
def test_optimum_is_youngs_where_writing_is_short(write: float, mean_time: float) -> None:
    young = np.sqrt(2 * write * mean_time)
    assert float(optimal_interval(write, mean_time)) == pytest.approx(young, rel=0.05)


@given(write=seconds, recovery=seconds, mean_time=mean_times, more=st.floats(1.0, 100.0))
def test_more_devices_never_raise_goodput(
    write: float, recovery: float, mean_time: float, more: float
) -> None:
    def best(mean: float) -> float:
        return float(goodput(optimal_interval(write, mean), write, recovery, mean))

    assert best(mean_time / more) <= best(mean_time) * (1 + 1e-12)


@given(write=seconds, recovery=seconds, mean_time=mean_times, faster=st.floats(1.0, 100.0))
def test_faster_checkpoint_never_lowers_goodput(
    write: float, recovery: float, mean_time: float, faster: float
) -> None:
    def best(seconds: float) -> float:
        return float(goodput(optimal_interval(seconds, mean_time), seconds, recovery, mean_time))

    assert best(write / faster) >= best(write) * (1 - 1e-12)


@given(st.floats(1e-3, 1e9), st.floats(1e-3, 1e9), st.floats(1e-3, 1e9), st.floats(1e-3, 1e9))
def test_stays_finite_and_within_bounds_for_any_size(
    interval: float, write: float, recovery: float, mean_time: float
) -> None:
    value = float(goodput(interval, write, recovery, mean_time))
    assert 0.0 < value < 1.0
    assert 0.0 < float(optimal_interval(write, mean_time)) <= mean_time
