"""Shapes for a cluster: the law of mixtures, the grid, and what decides between shapes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.command_line import say

import krzem.plan.design as design_module
from krzem.errors import GoalError
from krzem.hardware.cluster_reader import read_cluster
from krzem.model.catalogue import load_model
from krzem.model.parameters import count
from krzem.plan.design import ASPECT, Design, design, leverage, leverage_of, shapes
from krzem.plan.question import Question


def test_the_law_gives_what_its_paper_states() -> None:
    """Ling-mini's setting: 3.1 % of experts at granularity 12 and 1e22 FLOPs are "over 7" times."""
    assert leverage(0.031, 12.0, 1e22) == pytest.approx(7.0, rel=0.03)
    assert leverage(1.0, 1.0, 1e22) == pytest.approx(1.0, rel=0.02)


@given(
    activation=st.floats(0.01, 0.5),
    flop=st.floats(1e20, 1e26),
    granularity=st.floats(1.0, 12.0),
)
def test_sparser_is_worth_more_and_compute_helps_sparsity(
    activation: float, flop: float, granularity: float
) -> None:
    assert leverage(activation / 2, granularity, flop) > leverage(activation, granularity, flop)
    assert leverage(activation, granularity, 2 * flop) >= leverage(activation, granularity, flop)


def test_a_dense_model_has_no_leverage() -> None:
    assert leverage_of(load_model("llama-3.1-8b"), 1e24) == 1.0
    assert leverage_of(load_model("deepseek-v3"), 1e24) > 6.0


@pytest.mark.parametrize("active", [3e9, 20e9, 37e9])
def test_shapes_have_the_size_and_stay_within_what_was_published(active: float) -> None:
    found = list(shapes(active))
    assert len(found) > 20
    for shape in found[:: len(found) // 10]:
        model = shape.architecture()
        assert count(model).active == pytest.approx(active, rel=0.1)
        assert ASPECT[0] <= shape.hidden / shape.layers <= ASPECT[1]


def test_the_shape_of_deepseek_v3_lies_on_the_grid() -> None:
    model = load_model("deepseek-v3")
    near = [s for s in shapes(float(count(model).active))
            if (s.hidden, s.experts, s.width, s.heads) == (7168, 256, 2048, 128)]  # fmt: skip
    assert near
    assert near[0].layers == pytest.approx(61, abs=4)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of a few shapes, one of them searched whole."""
    monkeypatch.setattr(design_module, "WIDTHS", (1536, 2048))
    monkeypatch.setattr(design_module, "EXPERTS", (64, 128))
    monkeypatch.setattr(design_module, "GRANULARITIES", (7.0,))
    monkeypatch.setattr(design_module, "HEADS", (64,))
    monkeypatch.setattr(design_module, "FINALISTS", 1)


def designed(on: str, **changes: float) -> Design:
    cluster = replace(read_cluster(on), **changes)
    return design(
        cluster, 1e22, question=Question(model="", on=cluster), published=["mixtral-8x7b"]
    )


@pytest.mark.usefixtures("small")
def test_slow_links_favour_fewer_wider_experts() -> None:
    """Worth is learned per second: where the network is slow, sparse routing pays less."""
    fast, slow = designed("h100:64"), designed("h100:64", scale_out_bytes_per_s=1e9)
    gained = {j.name: j.worth for j in fast.found}
    lost = {j.name: j.worth / gained[j.name] for j in slow.found if j.name in gained}
    assert all(share <= 1.001 for share in lost.values())
    assert fast.found == tuple(sorted(fast.found, key=lambda j: -j.worth))
    assert fast.published[0].name == "mixtral-8x7b"
    assert sum(j.whole for j in fast.found) == 1


@pytest.mark.usefixtures("small")
def test_the_verb_prints_and_writes_a_config_that_plans(tmp_path: Path) -> None:
    to = tmp_path / "config.json"
    words = ("design", "--on", "h100:64", "--flops", "1e22", "--beside", "mixtral-8x7b")
    found = say(*words, "--config-to", str(to))
    assert found.code == 0, found.err
    assert found.out.startswith("For 1e+22 FLOPs on 64 nvidia-h100-sxm:")
    assert "mixtral-8x7b" in found.out
    assert "not in the law" in found.out
    document = json.loads(say(*words, "--json").out)
    assert document["schema"] == "krzem.design/1"
    assert document["shapes"][0]["against_best"] == 1.0
    planned = say("explain", str(to), "--on", "h100:64", "--batch", "128", "--seq", "4k",
                  "--precision", "bf16", "--layout", "tp=1,ep=8")  # fmt: skip
    assert planned.code == 0, planned.err


@pytest.mark.parametrize("flop", [1e10, 1e30, float("nan")])
def test_compute_that_is_no_run_is_refused(flop: float) -> None:
    with pytest.raises(GoalError, match="flops"):
        design("h100:64", flop)
