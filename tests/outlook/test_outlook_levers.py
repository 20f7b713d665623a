"""Levers, inverse solve, statements and the back-test."""

from __future__ import annotations

import numpy as np
import pytest

from krzem.outlook import Assumptions, beliefs, forecast, levers, shipped
from krzem.outlook.backtest import LEVELS, assumptions_of_2024, back_test
from krzem.outlook.sensitivity import _ranks, count_of_levers, rank_correlations
from krzem.outlook.statements import compare, not_comparable, statements, view

SMALL = shipped().with_run(paths=16_384, lever_paths=8192, fan_paths=4000)
NAMES = ("gap_points", "catch_up", "domestic_growth", "leader_level")


def only(names: tuple[str, ...]) -> Assumptions:
    """All other quantities certain, so that a test has few levers to move."""
    return SMALL.with_quantities({
        n: q.fixed_at(q.mid) for n, q in SMALL.quantities.items() if n not in names
    })  # fmt: skip


def test_levers_are_ranked_and_signed() -> None:
    a = only(NAMES)
    ticks: list[int] = []
    result = levers(a, 5.0, lambda: ticks.append(1))
    assert len(ticks) == count_of_levers(a) == len(NAMES)
    swings = [abs(v.swing) for v in result.levers]
    assert swings == sorted(swings, reverse=True)
    by_name = {v.name: v for v in result.levers}
    assert by_name["gap_points"].swing < 0
    assert by_name["gap_points"].rank_correlation > 0.1
    assert by_name["domestic_growth"].swing >= 0
    assert by_name["leader_level"].swing == 0  # the level of both moves together
    assert sum(o.chance for o in result.options if o.scenario == "export") == pytest.approx(1)


def test_ranks_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(3).integers(0, 40, 500).astype(np.float32)
    assert (_ranks(values) == stats.rankdata(values)).all()


def test_rank_correlations_cover_every_uncertain_quantity() -> None:
    found = rank_correlations(only(NAMES).with_run(horizon_years=5.0))
    assert set(found) == set(NAMES)
    assert all(-1 <= r <= 1 for r in found.values())


def test_what_one_must_believe_gives_the_odds_when_believed() -> None:
    """Put the solved value in and the odds are the target."""
    a = only(NAMES)
    base = forecast(a.with_run(horizon_years=5.0)).ever[-1]
    target = float(base) + 0.05
    (solved,) = beliefs(a, [(target, 5.0)], ["gap_points"])
    (belief,) = solved.single
    assert belief.value is not None
    assert belief.value < a.quantities["gap_points"].mid
    assert solved.together is not None
    assert solved.together > 0
    fixed = a.with_quantity(a.quantities["gap_points"].fixed_at(belief.value))
    assert forecast(fixed).odds(5.0) == pytest.approx(target, abs=0.02)


def test_what_a_lever_cannot_do_is_said() -> None:
    (solved,) = beliefs(only(NAMES), [(0.9, 3.0)], ["leader_level", "domestic_growth"])
    assert all(b.value is None and b.reached < 0.9 for b in solved.single)


def test_every_statement_is_sourced_and_measurable() -> None:
    result = forecast(SMALL)
    assert len(statements()) >= 10
    for s in statements():
        assert s.source
        assert s.fits
        assert s.low <= s.high
        low, mid, high = view(result, s.measure, s.years)
        assert low <= mid <= high
        for name, option in s.scenario.items():
            assert option in SMALL.scenarios[name]
    assert all(row["why"] for row in not_comparable())


def test_comparison_with_the_stated_odds() -> None:
    rows = compare(forecast(SMALL))
    lin = [c for c in rows if c.statement.who.startswith("Justin Lin")]
    assert [c.statement.years for c in lin] == [3.0, 5.0]
    assert all(c.agrees == (c.mid <= 0.2) for c in lin)
    tight, loose = (c for c in rows if c.statement.who.startswith("Anthropic"))
    assert tight.mid > loose.mid  # tighter rules, longer lag


def test_a_short_horizon_leaves_later_statements_out() -> None:
    rows = compare(forecast(SMALL.with_run(horizon_years=1.0)))
    assert all(c.statement.years <= 1.0 for c in rows)


def test_back_test_knows_nothing_of_what_it_predicts() -> None:
    a = assumptions_of_2024()
    for q in a.quantities.values():
        assert "2025" not in q.source or q == shipped().quantities[q.name]
    changed = [n for n in a.quantities if a.quantities[n] != shipped().quantities[n]]
    assert {"gap_points", "leader_level", "leader_stock", "legal_stock"} <= set(changed)


def test_back_test_coverage_is_counted_honestly() -> None:
    test = back_test(paths=16_384)
    assert len(test.targets) == 10
    for level in LEVELS:
        assert test.covered(level) == sum(t.inside(level) for t in test.targets)
    for t in test.targets:
        assert t.low <= t.mid <= t.high
        assert t.inside(0.9) == (t.low <= t.actual <= t.high)
    assert test.covered(0.9) >= 8
    assert test.covered(0.5) <= 8  # intervals wide enough to hold all would tell nothing


def test_back_test_actuals_are_the_published_ones() -> None:
    actual = {t.what: t.actual for t in back_test(paths=1000).targets}
    assert actual["lag, mean of 2025"] == pytest.approx(5.0, abs=0.05)
    assert actual["gap, mean of 2026"] == pytest.approx(9.0, abs=0.05)
    assert actual["US record, 10 Sept 2026"] == 166.6
    assert actual["China's record, end of 2025"] == 146.28
    assert actual["five US labs, end of 2025"] == pytest.approx(6.15, abs=0.01)


def test_the_documented_coverage_is_what_the_back_test_gives() -> None:
    from pathlib import Path

    text = Path(__file__).parents[2].joinpath("docs/outlook.md").read_text(encoding="utf-8")
    test = back_test()
    for level in LEVELS:
        assert f"{100 * level:.0f} % intervals hold {test.covered(level)} of 10" in text
    for t in test.targets:
        assert t.what in text
