"""Small models under witness, with a trained look, moments and data of several documents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from tests.train.configs import ALL

from krzem.layout.layout import Layout
from krzem.train.config import model_spec
from krzem.train.engine import Engine
from krzem.train.model.context import LossWeights
from krzem.train.optim import Optimizer, OptimizerConfig
from krzem.witness.batches import BUILT_IN, WitnessBatch, batches_of, tokens_of_text
from krzem.witness.rule import TrainerRule
from krzem.witness.subject import Setting
from krzem.witness.trainer import TrainerSubject

WEIGHTS = LossWeights(balance=1e-2)
RATE = 1e-3
QUICK = (
    Setting(name="products in 1/3 and 2/3", split=1 / 3),
    Setting(name="products in 2/3 and 1/3", split=2 / 3),
    Setting(name="sequences reversed", reverse=True),
    Setting(name="micro-batch 1", micro_batch=1),
)


def batches(sequences: int = 4, number: int = 1, length: int = 24) -> tuple[WitnessBatch, ...]:
    tokens = tokens_of_text(BUILT_IN, 96)
    return batches_of(tokens, length=length, sequences=sequences, batches=number)


def with_documents(given: tuple[WitnessBatch, ...]) -> tuple[WitnessBatch, ...]:
    """Each sequence is cut into two documents, elsewhere in each."""

    def cut(b: WitnessBatch) -> WitnessBatch:
        n, length = b.shape
        borders = length // 3 + np.arange(n)[:, None]
        return replace(b, documents=(np.arange(length)[None] >= borders).astype(np.int64))

    return tuple(cut(b) for b in given)


def build(name: str, layout: Layout, dtype: torch.dtype, seed: int = 0) -> tuple[Engine, Optimizer]:
    engine = Engine(
        model_spec(ALL[name]), layout, device=torch.device("cpu"), dtype=dtype, weights=WEIGHTS,
        seed=seed,
    )  # fmt: skip
    trained(engine)
    return engine, moved(engine)


def trained(engine: Engine) -> None:
    """Make it look trained, the same under every layout.

    Weights grow, gains leave one, and attention is sharp: where it is uniform, nobody would notice
    a wrong rotation.  Balancing biases leave zero.
    """
    with torch.no_grad():
        for held in engine.held:
            if len(held.placement.shape) >= 2:
                sharp = "self_attn.q" in held.name or "self_attn.k" in held.name
                held.part.mul_(12.0 if sharp else 3.0)
            else:
                held.part.mul_(1.1)
        for router in engine.routers().values():
            if router.shape.router_bias:
                bias = router.e_score_correction_bias
                bias.copy_(0.1 * torch.sin(torch.arange(len(bias), dtype=torch.float32)))


def moved(engine: Engine) -> Optimizer:
    """An optimizer that has been at work: moments from the weights, the same in every layout."""
    optimizer = Optimizer(engine.held, OptimizerConfig())
    for key, held in optimizer.items():
        part = held.part.detach()
        optimizer.state[key]["exp_avg"].copy_(0.02 * torch.sin(40 * part))
        optimizer.state[key]["exp_avg_sq"].copy_(1e-3 * (1.1 + torch.cos(70 * part)))
    optimizer.steps = 12
    return optimizer


def subject(
    name: str = "deepseek_v3", dtype: str = "float32", seed: int = 0, micro_batch: int = 2
) -> TrainerSubject:
    def again(layout: Layout, dtype: torch.dtype) -> tuple[Engine, Optimizer]:
        return build(name, layout, dtype, seed)

    engine, optimizer = again(Layout(micro_batch=micro_batch), getattr(torch, dtype))
    return TrainerSubject(
        engine, ALL[name], rule=TrainerRule(OptimizerConfig()), build=again, optimizer=optimizer,
        rate=RATE,
    )  # fmt: skip
