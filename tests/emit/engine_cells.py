"""What the engines' own parsers are to judge: models, cards, precisions and layouts."""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np
from tests.plan.emit.emit_cases import cluster
from tests.some import WHOLE

from krzem.engine.setup import Setup, choose
from krzem.engine.switches import layout_values, problem_values
from krzem.errors import KrzemError, ModelError
from krzem.layout.layout import (
    Layout,
    Optimizer,
    Precision,
    Recompute,
    StateBytes,
    pack,
    parse_layout,
)
from krzem.layout.rules import Problem
from krzem.layout.space import Space, layouts
from krzem.model import load_model, model_ids
from krzem.plan.emit import Launch, emit, render
from krzem.plan.goal import Goal, config_of

DEVICES, SEQUENCE, BATCH = 256, 4096, 1024
PER_MODEL = MappingProxyType({"megatron-lm": 8 if WHOLE else 4, "torchtitan": 5 if WHOLE else 3})
"""Layouts of a model that are tried on an engine."""


@dataclass(frozen=True, slots=True)
class Card:
    """What an engine asks of a card."""

    family: str
    capability: tuple[int, int]
    precisions: tuple[Precision, ...]


CARDS = (
    Card("nvidia-hopper", (9, 0), (Precision.BF16, Precision.FP8, Precision.FP8_BLOCK)),
    Card("nvidia-blackwell", (10, 0), (Precision.MXFP8, Precision.BF16, Precision.NVFP4)),
    Card("nvidia-ampere", (8, 0), (Precision.BF16, Precision.FP16)),
    Card("amd-cdna3", (9, 4), (Precision.BF16, Precision.FP8)),
)
PRECISIONS = MappingProxyType({
    "megatron-lm": tuple(Precision),
    "torchtitan": (Precision.BF16, Precision.FP8, Precision.MXFP8, Precision.FP32),
})  # fmt: skip
"""What an engine computes in."""
PUBLISHED = MappingProxyType({
    "megatron-lm": (
        ("llama-3.1-405b", "tp=8,pp=16,vpp=8,dp=2,schedule=interleaved"),
        ("qwen3-235b-a22b", "pp=32,vpp=3,dp=8,ep=8,schedule=interleaved"),
    ),
    "torchtitan": (("qwen3-235b-a22b", "pp=32,vpp=3,dp=8,ep=8,schedule=interleaved"),),
})  # fmt: skip
"""Layouts of published recipes whose end stages hold the embedding or the loss alone."""
OPTIMIZERS = (
    (Optimizer.ADAMW, StateBytes()),
    (Optimizer.ADAMW, StateBytes(gradient=2, moments=4)),
    (Optimizer.MUON, StateBytes(moments=4)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One launch file."""

    engine: str
    model: str
    card: Card
    goal: Goal
    layout: Layout
    switches: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        goal = f"{self.card.family} {self.goal.precision} {self.goal.optimizer}"
        switches = " ".join(f"{name}={choice}" for name, choice in self.switches)
        return f"{self.engine} {self.model} {goal} {self.layout} {switches}"

    def launch(self) -> Launch:
        """The launch; raises what the emitter refuses."""
        arch = load_model(self.model)
        where = cluster(self.layout.devices, self.card.family)
        return emit(self.engine, self.layout, self.goal, arch, where,
                    config_of(self.model, arch), 250, dict(self.switches))  # fmt: skip


@cache
def cells(engine: str) -> tuple[Cell, ...]:
    """All cells of an engine that its emitter accepts, the same every time."""
    drawn = (cell for number, model in enumerate(model_ids())
             for cell in _of_model(engine, model, number))  # fmt: skip
    goal = Goal(tokens=1e12, sequence=SEQUENCE, global_batch=BATCH)
    known = (Cell(engine=engine, model=model, card=CARDS[0], goal=goal, layout=parse_layout(text))
             for model, text in PUBLISHED[engine])  # fmt: skip
    return (*drawn, *known)


def _of_model(engine: str, model: str, number: int) -> Iterator[Cell]:
    """Cells whose layouts between them show every feature, and most pairs, soonest."""
    offered = dict(_offered(model))
    seen = place = 0
    while offered and place < PER_MODEL[engine]:
        layout = max(offered, key=lambda x: (offered[x] & ~seen).bit_count())
        shown = offered.pop(layout)
        cell = Cell(engine=engine, model=model, card=CARDS[(number + place) % len(CARDS)],
                    goal=_goal(engine, number + place, layout), layout=layout)  # fmt: skip
        if place % 2:
            cell = replace(cell, switches=_switches(cell))
        try:
            cell.launch()
        except ModelError:
            return
        except KrzemError:
            continue
        yield cell
        seen |= shown
        place += 1


def _switches(cell: Cell) -> tuple[tuple[str, str], ...]:
    """The switches that a plan would choose for this cell, one of them by lot."""
    problem = _problem(cell.model)
    goal = cell.goal
    setup = Setup(engine=cell.engine, year=2026.9, precision=goal.precision,
                  optimizer=goal.optimizer, states=goal.states)  # fmt: skip
    values = {**problem_values(problem), **layout_values(pack([cell.layout]), problem),
              "family": cell.card.family, "stack": "cuda", "nodes": DEVICES // 8, "node": 8,
              "domain": 8}  # fmt: skip
    if cell.engine == "torchtitan":  # the other dispatchers ask for packages that need a card
        setup = replace(setup, stated=(("dispatcher", "alltoall"),))
    lot = random.Random(str(cell))
    name, own = lot.choice(sorted(setup.description.switches.items()))
    stated = replace(setup, stated=((name, lot.choice(own.choices)), *setup.stated))
    chosen = choose(stated, values, 1)
    return (chosen if np.all(chosen.allowed) else choose(setup, values, 1)).at(0)


def _problem(model: str) -> Problem:
    return Problem(architecture=load_model(model), devices=DEVICES, sequence=SEQUENCE,
                   global_batch=BATCH)  # fmt: skip


def _goal(engine: str, step: int, layout: Layout) -> Goal:
    able = [p for p in CARDS[step % len(CARDS)].precisions if p in PRECISIONS[engine]]
    optimizer, states = OPTIMIZERS[step // 2 % len(OPTIMIZERS)]
    if optimizer is Optimizer.MUON and (engine == "torchtitan" or layout.zero >= 2):
        optimizer, states = OPTIMIZERS[0]
    return Goal(
        tokens=1e12, sequence=SEQUENCE, global_batch=BATCH, optimizer=optimizer, states=states,
        precision=able[step // len(CARDS) % len(able)],
    )  # fmt: skip


@cache
def _offered(model: str) -> tuple[tuple[Layout, int], ...]:
    """Legal layouts drawn from all blocks of the space, with what they show."""
    problem = _problem(model)
    space = Space(max_tp=8, max_cp=4, max_micro_batch=2, zero=(0, 1, 2, 3))
    draw = random.Random(model)
    found = [block.at(draw.randrange(len(block)))
             for block in layouts(problem, space) for _ in range(6)]  # fmt: skip
    drawn = dict.fromkeys(replace(x, offload_optimizer=draw.random() < 0.5) for x in found)
    return tuple((layout, features(layout)) for layout in drawn)


def features(x: Layout) -> int:
    """What a layout shows in every respect, and in each two: a bit for each."""
    rank_layers = "some" if x.recompute_layers is not None else "all"
    alone = (
        f"schedule={x.schedule if x.pp > 1 else None}",
        f"zero={x.zero}",
        f"recompute={x.recompute} {rank_layers if x.recompute is Recompute.FULL else ''}",
        f"context={x.context_parallel if x.cp > 1 else None}",
        f"ends={x.first_stage_layers is not None}{x.last_stage_layers is not None}",
        f"chunks={min(x.vpp, 3)}",
        f"tp={min(x.tp, 2)}",
        f"experts={min(x.ep, 2)} {min(x.etp, 2)}",
        f"micro={min(x.micro_batch, 2)}",
        f"hybrid={x.shard > 0}",
        f"offload={x.offload_optimizer}",
    )
    shown = (*alone, *combinations(alone, 2))
    return sum(1 << _BITS.setdefault(one, len(_BITS)) for one in shown)


_BITS: dict[object, int] = {}


ANSWERS = {
    "AUX_LOSS": "0.001", "CHECKPOINTS": "/data/run 1", "DATA": "/data/tokens", "DATASET": "c4",
    "LR": "3e-4", "NORM_EPSILON": "1e-5", "RDZV": "node0:29500", "ROTARY_BASE": "10000",
    "ROUTER_SCALE": "2.5", "SAVE_STEPS": "250", "TOKENIZER": "/data/tokenizer",
}  # fmt: skip
"""What a user might set."""


def answered(text: str) -> str:
    """A word of a script with what it asks for filled in."""
    return re.sub(r"\$\{([A-Z_]+):\?[^}]*\}", lambda hit: ANSWERS[hit[1]], text)


def words(script: str) -> list[str]:
    """The array ``args`` of a rendered script, as bash would hand it over."""
    body = script.partition("\nargs=(\n")[2].partition("\n)\n")[0]
    return [answered(word) for word in shlex.split(body, comments=True)]


def environment(script: str) -> dict[str, str]:
    """The variables a rendered script exports."""
    lines = [line for line in script.splitlines() if line.startswith("export ")]
    pairs = (shlex.split(line, comments=True)[1].partition("=") for line in lines)
    return {name: answered(value) for name, _, value in pairs}


def job(cell: Cell, launch: Launch) -> dict[str, Any]:
    """What the engine's program is told."""
    script = render(launch)
    told: dict[str, Any] = {
        "world": cell.layout.devices,
        "capability": cell.card.capability,
        "brand": cell.card.family.partition("-")[0],
        "environment": environment(script),
    }
    if cell.engine == "torchtitan":
        told["recipe"] = script.partition("<<'PYTHON'\n")[2].partition("\nPYTHON\n")[0]
        told["args"] = shlex.split(launch.command.partition("torchtitan.train")[2])
    else:
        told["args"] = words(script)
    return told
