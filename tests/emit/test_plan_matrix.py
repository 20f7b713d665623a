"""Every model on every emitter's usual chips: files are written, or refused before any search."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
from emit_matrix import own_code
from tests.some import some

from krzem.errors import GoalError, KrzemError, ModelError
from krzem.layout.layout import Layout, pack
from krzem.layout.space import layouts
from krzem.model import load_model, model_ids
from krzem.plan.answer import check_emission, explanation_of, plan_of, script_of
from krzem.plan.emit import ENGINES, emit
from krzem.plan.price import Pricer
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle

CHIPS = {
    "megatron-lm": ("h100", "b200"),
    "mindspeed-llm": ("910b", "910c"),
    "torchtitan": ("h100",),
    "primus": ("mi300x", "mi355x"),
    "megatron-bridge": ("h100", "gb200"),
    "maxtext": ("v5p", "h100"),
    "deepspeed": ("a100", "h100"),
    "fsdp": ("a100", "h100"),
    "mindformers": ("910b",),
    "krzem": ("h100",),
}
"""Chips that each engine is mostly run on."""
DEVICES, BATCH = 256, 1024
PER_CELL = 5
"""Layouts of the searched space that a cell emits."""
MODELS = [model for model in model_ids() if not own_code(model)]
"""Models whose layers an engine's arguments may say."""
SEEDS = ("llama-3.1", "qwen3-", "deepseek-v3", "kimi-k2", "glm-4.5")
PLACE = re.compile(r"\w/\w|\w\.(py|yml|yaml|toml|sh|md|csv)\b")
"""A place in an engine's source."""


@cache
def asked(emitter: str, chip: str, model: str) -> Asked:
    """The settled question of a cell; raises what refuses it."""
    learned = load_model(model).learned_positions
    engine = emitter if emitter == "krzem" else None
    question = Question(
        model=model, on=f"{chip}:{DEVICES}", tokens="1T", emits=emitter, global_batch=BATCH,
        sequence=min(4096, learned or 4096), engine=engine,
    )  # fmt: skip
    found = settle(question)
    check_emission(found, emitter)
    return found


def tried_on(emitter: str, chip: str, model: str) -> Asked | None:
    """The settled question, or None where it is refused with a place in the engine's source."""
    refusal: KrzemError
    try:
        return asked(emitter, chip, model)
    except (GoalError, ModelError) as error:
        refusal = error
    assert refusal.exit_code == 2
    assert PLACE.search(str(refusal)), refusal
    return None


def searched(found: Asked, count: int) -> Iterator[Layout]:
    """Layouts that a search would price, drawn over the whole space, the same every time."""
    pricer, draw = Pricer(found.task), random.Random(found.task.architecture.name)
    space = replace(found.space, max_micro_batch=1, max_cp=4, max_pp=64)
    drawn: list[Layout] = []
    for block in layouts(found.task.problem, space):
        allowed = block.take(pricer.allowed(block, found.space.limits))
        if len(allowed):
            drawn.append(allowed.at(draw.randrange(len(allowed))))
    yield from draw.sample(drawn, min(count, len(drawn)))


@pytest.mark.parametrize("emitter", ENGINES)
def test_what_is_searched_is_emitted(emitter: str) -> None:
    written = refused = 0
    for number, chip in enumerate(CHIPS[emitter]):
        for model in some(MODELS, 2, number):
            found = tried_on(emitter, chip, model)
            if found is None:
                refused += 1
                continue
            task, pricer, tried = found.task, Pricer(found.task), 0
            for layout in searched(found, PER_CELL):
                switches = dict(pricer.choose(pack([layout])).at(0))
                emit(emitter, layout, task.goal, task.architecture, task.cluster, found.config,
                     250, switches)  # fmt: skip
                tried += 1
            assert tried, (emitter, chip, model)
            written += 1
    assert written > refused / 4, (written, refused)


@pytest.mark.parametrize("emitter", ["megatron-lm", "mindspeed-llm"])
def test_the_great_models_are_emitted(emitter: str) -> None:
    for model in MODELS:
        if model.startswith(SEEDS):
            for chip in CHIPS[emitter]:
                asked(emitter, chip, model)


