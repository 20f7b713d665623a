"""What the names in an engine's conditions stand for: layout, model, device, precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from krzem.layout.arrays import CONTEXTS, RECOMPUTES, SCHEDULES, Layouts
from krzem.layout.rules import Problem
from krzem.model.architecture import Architecture, AttentionKind, RecurrenceKind, RouterKind

Array = Any


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
    return {
        **model_values(arch),
        "devices": problem.devices,
        "seq": problem.sequence,
        "global_batch": problem.global_batch,
        "layers": arch.layers,
        "experts": problem.experts,
        "heads": max(problem.heads, default=0),
        "kv_heads": max(problem.kv_heads, default=1),
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
    return {**words, "mtp": arch.mtp_layers, "kinds": kinds, "model_type": arch.model_type}


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
