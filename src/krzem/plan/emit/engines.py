"""The engines a plan can be emitted for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from types import MappingProxyType

from krzem.engine.values import MIXERS, parts_of
from krzem.errors import LayoutError, ModelError, UnknownNameError
from krzem.hardware.cluster import Cluster
from krzem.layout.layout import Layout
from krzem.model.architecture import Architecture
from krzem.plan.emit import (
    bridge,
    deepspeed,
    fsdp,
    maxtext,
    megatron,
    mindformers,
    mindspeed,
    native,
    primus,
    torchtitan,
)
from krzem.plan.emit.launch import Launch, Request
from krzem.plan.goal import Goal

ENGINES: Mapping[str, Callable[[Request], Launch]] = MappingProxyType(
    {
        "megatron-lm": megatron.launch,
        "mindspeed-llm": mindspeed.launch,
        "torchtitan": torchtitan.launch,
        "primus": primus.launch,
        "megatron-bridge": bridge.launch,
        "maxtext": maxtext.launch,
        "mindformers": mindformers.launch,
        "deepspeed": deepspeed.launch,
        "fsdp": fsdp.launch,
        "krzem": native.launch,
    }
)
"""Emitters by the name of their engine."""


def emit(
    engine: str,
    layout: Layout,
    goal: Goal,
    arch: Architecture,
    cluster: Cluster,
    config: Mapping[str, object] | None = None,
    save_steps: int | None = None,
    switches: Mapping[str, str] = MappingProxyType({}),
) -> Launch:
    """The launch of ``arch`` with ``layout`` on ``engine``.

    ``config`` is the model's ``config.json`` as a dictionary; what it would answer (rotary base,
    norm epsilon, router scaling) is otherwise asked of the user when the script starts.
    ``save_steps`` is the checkpoint interval of the forecast; ``switches`` are the choices that
    were priced, each written as the engine's flag, nothing for those that are absent.

    Raises UnknownNameError for an engine that is not in ``ENGINES``, LayoutError where the engine
    has no way to run the layout and nothing near it, ModelError where it cannot build the model,
    GoalError for a precision, an optimizer or a switch that it lacks.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES, f"Choose from {', '.join(ENGINES)}.")
    ranks = layout.micro_batch * layout.dp
    if goal.global_batch % ranks:
        raise LayoutError(
            f"a global batch of {goal.global_batch} sequences does not divide into micro-batches:"
            f" micro_batch * dp = {layout.micro_batch} * {layout.dp} = {ranks}"
        )
    _check_written(engine, arch)
    request = Request(
        layout=layout, goal=goal, arch=arch, cluster=cluster, config=config or {},
        save_steps=save_steps, switches=switches,
    )  # fmt: skip
    return replace(ENGINES[engine](request), model=arch.name, priced=tuple(_priced(request)))


BUILD_ANY = ("deepspeed", "fsdp")
"""Engines whose emitted loop builds the class of transformers, whatever the layers hold."""
UNWRITTEN = frozenset({*MIXERS.values(), "latent-experts", "output-gate", "chunked-attention"})
"""Parts that some engines run and that no configuration of this package spells out yet."""


def _check_written(engine: str, arch: Architecture) -> None:
    parts = sorted(parts_of(arch) & UNWRITTEN)
    if parts and engine not in BUILD_ANY:
        raise ModelError(
            f"no {engine} configuration is written for {', '.join(parts)}, which {arch.name} "
            f"needs; its step is priced all the same. Emit for {' or '.join(BUILD_ANY)}"
        )


def _priced(request: Request) -> Iterator[tuple[str, str]]:
    """Tokens of a sequence, prediction modules, switches and bytes of states, in one line each."""
    yield "Length", str(request.goal.sequence)
    yield "Prediction modules", str(request.arch.mtp_layers)
    if request.switches:
        yield "Switches", " ".join(f"{name}={choice}" for name, choice in request.switches.items())
    states = request.goal.states
    yield "States", " ".join(f"{f.name}={getattr(states, f.name):g}" for f in fields(states))
