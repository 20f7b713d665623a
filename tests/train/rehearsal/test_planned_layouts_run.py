"""``krzem plan --engine krzem`` proposes only what ``krzem train`` runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.train.configs import ALL

from krzem.errors import KrzemError, ModelError
from krzem.hardware import read_cluster
from krzem.layout.layout import Layout
from krzem.layout.space import layouts
from krzem.model.catalogue import load_model_config, model_ids
from krzem.plan.price import Pricer
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle
from krzem.train.config import ModelSpec, model_spec
from krzem.train.engine import check_layout
from krzem.train.parallel.pipeline import check_micro_batches
from krzem.train.parallel.stages import parts
from krzem.train.rehearsal.match import find_faults
from krzem.train.rehearsal.rank import Step
from krzem.train.rehearsal.stages import stage_rank, summary_of

pytestmark = pytest.mark.filterwarnings("ignore:.torch.distributed:FutureWarning")
CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"vocab_size": 50257},
    {"num_hidden_layers": 7},
    {"num_hidden_layers": 6},
    {"num_attention_heads": 12, "num_key_value_heads": 6},
)
"""What is odd about some of the models."""


def asked(spec: ModelSpec, devices: int, sequence: int, batch: int, precision: str) -> Asked:
    question = Question(
        model=spec.arch, on=read_cluster(f"h100:{devices}"), sequence=sequence,
        global_batch=batch, precision=precision, optimizer="adamw", engine="krzem",
        step_alone=True,
    )  # fmt: skip
    return settle(question)


def proposed(wish: Asked, draw: random.Random, most: int) -> list[Layout]:
    """Some of each block of layouts that the planner takes into account."""
    pricer, found = Pricer(wish.task), []
    for block in layouts(wish.task.problem, replace(wish.task.space, min_context_tokens=8)):
        allowed = block.take(pricer.allowed(block))
        indices = draw.sample(range(len(allowed)), min(len(allowed), most))
        found += [allowed.at(i) for i in indices]
    return found


def refuse(spec: ModelSpec, layout: Layout, sequence: int, batch: int) -> None:
    """Raise the trainer's reason against ``layout``, if it has one."""
    check_layout(spec, layout)
    parts(len(spec.layers), layout, spec.arch.mtp_layers)
    assert batch % (layout.dp * layout.micro_batch) == 0
    check_micro_batches(layout, batch // (layout.dp * layout.micro_batch), "the batch")
    assert sequence % (layout.cp * layout.tp) == 0


def models(draw: random.Random) -> Iterator[ModelSpec]:
    """Small models of every family, some with an odd size; then published ones."""
    for name, config in sorted(ALL.items()):
        try:
            yield model_spec({**config, **draw.choice(CHANGES)}, name=name)
        except ModelError:
            yield model_spec(config, name=name)
    for name in draw.sample(model_ids(), 24):
        config, title = load_model_config(name)
        try:
            spec = model_spec(config, name=title)
        except ModelError:
            continue
        yield spec


@pytest.mark.parametrize("seed", range(2))
def test_layouts_of_the_planner_are_those_of_the_trainer(seed: int) -> None:
    draw, looked = random.Random(seed), 0
    for spec in models(draw):
        devices = draw.choice((4, 6, 8, 12, 16, 24, 64))
        batch, sequence = devices * draw.choice((1, 2, 3, 4, 6)), draw.choice((64, 96))
        for layout in proposed(asked(spec, devices, sequence, batch, "bf16"), draw, 6):
            try:
                refuse(spec, layout, sequence, batch)
            except KrzemError as error:
                raise AssertionError(f"{spec.arch.name}, {layout}, {batch}: {error}") from error
            looked += 1
    assert looked > 1000


def test_models_that_the_trainer_does_not_build_are_not_planned_for_it() -> None:
    """By the family's description, in which the trainer's own formulas stand."""
    for name in ("minimax-m2", "nemotron-h-8b", "smollm3-3b", "gpt3-175b", "ernie-4.5-21b-a3b"):
        config, title = load_model_config(name)
        with pytest.raises(ModelError):
            model_spec(config, name=title)
        with pytest.raises(ModelError, match="krzem train"):
            settle(
                Question(
                    model=name, on=read_cluster("h100:64"), engine="krzem", step_alone=True,
                    sequence=2048, global_batch=64, tokens=1e12,
                )
            )  # fmt: skip


def rehearse_drawn(seed: int, count: int) -> None:
    """Rehearse ``count`` layouts of small models, each first rank of a stage, and let them meet."""
    draw = random.Random(seed)
    for name in draw.sample(sorted(ALL), count):
        spec, devices = model_spec(ALL[name], name=name), draw.choice((4, 8, 12, 16))
        batch, precision = devices * draw.choice((1, 2, 4)), draw.choice(("bf16", "fp32"))
        layout = draw.choice(proposed(asked(spec, devices, 64, batch, precision), draw, 6))
        step = Step(
            spec=spec, layout=layout, sequence=64, precision=precision,
            micro_batches=batch // (layout.dp * layout.micro_batch),
            documents=draw.random() < 0.3,
        )  # fmt: skip
        found = [summary_of(step, stage_rank(layout, stage)) for stage in range(layout.pp)]
        assert not find_faults({s.rank: s.program for s in found}), (name, str(layout))


def test_a_few_of_them_rehearsed() -> None:
    rehearse_drawn(seed=0, count=3)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 13))
def test_many_of_them_rehearsed(seed: int) -> None:
    rehearse_drawn(seed=seed, count=8)
