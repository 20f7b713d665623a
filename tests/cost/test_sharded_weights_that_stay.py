"""torchtitan's memory where weights stay gathered, and what its pipelines set aside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from krzem.cost.memory import RankBytes
from krzem.hardware import read_cluster
from krzem.layout.layout import pack, parse_layout
from krzem.model import load_model
from krzem.model.parameters import count
from krzem.plan.price import Pricer
from krzem.plan.question import Question
from krzem.plan.request import settle

SEQUENCE = 4096


def ranks(layout: str, batch: int, model: str = "llama-3.1-8b") -> tuple[RankBytes, RankBytes]:
    """The first and a middle rank, eager."""
    x = parse_layout(layout)
    asked = settle(Question(
        model=model, on=read_cluster(f"h100:{x.devices}"), sequence=SEQUENCE, global_batch=batch,
        precision="bf16", optimizer="adamw", engine="torchtitan", step_alone=True,
    ))  # fmt: skip
    task = replace(asked.task, stated=(("compile", "off"),))
    found = Pricer(task).memory(pack([x]))
    return found.first, found.middle


def of(value: Any) -> float:
    return float(np.ravel(value)[0])


def test_zero_2_keeps_a_gathered_copy_beside_sharded_masters() -> None:
    whole = count(load_model("llama-3.1-8b")).total
    first, _ = ranks("dp=64,zero=2,recompute=full", 64)
    third, _ = ranks("dp=64,zero=3,recompute=full", 64)
    assert of(third.weights) == pytest.approx(4 * whole / 64, rel=0.01)
    assert of(first.weights) == pytest.approx((4 / 64 + 2) * whole, rel=0.01)


@pytest.mark.parametrize(("stage", "sides"), [(0, 1), (1, 2)])
def test_a_stage_sets_aside_what_it_will_receive(stage: int, sides: int) -> None:
    few, many = (ranks("pp=4,dp=2,zero=2,recompute=full", 2 * n)[stage] for n in (16, 48))
    boundary = 2 * SEQUENCE * load_model("llama-3.1-8b").hidden
    assert of(many.activations) - of(few.activations) == pytest.approx(32 * sides * boundary)
    assert of(many.transient) == of(few.transient)


def test_an_eager_layer_keeps_its_norms_inputs_once() -> None:
    """What one layer of Llama 3.1 8B keeps of a token: two norms' inputs and results, queries, keys
    and values, attention's result, and of the gate both halves, the function's result and the
    product; within what the planner leaves out of eager copies."""
    first, _ = ranks("dp=64,zero=3", 64)
    h, kv, ffn = 4096, 1024, 14336
    token = 2 * (4 * h + h + 2 * kv + h + 4 * ffn)
    assert of(first.activations) / (32 * SEQUENCE) == pytest.approx(token, rel=0.12)
