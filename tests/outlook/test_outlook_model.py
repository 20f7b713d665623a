"""The equations: cases worked by hand, limits, and what must never happen."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krzem.outlook import Assumptions, forecast, shipped
from krzem.outlook.assumptions import Evidence
from krzem.outlook.model import draw_chunk, path_rng, simulate, start

SMALL = shipped().with_run(paths=8192, chunk_paths=4096, fan_paths=1000, lever_paths=4096)


NO_CEILINGS = {
    "power_ceiling_gw": 1e9, "spend_ceiling_usd": 1e22, "fab_h100e_per_year": 1e16,
    "follower_power_ceiling_gw": 1e9, "ceiling_flop": 1e37,
}  # fmt: skip


def fixed(base: Assumptions = SMALL, **values: float) -> Assumptions:
    return base.with_quantities({n: base.quantities[n].fixed_at(v) for n, v in values.items()})


def unweighted(base: Assumptions) -> Assumptions:
    """Without evidence: every draw counts the same."""
    wide = {name: Evidence(value=0.0, deviation=1e9, source="-") for name in base.evidence}
    return replace(base, evidence=wide)


def random_walk(spread: float, step: float) -> Assumptions:
    """The gap as nothing but chance from 8.9 points: constant slope, no pull, no saw-tooth."""
    base = SMALL.with_run(paths=30_000, horizon_years=5.0, step_years=step)
    growth = base.quantities["leader_stock_growth"].mid
    return unweighted(fixed(
        base, gap_points=8.9, gap_drift_noise=spread, release_noise=1e-6, reversion=1e-5,
        compute_weight=1e-6, leader_stock_growth=growth, leader_stock_growth_later=growth,
        run_growth=1.0, points_per_oom=9.4, frontier_algorithms=3.0, **NO_CEILINGS,
    ))  # fmt: skip


@pytest.mark.parametrize(("spread", "three", "five"), [(3.7, 0.15, 0.26), (4.8, 0.26, 0.39)])
def test_without_structure_it_is_the_published_base_rate(
    spread: float, three: float, five: float
) -> None:
    """A random walk from 8.9 points, watched weekly: 15-26 % in three years, 26-39 % in five."""
    result = forecast(random_walk(spread, 1 / 52))
    assert result.odds(3.0) == pytest.approx(three, abs=0.012)
    assert result.odds(5.0) == pytest.approx(five, abs=0.012)


def test_random_walk_against_the_reflection_principle() -> None:
    """Watched every quarter, the barrier lies 0.5826 steps further away (Broadie et al. 1997)."""
    spread, step = 4.0, 0.25
    barrier = 8.9 + 0.5826 * spread * step**0.5
    result = forecast(random_walk(spread, step))
    for years in (2.0, 5.0):
        exact = 2 * NormalDist().cdf(-barrier / (spread * years**0.5))
        assert result.odds(years) == pytest.approx(exact, abs=0.012)


def test_lag_at_the_start_by_hand() -> None:
    """Labs with 2.43e6 and 1.2e5 useful H100e for research: 20.3 times, 1.307 OOM.

    At catch-up 10 per year and runs growing 3.4 x 1.35 = 4.59 per year: 1.307 / (1 + 0.662) years.
    """
    a = unweighted(fixed(
        leader_stock=14.5e6, leader_research_share=0.6, leader_top_share=0.28,
        legal_stock=4e5, smuggled_stock=3e5, domestic_stock=5e5, domestic_usefulness=0.6,
        rented_stock=1e6, follower_research_share=0.3, follower_top_share=0.2, catch_up=10.0,
        leader_stock_growth=3.4, run_growth=1.35, frontier_algorithms=3.0, points_per_oom=10.0,
        **NO_CEILINGS,
    ))  # fmt: skip
    lag, slope, gap = start(draw_chunk(a, 0, 100).draws)
    assert gap == pytest.approx(np.log10(2.436e6 / 1.2e5), abs=1e-3)
    assert lag == pytest.approx(1.3075 / (1 + 0.6618), abs=1e-3)
    assert slope == pytest.approx(10 * (0.6618 + 0.4771), abs=1e-2)


def test_paths_start_where_the_groups_stand() -> None:
    a = fixed(gap_points=9.0, leader_level=166.6, release_noise=1e-6)
    first = next(simulate(draw_chunk(a, 0, 500).draws, 4, 0.25, path_rng(a, 0)))
    assert first.trend_points == pytest.approx(9.0, abs=1e-4)
    assert first.leader_level == pytest.approx(166.6)
    assert (first.leader_run > first.follower_run).all()


def test_stocks_add_up_by_hand() -> None:
    """Two steps of half a year: imports 100 k a year growing 4-fold, wear 19 % a year, no rent."""
    a = unweighted(fixed(
        legal_stock=1e6, smuggled_stock=1.0, domestic_stock=1.0, rented_stock=1.0,
        legal_per_year_tight=1e5, legal_per_year_as_now=1e5, legal_per_year_loose=1e5,
        legal_growth=4.0, smuggled_per_year=1.0, domestic_per_year=1.0, wear=0.19,
        leader_stock=1e7, leader_stock_growth=4.0, leader_stock_growth_later=4.0, **NO_CEILINGS,
    ))  # fmt: skip
    states = list(simulate(draw_chunk(a, 0, 100).draws, 2, 0.5, path_rng(a, 0)))
    kept = 0.81**0.5
    after_one = 1e6 * kept + 0.5e5
    after_two = after_one * kept + 0.5 * 1e5 * 4**0.5
    assert states[1].follower_stock == pytest.approx(after_one, rel=1e-3)
    assert states[2].follower_stock == pytest.approx(after_two, rel=1e-3)
    assert 10 ** states[2].leader_stock == pytest.approx(4e7, rel=1e-3)


def test_a_wall_for_runs_brings_the_groups_together() -> None:
    near = forecast(unweighted(fixed(ceiling_flop=2e27)))
    far = forecast(unweighted(fixed(ceiling_flop=1e37)))
    assert near.fans["run_ratio"][-1, 3] < far.fans["run_ratio"][-1, 3]
    assert near.fans["leader_run"][-1, -1] <= np.log10(2e27) + 1e-3


def test_evidence_moves_the_draws_towards_it() -> None:
    def lag(a: Assumptions) -> float:
        return float(np.median(start(draw_chunk(a, 0, 8192).draws)[0]))

    free = lag(unweighted(SMALL))
    for target in (3.0, 12.0):
        seen = {**SMALL.evidence, "lag_months": Evidence(value=target, deviation=0.5, source="-")}
        assert abs(12 * lag(replace(SMALL, evidence=seen)) - target) < abs(12 * free - target)


FOLLOWER_GROWTH = (
    "domestic_growth", "domestic_growth_later", "domestic_per_year", "legal_growth",
    "smuggled_growth", "smuggled_per_year", "rented_growth", "legal_per_year_as_now",
    "follower_research_share_growth",
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(FOLLOWER_GROWTH), st.floats(-2, 2), st.floats(0.05, 2), st.integers(0, 2**31)
)
def test_more_compute_growth_for_the_follower_never_lowers_its_odds(
    name: str, z: float, more: float, seed: int
) -> None:
    base = SMALL.with_run(paths=2048, chunk_paths=2048, horizon_years=5.0, seed=seed)
    quantity = base.quantities[name]
    less, greater = (
        forecast(base.with_quantity(quantity.fixed_at(quantity.at(x)))) for x in (z, z + more)
    )
    rounding = 1 / 2048
    assert (greater.ever >= less.ever - rounding).all()
    assert (greater.ahead >= less.ahead - rounding).all()
    assert (greater.larger_run >= less.larger_run - rounding).all()


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from(list(SMALL.quantities)), st.floats(-6, 6), max_size=6))
def test_extreme_assumptions_stay_finite(places: dict[str, float]) -> None:
    values = {name: SMALL.quantities[name].at(z) for name, z in places.items()}
    result = forecast(fixed(SMALL.with_run(paths=512, chunk_paths=512), **values))
    assert np.isfinite(result.ever).all()
    assert (np.diff(result.ever) >= 0).all()
    assert all(np.isfinite(fan).all() for fan in result.fans.values())
