"""What an engine's description offers is written by its emitter, or is on the list of lacks."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from emit_matrix import CONFIG, EVERY, GOAL, cluster, text

import krzem
from krzem.errors import GoalError, LayoutError
from krzem.layout.layout import Precision
from krzem.model import load_model
from krzem.plan.emit import Launch, emit
from krzem.plan.emit.launch import governed, switch_flags
from krzem.plan.goal import Goal

ENGINES = Path(krzem.__file__).parent / "facts" / "engines"
FP8 = replace(GOAL, precision=Precision.FP8)
WAYS = {
    "primus": (
        ("dp=256,ep=8,zero=1", "deepseek-v3", "mi300x:256", FP8),
        ("dp=256,zero=3", "llama-3.1-8b", "mi300x:256", GOAL),
        ("tp=2,dp=128,sp=0,recompute=full", "llama-3.1-8b", "mi300x:256", GOAL),
    ),
    "maxtext": (
        ("dp=256,ep=8,zero=3", "deepseek-v3", "v5p:256", GOAL),
        ("dp=256,ep=8,zero=3", "deepseek-v3", "h100:256", FP8),
        ("dp=1024,zero=3", "llama-3.1-8b", "h100:1024", FP8),
        ("dp=256,zero=1", "llama-3.1-8b", "h100:256", GOAL),
    ),
    "deepspeed": (
        ("dp=64,zero=3", "llama-3.1-8b", "h100:64", GOAL),
        ("dp=64,zero=1", "llama-3.1-8b", "h100:64", GOAL),
    ),
    "fsdp": (
        ("dp=64,zero=3", "llama-3.1-8b", "h100:64", FP8),
        ("dp=64,zero=3,recompute=full", "llama-3.1-8b", "h100:64", GOAL),
    ),
    "mindspeed-llm": (
        ("pp=8,dp=32,ep=8", "deepseek-v3", "910c:256", GOAL),
        ("dp=256", "llama-3.1-8b", "910c:256", FP8),
    ),
    "megatron-bridge": (
        ("dp=256,ep=8", "deepseek-v3", "h100:256", FP8),
        ("tp=2,dp=128,zero=1", "llama-3.1-8b", "h100:256", GOAL),
        ("dp=256,zero=3,ep=8", "qwen3-235b-a22b", "h100:256", GOAL),
    ),
    "mindformers": (
        ("dp=256,ep=8", "deepseek-v3", "910b:256", GOAL),
        ("dp=256,zero=2", "qwen3-8b", "910b:256", GOAL),
    ),
}
"""Layouts, models and chips between which every choice has to be possible."""
LACKS = {
    "primus": {},
    "maxtext": {"overlap-tp=on": "needs a process for every GPU"},
    "deepspeed": {"offload-activations=on": "for its own checkpoints, not the Trainer's",
                  "partition-activations=on": "the same"},
    "fsdp": {"dispatcher=deepep": "no expert parallelism", "dispatcher=hybridep": "the same",
             "fp8-scaling=row": "no key", "routing=balanced": "no key", "overlap-tp=on": "no tp",},
    "mindspeed-llm": {"grad-sync=every": "FSDP2 is not emitted"},
    "megatron-bridge": {},
    "mindformers": {},
}  # fmt: skip
"""Choices that a description has for an engine's other ways to be started, and why not here."""


def launched(engine: str, way: tuple[str, str, str, Goal], switches: dict[str, str]) -> Launch:
    layout, model, chip, goal = way
    return emit(engine, text(layout), goal, load_model(model), cluster(chip), CONFIG, 250, switches)


def offered(engine: str) -> list[tuple[str, str]]:
    document = tomllib.loads((ENGINES / f"{engine}.toml").read_text(encoding="utf-8"))
    return [(name, choice) for name, entry in document["switch"].items()
            for choice in entry["choices"]]  # fmt: skip


def possible(engine: str, switch: str, choice: str) -> bool:
    for way in WAYS[engine]:
        try:
            launched(engine, way, {switch: choice})
        except (GoalError, LayoutError):
            continue
        return True
    return False


@pytest.mark.parametrize("engine", WAYS)
def test_what_is_offered_is_written(engine: str) -> None:
    lacking = {f"{s}={c}" for s, c in offered(engine) if not possible(engine, s, c)}
    assert lacking == set(LACKS[engine])


@pytest.mark.parametrize("engine", WAYS)
def test_unknown_switches_and_choices_are_refused(engine: str) -> None:
    way = WAYS[engine][0]
    with pytest.raises(GoalError, match="no switch sparkle"):
        launched(engine, way, {"sparkle": "on"})
    with pytest.raises(GoalError, match="has no flag for attention=fancy"):
        launched(engine, way, {"attention": "fancy"})


@pytest.mark.parametrize("engine", WAYS)
def test_without_switches_none_is_written(engine: str) -> None:
    for way in WAYS[engine]:
        launch = launched(engine, way, {})
        assert not [f for f in launch.flags if any(f.why.startswith(f"{s} =") for s in EVERY)]


def test_flags_of_a_description() -> None:
    (flag,) = switch_flags("mindspeed-llm", {"dispatcher": "allgather"})
    assert (flag.name, flag.value) == ("--moe-token-dispatcher-type", "allgather")
    assert not list(switch_flags("mindspeed-llm", {}))
    assert "--use-flash-attn" in governed("mindspeed-llm", {"attention": "eager"})
