"""Training learns: in a few steps below counting single tokens, on text that was not shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from krzem.layout.layout import Layout
from krzem.train.config import model_spec
from krzem.train.data import NGram
from krzem.train.engine import Engine
from krzem.train.optim import Optimizer, OptimizerConfig, update_biases

from ..configs import DEEPSEEK_V3, DEEPSEEK_V4, LLAMA, QWEN3_MOE

VOCABULARY, SEQUENCE, BATCH, STEPS = 96, 32, 8, 30


def walk(length: int) -> np.ndarray:
    """Each token is followed by one of three others; tokens are about equally frequent."""
    draw = np.random.default_rng(0)
    after = np.stack([draw.permutation(VOCABULARY) for _ in range(3)], axis=1)
    tokens = np.zeros(length, dtype=np.int64)
    for i, choice in enumerate(draw.integers(0, 3, length - 1)):
        tokens[i + 1] = after[tokens[i], choice]
    return tokens


def samples(tokens: np.ndarray) -> torch.Tensor:
    count = (len(tokens) - 1) // SEQUENCE
    rows = [tokens[i * SEQUENCE : (i + 1) * SEQUENCE + 1] for i in range(count)]
    return torch.from_numpy(np.stack(rows))


@pytest.mark.parametrize(
    ("config", "kind"),
    [(DEEPSEEK_V3, "muon"), (DEEPSEEK_V4, "adamw"), (QWEN3_MOE, "adamw"), (LLAMA, "muon")],
    ids=["v3-muon", "v4-adamw", "qwen3-moe-adamw", "llama-muon"],
)
def test_loss_falls_below_counting_single_tokens(config: dict[str, Any], kind: str) -> None:
    text = walk(STEPS * BATCH * SEQUENCE + 1 + 64 * SEQUENCE)
    shown, held_out = samples(text)[:-64], text[-64 * SEQUENCE - 1 :]
    single = NGram(text[: -len(held_out)], order=1, vocabulary=VOCABULARY).loss(held_out)
    pairs = NGram(text[: -len(held_out)], order=2, vocabulary=VOCABULARY).loss(held_out)
    assert single > 4.4 > 1.3 > pairs  # ln 96 = 4.56, ln 3 = 1.10

    engine = Engine(model_spec(config), Layout(micro_batch=BATCH), device=torch.device("cpu"))
    groups = engine.spec.layers[0].attention.output_groups or 1
    optimizer = Optimizer(engine.held, OptimizerConfig(kind=kind), groups=groups)
    begun = engine.evaluate(samples(held_out))
    for step in range(STEPS):
        tokens = shown[step * BATCH : (step + 1) * BATCH]
        result = engine.step(tokens, sequences=BATCH)
        optimizer.step(0.03, result.gradient_norm)
        update_biases(engine.routers(), engine.loads(), 1e-3)
    ended = engine.evaluate(samples(held_out))
    assert begun == pytest.approx(np.log(VOCABULARY), abs=0.3)
    assert pairs - 0.05 < ended < single - 1.0
