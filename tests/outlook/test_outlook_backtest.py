"""The back-test: no hindsight, proper scores, a trend that can win, ceilings that hold."""

from __future__ import annotations

import datetime as dt
import math
import tomllib
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.outlook import records, shipped
from krzem.outlook.backtest import (
    FAMILIES,
    LEVELS,
    assumptions_at,
    back_test,
    dated,
    sample_score,
)
from krzem.outlook.model import draw_chunk, path_rng, simulate
from krzem.outlook.records import Normal

TEST = back_test(4096)
DAYS = TEST.cutoffs
FILE = tomllib.loads(
    resources.files("krzem.facts").joinpath("outlook_backtest.toml").read_text(encoding="utf-8")
)


def test_the_cutoffs_are_four() -> None:
    assert [f"{d}" for d in DAYS] == ["2022-12-31", "2023-12-31", "2024-12-31", "2025-06-30"]


@pytest.mark.parametrize("day", DAYS)
def test_every_quantity_is_dated_structural_or_by_rule(day: dt.date) -> None:
    """Nothing of today's assumptions is in a view of the past, and nothing looks past its day."""
    by_day, structural = set(dated(day)), set(FILE["structural"])
    by_rule = {"gap_points", "leader_level"}
    assert by_day | structural | by_rule == set(shipped().quantities)
    assert not (by_day & structural)
    assert not (by_rule & (by_day | structural))
    assert all(known <= day for known in dated(day).values())


def test_structural_constants_are_no_narrower_than_the_default_where_it_was_tuned() -> None:
    for name in ("compute_weight", "points_per_oom", "gap_drift_noise", "release_noise",
                 "leader_noise", "run_share", "run_growth"):  # fmt: skip
        past, now = (a.quantities[name] for a in (assumptions_at(DAYS[0]), shipped()))
        assert past.high / past.low >= now.high / now.low


@pytest.mark.parametrize("day", DAYS)
def test_what_comes_by_rule_uses_nothing_later(
    day: dt.date, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = assumptions_at.__wrapped__(day)
    known = {g: tuple(r for r in records.records(g) if r.date <= day) for g in ("US", "CN")}
    monkeypatch.setattr(records, "records", lambda group: known[group])
    monkeypatch.setattr(records, "daily_gap", records.daily_gap.__wrapped__)
    if known["CN"]:
        assert assumptions_at.__wrapped__(day).quantities == before.quantities
        assert assumptions_at.__wrapped__(day).evidence == before.evidence


def test_actual_values_are_the_published_ones() -> None:
    actual = {(f"{t.cutoff}", t.family, t.what): t.actual for t in TEST.targets}
    assert actual["2024-12-31", "lag", "mean to 2025-12-31"] == pytest.approx(5.0, abs=0.05)
    assert actual["2024-12-31", "gap", "mean to 2026-09-10"] == pytest.approx(9.0, abs=0.05)
    assert actual["2024-12-31", "US record", "on 2026-09-10"] == 166.6
    assert actual["2024-12-31", "China's record", "on 2025-12-31"] == 146.28
    labs = actual["2024-12-31", "stocks", "labs, end of 2025"]
    assert 10**labs / 1e6 == pytest.approx(6.15, abs=0.01)


def test_coverage_is_counted_for_both_and_intervals_are_not_endless() -> None:
    for level in LEVELS:
        model, trended, count = TEST.covered(level)
        assert count == len(TEST.targets)
        assert model == sum(t.model.inside(level) for t in TEST.targets)
        assert trended == sum(t.trend.inside(level) for t in TEST.targets)
    assert TEST.covered(0.9)[0] >= 0.8 * len(TEST.targets)
    assert TEST.covered(0.5)[0] <= 0.8 * len(TEST.targets)


def test_the_better_one_is_the_one_with_the_lower_score() -> None:
    for verdict in TEST.verdicts:
        assert verdict.family in FAMILIES
        assert verdict.better == ("model" if verdict.crps[0] < verdict.crps[1] else "trend")
        assert TEST.better(verdict.family) == verdict.better
    assert sum(v.count for v in TEST.verdicts) == len(TEST.targets)


@given(st.floats(-50, 50), st.floats(0.1, 20), st.floats(-80, 80))
def test_scores_of_paths_are_those_of_the_distribution_they_come_from(
    mean: float, sd: float, actual: float
) -> None:
    quantiles = (np.arange(4000) + 0.5) / 4000
    paths = mean + sd * np.array([_normal_quantile(q) for q in quantiles[::40]])
    exact = Normal(mean=mean, sd=sd)
    scored = sample_score(paths, actual)
    assert scored.crps == pytest.approx(exact.crps(actual), rel=0.05, abs=0.05 * sd)
    assert abs(scored.place - exact.cdf(actual)) < 0.02


def _normal_quantile(p: float) -> float:
    low, high = -9.0, 9.0
    unit = Normal(mean=0.0, sd=1.0)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if unit.cdf(middle) < p else (low, middle)
    return low


def test_first_passage_against_simulated_walks() -> None:
    rng = np.random.default_rng(1)
    steps, years = 2000, 3.0
    for drift in (-1.0, 0.0, 2.0):
        jumps = rng.normal(drift * years / steps, 4 * math.sqrt(years / steps), (4000, steps))
        seen = ((9.0 + jumps.cumsum(axis=1)).min(axis=1) <= 0).mean()
        assert records.ever_ahead(9.0, 4.0, drift, years) == pytest.approx(seen, abs=0.03)


def test_no_ceiling_is_ever_broken() -> None:
    """Power, money and fabs bind every path; the median needs far less than 8,750 GW in the end."""
    a = shipped()
    drawn = draw_chunk(a, 0, 2000).draws
    states = list(simulate(drawn, 40, 0.25, path_rng(a, 0)))
    for state in states:
        grown = 10.0**state.leader_stock
        assert (
            state.leader_gw <= np.maximum(drawn["power_ceiling_gw"], states[0].leader_gw) * 1.001
        ).all()
        dollars = drawn["usd_per_h100e"] / drawn["price_performance"] ** state.years
        most = np.maximum(5 * drawn["spend_ceiling_usd"] / dollars, drawn["leader_stock"])
        assert (grown <= most * 1.001).all()
        watts = drawn["watts_per_h100e"] / drawn["efficiency_growth"] ** state.years
        fed = np.maximum(drawn["follower_power_ceiling_gw"] * 1e9 / watts, states[0].follower_stock)
        assert (state.follower_stock <= fed * 1.001).all()
    assert np.median(states[-1].leader_gw) < 400


@pytest.mark.parametrize("option", ["tight", "loose"])
def test_a_scenario_changes_nothing_before_its_day(option: str) -> None:
    later = shipped().with_quantity(shipped().quantities["export_decided_years"].fixed_at(2.0))
    runs = []
    for name in ("as_now", option):
        a = later.with_scenario("export", name)
        drawn = draw_chunk(a, 0, 500).draws
        runs.append(list(simulate(drawn, 16, 0.25, path_rng(a, 0))))
    for now, other in zip(*runs, strict=True):
        same = np.array_equal(now.follower_stock, other.follower_stock)
        assert same == (now.years <= 2.0)
