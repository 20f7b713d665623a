"""Draws and their weighting by evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.outlook import shipped
from krzem.outlook.assumptions import Evidence
from krzem.outlook.model import _systematic, draw_chunk, start

A = shipped()
COUNT = 20_000


def without_evidence() -> object:
    wide = {name: Evidence(value=0, deviation=1e9, source="-") for name in A.evidence}
    return replace(A, evidence=wide)


def test_without_evidence_the_draws_are_the_assumptions() -> None:
    chunk = draw_chunk(without_evidence(), 0, COUNT)  # type: ignore[arg-type]
    assert chunk.effective == pytest.approx(COUNT, rel=1e-3)
    for q in A.quantities.values():
        if q.fixed:
            assert (chunk.draws[q.name] == np.float32(q.mid)).all()
            continue
        inside = ((chunk.draws[q.name] > q.low) & (chunk.draws[q.name] < q.high)).mean()
        below = (chunk.draws[q.name] < q.mid).mean()
        assert inside == pytest.approx(0.9, abs=0.01)
        assert below == pytest.approx(0.5, abs=0.015)


def test_scenarios_come_at_their_chances_whatever_the_evidence() -> None:
    drawn = draw_chunk(A, 3, COUNT).draws
    for name, options in A.scenarios.items():
        for i, chance in enumerate(options.values()):
            assert (drawn[name] == i).mean() == pytest.approx(chance, abs=0.012)


def test_weighting_is_bayes_rule() -> None:
    """The posterior mean equals the prior draws' mean weighted by the likelihood."""
    prior = draw_chunk(without_evidence(), 0, COUNT).draws  # type: ignore[arg-type]
    lag, slope, _ = start(prior)
    likelihood = np.ones(COUNT)
    for name, value in (("lag_months", 12 * lag), ("frontier_points_per_year", slope)):
        e = A.evidence[name]
        likelihood *= np.exp(-0.5 * ((value - e.value) / e.deviation) ** 2)
    weights = likelihood / likelihood.sum()
    posterior = draw_chunk(A, 0, COUNT)
    for name in ("catch_up", "frontier_algorithms", "follower_top_share"):
        expected = float((np.log(prior[name]) * weights).sum())
        assert np.log(posterior.draws[name]).mean() == pytest.approx(expected, abs=0.01)
    assert posterior.effective == pytest.approx(1 / (weights**2).sum(), rel=1e-3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0, 0.999999))
def test_resampling_keeps_to_the_weights(raw: list[float], offset: float) -> None:
    """Systematic resampling gives every draw its share of places, rounded up or down."""
    weights = np.array(raw) + 1e-9
    weights /= weights.sum()
    picked = _systematic(weights, offset)
    counts = np.bincount(picked, minlength=len(weights))
    assert counts.sum() == len(weights)
    assert (np.abs(counts - weights * len(weights)) < 1 + 1e-6).all()


def test_chunks_differ_and_repeat() -> None:
    one, again, other = (draw_chunk(A, i, 500).draws["catch_up"] for i in (0, 0, 1))
    assert (one == again).all()
    assert not (one == other).all()


def test_a_quantity_keeps_its_quantiles_when_another_changes() -> None:
    base = without_evidence()
    moved = base.with_quantity(A.quantities["gap_points"].fixed_at(3.0))  # type: ignore[attr-defined]
    first, second = draw_chunk(base, 0, 500).draws, draw_chunk(moved, 0, 500).draws  # type: ignore[arg-type]
    assert (first["catch_up"] == second["catch_up"]).all()
    assert (first["wear"] == second["wear"]).all()
    assert (second["gap_points"] == 3).all()
