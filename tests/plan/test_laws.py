"""Scaling laws: the checks that stand beside their coefficients."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import UnknownNameError
from krzem.plan.goodput import loss_law, scaling_laws


def test_ten_laws_each_with_a_source() -> None:
    assert len(scaling_laws()) == 10
    assert all(law["source"] for law in scaling_laws().values())


@pytest.mark.parametrize(("flop", "ratio"), [(1e21, 22), (3.4e24, 18), (5e26, 15)])
def test_best_tokens_per_parameter(flop: float, ratio: float) -> None:
    n, d = loss_law("besiroglu_2024").best_size(flop)
    assert d / n == pytest.approx(ratio, abs=0.6)
    assert 6 * n * d == pytest.approx(flop)


@pytest.mark.parametrize(("law", "loss"), [("hoffmann_2022", 1.873), ("besiroglu_2024", 1.932)])
def test_two_laws_at_one_budget(law: str, loss: float) -> None:
    assert loss_law(law).best_loss(3.4e24) == pytest.approx(loss, abs=5e-4)


@given(st.floats(1e18, 1e30), st.floats(0.2, 5.0))
def test_no_other_size_is_better(flop: float, factor: float) -> None:
    law = loss_law("besiroglu_2024")
    n, d = law.best_size(flop)
    assert law.loss(n * factor, d / factor) >= law.best_loss(flop) - 1e-12


def test_llama_3_data_size() -> None:
    assert pytest.approx(16.55e12, rel=0.05) == 0.299 * 3.8e25**0.537


def test_muennighoff_exact_values_round_to_the_printed_ones() -> None:
    law = scaling_laws()["muennighoff_2023"]
    exact = {"A": law["ln_a"], "B": law["ln_b"], "E": law["ln_e"]}
    for name, log in exact.items():
        assert math.exp(log) == pytest.approx(law["rounded"][name], rel=1e-3)


def test_an_unknown_law_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="besiroglu_2024"):
        loss_law("besiroglu")