def test_torchtitan_writes_the_models_that_it_ships() -> None:
    for model in model_ids():
        if re.match(r"llama-3\.1|qwen3-[\d.]+b|gpt-oss|deepseek-v3$", model):
            asked("torchtitan", "h100", model)


@pytest.mark.parametrize("emitter", ["mindspeed-llm", "primus"])
@pytest.mark.parametrize("model", ["deepseek-v4-flash", "deepseek-v4-pro"])
def test_v4_is_emitted_where_it_is_trained(emitter: str, model: str) -> None:
    for chip in CHIPS[emitter]:
        asked(emitter, chip, model)


PLANS: tuple[tuple[str, str, str, dict[str, str | int]], ...] = (
    # Once the best layout of each of these was refused by the emitter.
    ("deepseek-v3.2", "h800:2048", "megatron-lm", {}),
    ("kimi-k2", "h800:2048", "megatron-lm", {}),
    ("glm-4.5", "h20:1024", "megatron-lm", {}),
    ("llama-3.1-405b", "h100:2048", "torchtitan", {"engine": "torchtitan"}),
    ("deepseek-v3", "h100:1024", "torchtitan", {"engine": "torchtitan", "precision": "bf16"}),
    ("deepseek-v3", "910c:2048", "mindspeed-llm", {}),
    ("deepseek-v4-pro", "huawei-ascend-910c:8192 cards", "mindspeed-llm", {}),
    ("qwen3-235b-a22b", "910b:1024", "mindspeed-llm", {"global_batch": 4096}),
    ("llama-3.1-8b", "910b:64", "mindspeed-llm", {"global_batch": 512}),
)


@pytest.mark.parametrize(("model", "on", "emitter", "more"), PLANS)
def test_a_plan_ends_in_its_script(
    model: str, on: str, emitter: str, more: dict[str, str | int]
) -> None:
    found = settle(Question(model=model, on=on, emits=emitter, **more))  # type: ignore[arg-type]
    check_emission(found, emitter)
    found = replace(found, space=replace(found.space, max_micro_batch=1, max_cp=2, max_tp=8))
    answer = plan_of(found, alternatives=0)
    script = script_of(found, answer, emitter)
    assert script.startswith("#!/usr/bin/env bash")
    if "overlap-a2a" in dict(answer.best.switches) and emitter == "megatron-lm":
        on_ = dict(answer.best.switches)["overlap-a2a"] == "on"
        assert ("--overlap-moe-expert-parallel-comm" in script) == on_


@pytest.mark.parametrize(
    ("model", "on", "emitter"),
    [("deepseek-v4-flash", "b200:1024", "megatron-lm"),
     ("pangu-ultra-moe-718b", "910b:6144", "mindspeed-llm")],
)  # fmt: skip
def test_what_no_argument_says_is_refused_before_the_search(
    model: str, on: str, emitter: str
) -> None:
    question = Question(model=model, on=on, emits=emitter, sequence="4k", global_batch=8192)
    with pytest.raises(KrzemError) as caught:
        settle(question)
    assert caught.value.exit_code == 2
    assert PLACE.search(str(caught.value))


def test_embedding_and_loss_may_fill_a_chunk() -> None:
    for model, on, batch, layout in (
        ("llama-3.1-405b", "h100:1024", 512, "tp=4,pp=16,vpp=8,mbs=1,schedule=interleaved"),
        ("qwen3-235b-a22b", "h800:256", 2048,
         "tp=2,pp=32,vpp=3,ep=8,mbs=1,zero=1,recompute=modules,schedule=interleaved"),
    ):  # fmt: skip
        question = Question(
            model=model, on=on, sequence="4k", global_batch=batch, tokens="1T", emits="megatron-lm",
        )  # fmt: skip
        found = settle(question)
        answer = explanation_of(found, layout)
        assert not answer.refused
        assert script_of(found, answer, "megatron-lm")


def test_plain_fsdp_cuts_no_matrices_or_experts() -> None:
    found = settle(
        Question(model="llama-3.1-70b", on="h100:256", global_batch=256, tokens="1T", engine="fsdp",
                 emits="fsdp")
    )  # fmt: skip
    for layout in searched(found, 40):
        assert layout.tp == layout.pp == layout.ep == 1
