"""Small models under witness, and data for them."""

from __future__ import annotations

from typing import Any

import torch
from tests.train.configs import ALL

from krzem.layout.layout import Layout
from krzem.train.config import model_spec
from krzem.train.engine import Engine
from krzem.train.model.context import LossWeights
from krzem.train.optim import OptimizerConfig
from krzem.witness.batches import BUILT_IN, WitnessBatch, batches_of, tokens_of_text
from krzem.witness.rule import TrainerRule
from krzem.witness.setting import Setting
from krzem.witness.trainer import TrainerSubject

WEIGHTS = LossWeights(balance=1e-2)
QUICK = (
    Setting(name="products in 1/3 and 2/3", split=1 / 3),
    Setting(name="products in 2/3 and 1/3", split=2 / 3),
    Setting(name="sequences reversed", reverse=True),
    Setting(name="micro-batch 1", micro_batch=1),
)


def batches(sequences: int = 4, number: int = 1, length: int = 24) -> tuple[WitnessBatch, ...]:
    tokens = tokens_of_text(BUILT_IN, 96)
    return batches_of(tokens, length=length, sequences=sequences, batches=number)


def build(name: str, layout: Layout, dtype: torch.dtype, seed: int = 0) -> Engine:
    engine = Engine(
        model_spec(ALL[name]), layout, device=torch.device("cpu"), dtype=dtype, weights=WEIGHTS,
        seed=seed,
    )  # fmt: skip
    trained(engine)
    return engine


def trained(engine: Engine) -> None:
    """Make it look trained, the same under every layout.

    Weights grow, gains leave one, and attention is sharp: where it is uniform, nobody would notice
    a wrong rotation.
    """
    with torch.no_grad():
        for held in engine.held:
            if len(held.placement.shape) >= 2:
                sharp = "self_attn.q" in held.name or "self_attn.k" in held.name
                held.part.mul_(12.0 if sharp else 3.0)
            else:
                held.part.mul_(1.1)


def subject(name: str = "deepseek_v3", dtype: str = "float32", **changes: Any) -> TrainerSubject:
    rule = TrainerRule(OptimizerConfig())
    engine = build(name, Layout(micro_batch=2), getattr(torch, dtype), **changes)
    return TrainerSubject(engine, ALL[name], rule=rule)
