"""What is emitted is read back as what was planned, for every emitter: one layout, one price."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from krzem.engine.setup import Chosen, choose
from krzem.engine.switches import layout_values
from krzem.errors import GoalError, ModelError
from krzem.jobs.priced import price_all
from krzem.jobs.question import Posed, pose
from krzem.jobs.reading import read_job
from krzem.layout.layout import Layout, Recompute, pack
from krzem.layout.space import layouts
from krzem.model.parameters import count
from krzem.plan.answer import check_emission
from krzem.plan.emit import ENGINES, emit, render
from krzem.plan.price import Pricer
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle

CHIPS = {
    "megatron-lm": "h100", "mindspeed-llm": "910c", "torchtitan": "b200", "primus": "mi355x",
    "megatron-bridge": "gb200", "maxtext": "v5p", "deepspeed": "a100", "fsdp": "h100",
    "mindformers": "910b", "krzem": "h100",
}  # fmt: skip
MODELS = (
    "megatron-530b", "llama-3.1-8b", "llama-3.1-405b", "qwen3-1.7b", "qwen3-30b-a3b",
    "mixtral-8x7b", "deepseek-v3", "deepseek-v3.2", "deepseek-v4-flash", "kimi-k2", "glm-4.5",
    "gpt-oss-20b",
)  # fmt: skip
DEVICES, PER_MODEL = 512, 3
Cell = tuple[Layout, Mapping[str, str]]


@cache
def asked(emitter: str, model: str) -> Asked | None:
    """The settled question; None where this engine's files cannot have the model."""
    question = Question(
        model=model, on=f"{CHIPS[emitter]}:{DEVICES}", emits=emitter, tokens="1T", sequence="2k",
        global_batch=1024, engine="krzem" if emitter == "krzem" else None,
    )  # fmt: skip
    try:
        found = settle(question)
        check_emission(found, emitter)
    except (GoalError, ModelError):
        return None
    return found


def cells(found: Asked) -> Iterator[Cell]:
    """Layouts that would be searched, with the switches chosen for them; one of them by lot."""
    pricer, draw = Pricer(found.task), random.Random(found.task.architecture.name)
    drawn = []
    for block in layouts(found.task.problem, replace(found.space, max_micro_batch=2, max_cp=4)):
        fine = block.take(pricer.allowed(block, ()))
        if len(fine):
            drawn.append(fine.at(draw.randrange(len(fine))))
    for layout in draw.sample(drawn, min(PER_MODEL, len(drawn))):
        values = {**pricer.values, **layout_values(pack([layout]), found.task.problem)}
        name, own = draw.choice(sorted(pricer.setup.description.switches.items()))
        stated = replace(pricer.setup, stated=((name, draw.choice(own.choices)),))
        chosen = choose(stated, values, 1)
        if not np.all(chosen.allowed):
            chosen = choose(pricer.setup, values, 1)
        yield layout, dict(chosen.at(0))


def read_back(found: Asked, emitter: str, cell: Cell) -> Posed:
    layout, switches = cell
    task = found.task
    launch = emit(emitter, layout, task.goal, task.architecture, task.cluster, found.config, 250,
                  switches)  # fmt: skip
    name = "plan.toml" if emitter == "krzem" else "train.sh"
    job = read_job(text={name: render(launch)})
    assert job.engine == emitter
    assert not job.faults
    return pose(job, on=f"{CHIPS[emitter]}:{DEVICES}", texts={name: render(launch)})


def alike(layout: Layout, found: Asked) -> Layout:
    """A layout without what does nothing in it."""
    halves = found.task.description.runs.selective == "half-layers"
    most = -(-found.task.architecture.layers // layout.pp)
    if halves and layout.recompute is Recompute.MODULES:
        half = max(1, round(most / 2))
        layout = replace(layout, recompute=Recompute.FULL, recompute_layers=half)
    return replace(
        layout,
        sequence_parallel=layout.sequence_parallel and layout.tp > 1,
        context_parallel=layout.context_parallel if layout.cp > 1 else Layout().context_parallel,
        etp=layout.etp if found.task.architecture.is_moe else 1,
    )


def differences(found: Asked, posed: Posed, cell: Cell) -> Iterator[str]:
    layout, switches = cell
    task, other = found.task, posed.task
    if alike(posed.layout, found) != alike(layout, found):
        yield f"layout {posed.layout}"
    for name in ("sequence", "global_batch", "precision", "optimizer", "states"):
        if getattr(other.goal, name) != getattr(task.goal, name):
            yield f"{name} {getattr(other.goal, name)}"
    ours, theirs = count(task.architecture), count(other.architecture)
    if (ours.total, ours.active) != (theirs.total, theirs.active):
        yield f"parameters {theirs.total} for {ours.total}"
    pricer = Pricer(task)
    chosen = Chosen((tuple(switches.items()),), 0, True)
    seconds = float(np.ravel(pricer.step(pack([layout]), chosen).total)[0])
    (priced,) = price_all(posed.pricer(), [(posed.layout, other.setup)])
    read = {n: c for n, c in priced.choices if n in switches}
    if read != dict(switches):
        yield f"switches {read} for {dict(switches)}"
    if priced.unknown:
        yield f"unknown {priced.unknown}"
    if priced.seconds != pytest.approx(seconds, rel=1e-9):
        yield f"{priced.seconds} s for {seconds}"


@pytest.mark.parametrize("emitter", ENGINES)
def test_the_plan_comes_back(emitter: str) -> None:
    tried, wrong = 0, []
    for model in MODELS:
        found = asked(emitter, model)
        if found is None:
            continue
        for cell in cells(found):
            tried += 1
            posed = read_back(found, emitter, cell)
            if apart := list(differences(found, posed, cell)):
                wrong.append((model, str(cell[0]), apart))
    assert not wrong
    assert tried >= 6
