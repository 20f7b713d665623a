"""Which pipeline schedules an engine can run, with the place that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from krzem.errors import InputError, nearest, shorten
from krzem.layout.layout import ContextParallel, Schedule

_ONE, _MANY = Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED
_H1, _V = Schedule.ZB_H1, Schedule.ZB_V
_DUAL, _DUAL_V = Schedule.DUALPIPE, Schedule.DUALPIPE_V


@dataclass(frozen=True, slots=True)
class Support:
    """The schedules of one engine."""

    schedules: tuple[Schedule, ...]
    source: str


_MEGATRON = Support((_ONE, _MANY), "megatron/core/pipeline_parallel/schedules.py")

SUPPORT: Mapping[str, Support] = MappingProxyType(
    {
        "megatron-core": _MEGATRON,
        "megatron-lm": _MEGATRON,
        "simumax": _MEGATRON,
        "primus": Support((_ONE, _MANY), "its Megatron backend, as Megatron-Core"),
        "megatron-deepspeed": Support((_ONE,), "DeepSpeed docs, pipeline parallelism"),
        "gaudi": Support((_ONE,), "Megatron-DeepSpeed, as DeepSpeed"),
        "neuron": Support((_ONE, _MANY), "NeuronX Distributed docs, pipeline parallelism"),
        "mindspeed": Support((_ONE, _MANY, _DUAL_V), "MindSpeed docs/features (DualPipeV)"),
        "mindspore": Support((_ONE, _MANY, _V), "AutoParallel.pipeline(scheduler=...)"),
        "torchtitan": Support((_ONE, _MANY, _V, _DUAL_V), "torch.distributed.pipelining.schedules"),
        "fsdp": Support((_ONE,), "no pipeline of its own"),
        "xla": Support((_ONE,), "no schedule of its own: stages are scanned in order"),
        "xla-gpu": Support((_ONE,), "no schedule of its own: stages are scanned in order"),
        "deepseek": Support((_ONE, _H1, _DUAL, _DUAL_V), "arXiv 2412.19437 section 3.2.1"),
        "other": Support((_ONE, _MANY), "what most engines have"),
    }
)
"""By the engines of ``facts/engines.toml``."""

ALIASES: Mapping[str, str] = MappingProxyType(
    {"krzem": "torchtitan", "megatron": "megatron-core", "mindspeed-llm": "mindspeed"}
)
"""Other names of an engine; krzem's own trainer stands on the same PyTorch parts as torchtitan."""


def schedules_of(engine: str) -> tuple[Schedule, ...]:
    """What ``engine`` can run; an engine that the table lacks is taken as ``other``."""
    return SUPPORT.get(engine, SUPPORT["other"]).schedules


def contexts_of(engine: str | None) -> tuple[ContextParallel, ...]:
    """The forms of context parallelism to search: krzem's own trainer has the all-to-all form."""
    own = engine is not None and engine.strip().lower() == "krzem"
    return (ContextParallel.ALL_TO_ALL,) if own else tuple(ContextParallel)


def parse_schedules(text: str) -> tuple[Schedule, ...]:
    """``all``, or names separated by commas (``1f1b,interleaved``).

    Raises InputError with the known names.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return tuple(Schedule)
    known = [schedule.value for schedule in Schedule]
    wrong = next((name for name in names if name not in known), None)
    if wrong is not None or not names:
        near = nearest(wrong or "", known)
        offer = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(
            f"unknown schedule {shorten(wrong or text)!r}.{offer} Known: {', '.join(known)},"
            " or all."
        )
    return tuple(dict.fromkeys(Schedule(name) for name in names))
