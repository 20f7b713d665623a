"""Levers, inverse solve, statements and the back-test."""

from __future__ import annotations

import numpy as np
import pytest

from krzem.outlook import Assumptions, beliefs, forecast, levers, shipped
from krzem.outlook.reproduce import compare, not_comparable, statements, view
from krzem.outlook.sensitivity import _ranks, count_of_levers, rank_correlations

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
