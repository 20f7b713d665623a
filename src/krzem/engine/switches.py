"""The switches of training engines, and what the names in their conditions stand for.

Switches have the names that people see (``facts/switches.toml``).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

import krzem.facts
from krzem.errors import InputError, nearest, shorten
from krzem.layout.layout import CONTEXTS, RECOMPUTES, SCHEDULES, Layouts
from krzem.layout.rules import Problem
from krzem.model.architecture import Architecture, AttentionKind, RecurrenceKind, RouterKind

Array = Any

PATH = Path(krzem.facts.__file__).parent / "switches.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One switch; engines say which choices they have and when."""

    name: str
    meaning: str
    choices: tuple[str, ...]
    """The first is the plain one."""
    prefer: tuple[str, ...]
    """What a plan takes where nobody says, best first; empty: the engine's default."""
    matters: str
    """Condition under which it changes the price."""
    effect: tuple[tuple[str, str, float], ...]
    """(choice, number of the design, value)."""

    @property
    def word(self) -> str:
        """The name as conditions write it."""
        return self.name.replace("-", "_")


@cache
def switches() -> Mapping[str, Switch]:
    """All switches by name, in the order in which they are decided."""
    raw = tomllib.loads(PATH.read_text(encoding="utf-8"))
    return MappingProxyType(
        {
            name: Switch(
                name=name,
                meaning=values["meaning"],
                choices=tuple(values["choices"]),
                prefer=tuple(values.get("prefer", ())),
                matters=values["matters"],
                effect=tuple((c, n, float(v)) for c, n, v in values.get("effect", ())),
            )
            for name, values in raw.items()
        }
    )


@cache
def _alone() -> Mapping[str, str]:
    """Choices that only one switch has, and that switch."""
    found: dict[str, list[str]] = {}
    for switch in switches().values():
        for choice in switch.choices:
            found.setdefault(choice, []).append(switch.name)
    return {choice: names[0] for choice, names in found.items() if len(names) == 1}


def parse_switches(on: Iterable[str], off: Iterable[str] = ()) -> dict[str, str]:
    """What ``--with`` and ``--without`` state, by switch.

    ``deepep``, ``overlap-a2a``, ``cuda-graphs=full``; several in one text are separated by commas.

    Raises:
        InputError: an unknown switch or choice, with what there is; the same switch twice.
    """
    stated: dict[str, str] = {}
    for written in _parts(on):
        _put(stated, *_switched_on(written))
    for written in _parts(off):
        switch = _switch(written)
        if len(switch.choices) > 2 and written != switch.name:
            raise InputError(f"--without {written}: write --without {switch.name}")
        _put(stated, switch.name, switch.choices[0])
    return stated


def _parts(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for part in text.split(","):
            if word := part.strip().lower().replace("_", "-"):
                yield word


def _put(stated: dict[str, str], name: str, choice: str) -> None:
    if stated.get(name, choice) != choice:
        raise InputError(
            f"switch {name} is stated twice: {stated[name]} and {choice}; keep one of them"
        )
    stated[name] = choice


def _switched_on(written: str) -> tuple[str, str]:
    name, equals, choice = (piece.strip() for piece in written.partition("="))
    if not equals and name in _alone():
        return _alone()[name], name
    switch = _switch(name)
    if not equals:
        if "on" not in switch.choices:
            raise InputError(
                f"--with {name}: which of {', '.join(switch.choices)}? Write --with"
                f" {name}={switch.choices[-1]}"
            )
        return switch.name, "on"
    if choice not in switch.choices:
        raise InputError(
            f"--with {written}: {name} has no {shorten(choice)!r}. Choose from"
            f" {', '.join(switch.choices)}"
        )
    return switch.name, choice


def _switch(name: str) -> Switch:
    found = switches().get(_alone().get(name, name))
    if found is None:
        known = (*switches(), *(c for c in _alone() if c not in ("on", "off")))
        near = nearest(name, known)
        offer = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(
            f"unknown switch {shorten(name)!r}.{offer} Switches: {', '.join(switches())}"
        )
    return found


# What the names in an engine's conditions stand for: layout, model, device, precision
# ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """An array of words, held as indices into their list; compares with one word at a time."""

    codes: Array
    words: tuple[str, ...]

    def __eq__(self, other: object) -> Any:
        if not isinstance(other, str):
            return NotImplemented
        return self.codes == (self.words.index(other) if other in self.words else -9)

    def __ne__(self, other: object) -> Any:
        return np.logical_not(self == other)

    __hash__ = None  # type: ignore[assignment]


def layout_values(x: Layouts, problem: Problem) -> dict[str, Any]:
    """Names of the layout, arrays ``[N]``."""
    layers = problem.architecture.layers
    return {
        "tp": x.tp, "cp": x.cp, "pp": x.pp, "vpp": x.vpp, "ep": x.ep, "etp": x.etp, "dp": x.dp,
        "mbs": x.micro_batch, "zero": x.zero, "shard": x.shard,
        "sp": (x.sequence_parallel > 0) & (x.tp > 1),
        "first": x.first_stage_layers, "last": x.last_stage_layers, "offload": x.offload_optimizer,
        "rlayers": x.recompute_layers,
        "schedule": Coded(x.schedule, tuple(s.value for s in SCHEDULES)),
        "recompute": Coded(x.recompute, tuple(r.value for r in RECOMPUTES)),
        "cpkind": Coded(x.context_parallel, tuple(c.value for c in CONTEXTS)),
        "micro_batches": problem.global_batch // np.maximum(x.dp * x.micro_batch, 1),
        "uneven": (x.first_stage_layers >= 0) | (x.last_stage_layers >= 0)
        | (layers % np.maximum(x.pp * x.vpp, 1) != 0),
    }  # fmt: skip


def problem_values(problem: Problem) -> dict[str, Any]:
    """Names of model, batch and devices, one value each."""
    arch = problem.architecture
    attention = [layer.attention for layer, _ in arch.kinds()]
    networks = [layer.feed_forward for layer, _ in arch.kinds()]
    return {
        **model_values(arch),
        "devices": problem.devices,
        "seq": problem.sequence,
        "global_batch": problem.global_batch,
        "layers": arch.layers,
        "experts": problem.experts,
        "vocab": arch.vocab,
        "heads": max(problem.heads, default=0),
        "kv_heads": max(problem.kv_heads, default=1),
        "state_groups": min((groups for _, groups in problem.states), default=0),
        "output_groups": min((a.output_groups for a in attention if a.output_groups), default=0),
        "expert_bias": any(f.is_moe and f.bias for f in networks),
    }


PARTS = (
    "gqa", "mla", "shared-kv", "moe", "shared-experts", "mtp", "indexer", "sinks", "window",
    "hyper-connections", "compressed-attention", "hash-layers", "sandwich-norm", "qk-norm",
    "learned-positions", "tied", "bias", "state-space", "delta-attention", "lightning-attention",
    "short-convolution", "recurrence", "chunked-attention", "kv-sharing", "zero-experts",
    "latent-experts", "output-gate", "family-code",
)  # fmt: skip
"""Model parts that an engine may have or lack; ``family-code`` is what no shape says."""
MIXERS = {
    RecurrenceKind.MAMBA: "state-space", RecurrenceKind.MAMBA2: "state-space",
    RecurrenceKind.DELTA: "delta-attention", RecurrenceKind.KEY_DELTA: "delta-attention",
    RecurrenceKind.LIGHTNING: "lightning-attention",
    RecurrenceKind.CONVOLUTION: "short-convolution",
    RecurrenceKind.MLSTM: "recurrence", RecurrenceKind.RGLRU: "recurrence",
    RecurrenceKind.WKV: "recurrence",
}  # fmt: skip
"""The part that a recurrent mixer is."""


def model_values(arch: Architecture) -> dict[str, Any]:
    """Which parts a model has (``moe``, ``mla``, …: true or false); ``mtp`` counts modules."""
    found = parts_of(arch)
    words = {name.replace("-", "_"): name in found for name in PARTS}
    kinds = len(arch.kinds())
    shared = any(i.shared for run in arch.runs if (i := run.layer.attention.indexer))
    return {
        **words, "mtp": arch.mtp_layers, "kinds": kinds, "model_type": arch.model_type,
        "indexer_shared": shared,
    }  # fmt: skip


def parts_of(arch: Architecture) -> frozenset[str]:
    """The parts of :data:`PARTS` that ``arch`` has."""
    layers = [run.layer for run in arch.runs]
    attention = [layer.attention for layer in layers]
    blocks = [layer.feed_forward for layer in layers]
    kinds = {a.kind for a in attention}
    has = {
        "gqa": AttentionKind.GROUPED in kinds,
        "mla": AttentionKind.LATENT in kinds,
        "shared-kv": AttentionKind.SHARED_KV in kinds,
        "moe": arch.is_moe,
        "shared-experts": any(f.shared_width for f in blocks),
        "mtp": arch.mtp_layers > 0,
        "indexer": any(a.indexer for a in attention),
        "sinks": any(a.sinks for a in attention),
        "window": any(a.window for a in attention),
        "hyper-connections": arch.hyper_connections > 1,
        "compressed-attention": any(a.compression for a in attention),
        "hash-layers": any(f.router is RouterKind.HASH for f in blocks),
        "sandwich-norm": any(layer.norms > 2 for layer in layers),
        "qk-norm": any(a.qk_norm for a in attention),
        "learned-positions": arch.learned_positions > 0,
        "tied": arch.tied_embeddings,
        "bias": any(a.out_bias for a in attention) or any(f.bias for f in blocks),
        "chunked-attention": any(a.chunk for a in attention),
        "kv-sharing": any(a.shares_kv for a in attention),
        "zero-experts": any(f.zero_experts for f in blocks),
        "latent-experts": any(f.input_width for f in blocks),
        "output-gate": any(a.matrices for a in attention),
        "family-code": arch.particular,
    }
    found = frozenset(name for name, present in has.items() if present)
    return found | {MIXERS[r.kind] for r in arch.recurrences}
