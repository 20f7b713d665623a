"""An architecture at one sequence length, flattened to numbers that arrays can be computed from.

One :class:`ModelTable` holds either one model (every field a scalar, slot fields ``[S]``) or a
batch of N models (fields ``[N]``, slot fields ``[S, N]``, short models padded with weight 0), so
that the same formulas price a million layouts of one model or a thousand published runs of many.

Layers differ in attention and in feed-forward network.  Attention is averaged over the layers
(its slots carry the mean number of occurrences per layer); dense and mixture-of-experts networks
are kept apart, because leading dense layers make pipeline stages unequal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from krzem.model.architecture import (
    Architecture,
    Attention,
    AttentionKind,
    Cut,
    FeedForward,
    Layer,
    Matrix,
)
from krzem.model.parameters import computed_experts
from krzem.model.weights import (
    branches,
    projected_kv,
    recurrence_weights,
    state_branch,
    state_traffic,
    state_widths,
)

Array = Any
"""A float or a numpy array; formulas broadcast."""

REPLICATED, COLUMN, ROW = int(Cut.WHOLE), int(Cut.OUTPUTS), int(Cut.INPUTS)
"""How a weight is cut over tensor-parallel ranks: not at all, by output, by input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTable:
    """Shapes of a model (counts of elements); ``[S]`` marks slot axes."""

    sequence: Array
    layers: Array
    moe_layers: Array
    mtp_layers: Array
    hidden: Array
    vocab: Array
    streams: Array
    """Residual streams (1 without hyper-connections)."""
    tied: Array
    heads: Array
    proj_count: Array
    """[P] occurrences of a projection per mean layer."""
    proj_k: Array
    proj_n: Array
    proj_shard: Array
    core_count: Array
    """[C] occurrences of an attention core per mean layer."""
    core_heads: Array
    core_qk: Array
    core_v: Array
    core_keys: Array
    """[C] mean keys a query reads, causal."""
    core_span: Array
    """[C] keys a query would read without causal masking (what an unfused kernel computes)."""
    core_sparse: Array
    """[C] 1 where keys are gathered one by one (top-k), else 0."""
    q_width: Array
    """Query width of a layer: heads x query-key width (mean over layers)."""
    kv_width: Array
    """Key plus value width that attention reads (latent attention: expanded heads)."""
    kv_stored: Array
    """Key plus value width as projected, before expansion: what context parallelism sends."""
    o_width: Array
    """Width of the attention output: heads x value width."""
    latent_width: Array
    """Low-rank and rotary parts held unsharded beside q, k and v (0 for grouped attention)."""
    mixer_traffic: Array
    """Bytes that recurrent mixers move beside their projections, forward, per token."""
    dense_width: Array
    dense_up: Array
    """Output width of the first dense matrix (twice the width where gated)."""
    experts: Array
    experts_per_token: Array
    expert_hidden: Array
    """Width that routed experts read and write, and that travels to them."""
    expert_width: Array
    expert_up: Array
    shared_width: Array
    shared_up: Array
    expert_groups: Array
    groups_per_token: Array
    attention_split: Array
    """Attention parameters of a mean layer that tensor parallelism cuts."""
    attention_whole: Array
    """Attention parameters of a mean layer held whole on every tensor-parallel rank."""
    dense_params: Array
    """Dense feed-forward parameters of a dense layer (cut by tensor parallelism)."""
    expert_params: Array
    """Routed-expert parameters of a mixture-of-experts layer, all experts."""
    shared_params: Array
    router_params: Array
    norm_params: Array
    """Norms, biases and hyper-connection parameters of a layer (held whole)."""
    embedding_params: Array
    """One vocabulary matrix plus learned positions."""
    head_params: Array
    """The output matrix (0 where tied)."""
    mtp_params: Array
    """The projection of a multi-token-prediction module, beyond its layer."""


_SLOTS = {
    "proj_count": "p", "proj_k": "p", "proj_n": "p", "proj_shard": "p",
    "core_count": "c", "core_heads": "c", "core_qk": "c", "core_v": "c",
    "core_keys": "c", "core_span": "c", "core_sparse": "c",
}  # fmt: skip


Projection = tuple[float, float, float, int]
"""(count, inputs, outputs, cut) of a matrix."""


def projections(attention: Attention, hidden: int) -> list[Projection]:
    """The matrices of an attention module."""
    a = attention
    q, o = a.heads * a.head_dim, a.heads * a.value_dim
    if a.kind is AttentionKind.NONE:
        return []
    if a.kind is AttentionKind.GROUPED:
        read = a.input_width or hidden
        found: list[Projection] = [(1.0, read, q + projected_kv(a), COLUMN), (1.0, o, hidden, ROW)]
    elif a.kind is AttentionKind.LATENT:
        found = _latent(a, hidden, q, o)
    else:
        found = _shared_kv(a, hidden, q, o)
    found = found + _indexer(a, hidden) + _listed(a.matrices)
    return [(float(c), float(k), float(n), s) for c, k, n, s in found]


def _listed(matrices: Iterable[Matrix]) -> list[Projection]:
    return [(float(m.count), float(m.inputs), float(m.outputs), int(m.cut)) for m in matrices]


def _latent(a: Attention, hidden: int, q: int, o: int) -> list[Projection]:
    rank, rope = a.kv_lora_rank or 0, a.rope_dim or 0
    down = rank + rope + (a.q_lora_rank or 0)
    query = (a.q_lora_rank, q) if a.q_lora_rank else (hidden, q)
    return [
        (1, hidden, down, REPLICATED),
        (1, query[0], query[1], COLUMN),
        (1, rank, a.heads * (a.head_dim - rope + a.value_dim), COLUMN),
        (1, o, hidden, ROW),
    ]


def _shared_kv(a: Attention, hidden: int, q: int, o: int) -> list[Projection]:
    groups, rank = a.output_groups or 1, a.output_lora_rank or 0
    found: list[Projection] = [
        (1, hidden, (a.q_lora_rank or 0) + a.head_dim, REPLICATED),
        (1, a.q_lora_rank or hidden, q, COLUMN),
        (groups, o / groups, rank, COLUMN),
        (1, groups * rank, hidden, ROW),
    ]
    if a.compression:
        branches_kept = 2 if a.indexer else 1
        found.append((1, hidden, 2 * branches_kept * a.head_dim, REPLICATED))
    return found


def _indexer(a: Attention, hidden: int) -> list[Projection]:
    i = a.indexer
    if i is None or i.shared:
        return []
    source = a.q_lora_rank or hidden
    keys = 4 * i.head_dim if a.compression else i.head_dim
    return [(1, source, i.heads * i.head_dim, REPLICATED), (1, hidden, keys + i.heads, REPLICATED)]


def _layer_projections(layer: Layer, hidden: int) -> list[Projection]:
    """The matrices of a layer outside its feed-forward network, and what lies beside that."""
    mixer = layer.recurrence.matrices if layer.recurrence else ()
    beside = (*mixer, *layer.matrices, *layer.feed_forward.matrices)
    return projections(layer.attention, hidden) + _listed(beside)


def _cores(layer: Layer, sequence: int) -> list[tuple[float, ...]]:
    """(count, heads, query-key width, value width, keys, span, sparse) of each score product."""
    found = branches(layer.attention, sequence)
    states = state_branch(layer.recurrence, sequence) if layer.recurrence else None
    return [
        (1.0, b.heads, b.qk_dim, b.v_dim, b.keys, b.span, float(b.sparse))
        for b in (*found, *([states] if states else []))
    ]


def _query_width(layer: Layer) -> float:
    return layer.attention.heads * layer.attention.head_dim + state_widths(layer.recurrence)[0]


def _output_width(layer: Layer) -> float:
    return layer.attention.heads * layer.attention.value_dim + state_widths(layer.recurrence)[2]


def _heads(layer: Layer) -> float:
    return float(layer.attention.heads or (layer.recurrence.heads if layer.recurrence else 0))


def _stored_kv(a: Attention) -> float:
    if a.kind is AttentionKind.LATENT:
        return float((a.kv_lora_rank or 0) + (a.rope_dim or 0))
    if a.kind is AttentionKind.SHARED_KV:
        return float(a.head_dim)
    return float(a.kv_heads * (a.head_dim + a.value_dim))


def _read_kv(a: Attention) -> float:
    heads = a.heads if a.kind is AttentionKind.LATENT else a.kv_heads
    return float(heads * (a.head_dim + a.value_dim))


def _latents(a: Attention) -> float:
    if a.kind in (AttentionKind.GROUPED, AttentionKind.NONE):
        return 0.0
    return float((a.q_lora_rank or 0) + (a.kv_lora_rank or 0) + (a.rope_dim or 0))


def _mean_network(arch: Architecture, *, routed: bool) -> _Network | None:
    """The mean of the dense networks, or of the mixtures, over the layers that hold one."""
    networks = ((run.layer.feed_forward, run.count) for run in arch.runs)
    found = [(f, count) for f, count in networks if f.is_moe is routed]
    layers = sum(times for _, times in found)
    if not layers:
        return None

    def mean(value: Callable[[FeedForward], float]) -> float:
        return sum(times * value(f) for f, times in found) / layers

    return _Network(
        width=mean(lambda f: f.width),
        up=mean(lambda f: _up(f, f.width)),
        shared=mean(lambda f: f.shared_width),
        shared_up=mean(lambda f: _up(f, f.shared_width)),
        experts=mean(lambda f: f.experts),
        used=mean(computed_experts) if routed else 1.0,
        weights=mean(lambda f: f.experts * _expert(f, arch.hidden)),
        router=mean(lambda f: (f.experts + f.zero_experts) * (f.router_width or arch.hidden)),
        groups=mean(lambda f: f.expert_groups),
        reach=mean(lambda f: f.groups_per_token),
        hidden=mean(lambda f: f.input_width or arch.hidden),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Network:
    width: float
    up: float
    shared: float
    shared_up: float
    experts: float
    used: float
    weights: float
    router: float
    groups: float
    reach: float
    hidden: float


def _expert(f: FeedForward, hidden: int) -> float:
    """Matrix elements of one routed expert."""
    return (f.input_width or hidden) * (_up(f, f.width) + f.width)


def _up(ff: FeedForward, width: int) -> float:
    return float(2 * width if ff.gated else width)


def _small(layer: Layer, arch: Architecture) -> float:
    """Norms, biases and hyper-connection weights of one layer."""
    h = arch.hidden
    ff, a = layer.feed_forward, layer.attention
    total = float(layer.norms * h * (2 if arch.norm_bias else 1))
    if a.qk_norm:
        total += 2 * a.head_dim
    if a.qkv_bias:
        total += a.heads * a.head_dim + a.kv_heads * (a.head_dim + a.value_dim)
    if a.out_bias:
        total += h
    if ff.bias and not ff.is_moe:
        total += _up(ff, ff.width) + h
    total += a.vectors + ff.vectors + layer.vectors + recurrence_weights(layer.recurrence).vectors
    n = arch.hyper_connections
    if n > 1:
        total += 2 * (n * n + 2 * n) * (n * h + 1)
    return total


def tabulate(arch: Architecture, sequence: int) -> ModelTable:
    """The table of one architecture at ``sequence`` tokens."""
    h = arch.hidden
    kinds = [(layer, times / arch.layers) for layer, times in arch.kinds()]
    proj = _merged(
        (share * c, k, n, s) for a, share in kinds for c, k, n, s in _layer_projections(a, h)
    ) or [(0.0, 1.0, 1.0, REPLICATED)]
    cores = _merged((share * c[0], *c[1:]) for a, share in kinds for c in _cores(a, sequence))
    cores = cores or [(0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0)]
    dense, moe = _mean_network(arch, routed=False), _mean_network(arch, routed=True)
    split = sum(c * k * n for c, k, n, s in proj if s != REPLICATED)
    whole = sum(c * k * n for c, k, n, s in proj if s == REPLICATED)
    p = np.array(proj, dtype=float).T
    c = np.array(cores, dtype=float).T
    layers = arch.layers
    return ModelTable(
        sequence=float(sequence),
        layers=float(layers),
        moe_layers=float(sum(r.count for r in arch.runs if r.layer.feed_forward.is_moe)),
        mtp_layers=float(arch.mtp_layers),
        hidden=float(h),
        vocab=float(arch.vocab),
        streams=float(arch.hyper_connections),
        tied=float(arch.tied_embeddings),
        heads=_mean(kinds, _heads),
        proj_count=p[0], proj_k=p[1], proj_n=p[2], proj_shard=p[3],
        core_count=c[0], core_heads=c[1], core_qk=c[2], core_v=c[3],
        core_keys=c[4], core_span=c[5], core_sparse=c[6],
        q_width=_mean(kinds, _query_width),
        kv_width=_mean(kinds, lambda x: _read_kv(x.attention) + state_widths(x.recurrence)[1]),
        kv_stored=_mean(kinds, lambda x: _stored_kv(x.attention)),
        o_width=_mean(kinds, _output_width),
        latent_width=_mean(kinds, lambda x: _latents(x.attention)),
        mixer_traffic=_mean(kinds, lambda x: state_traffic(x.recurrence)),
        dense_width=dense.width if dense else 0.0,
        dense_up=dense.up if dense else 0.0,
        experts=moe.experts if moe else 0.0,
        experts_per_token=moe.used if moe else 0.0,
        expert_hidden=moe.hidden if moe else float(h),
        expert_width=moe.width if moe else 0.0,
        expert_up=moe.up if moe else 0.0,
        shared_width=moe.shared if moe else 0.0,
        shared_up=moe.shared_up if moe else 0.0,
        expert_groups=moe.groups if moe else 1.0,
        groups_per_token=moe.reach if moe else 1.0,
        attention_split=split,
        attention_whole=whole,
        dense_params=h * (dense.up + dense.width) if dense else 0.0,
        expert_params=moe.weights if moe else 0.0,
        shared_params=h * (moe.shared_up + moe.shared) if moe else 0.0,
        router_params=moe.router if moe else 0.0,
        norm_params=sum(r.count * _small(r.layer, arch) for r in arch.runs) / layers,
        embedding_params=float(
            arch.vocab * arch.embedded + arch.learned_positions * h + arch.outside_tables
        ),
        head_params=0.0 if arch.tied_embeddings else float(arch.vocab * arch.embedded),
        mtp_params=2.0 * h * h,
    )  # fmt: skip


def _merged(slots: Iterable[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Slots of one shape as one slot that occurs as often as all of them."""
    counts: dict[tuple[float, ...], float] = {}
    for count, *shape in slots:
        counts[tuple(shape)] = counts.get(tuple(shape), 0.0) + count
    return [(count, *shape) for shape, count in counts.items()]


def _mean(kinds: list[tuple[Layer, float]], value: Any) -> float:
    return float(sum(share * value(layer) for layer, share in kinds))


def stack(tables: Sequence[ModelTable]) -> ModelTable:
    """N tables as one with a trailing axis of N; slots are padded with count 0."""
    out: dict[str, Array] = {}
    for item in fields(ModelTable):
        values = [getattr(t, item.name) for t in tables]
        out[item.name] = _pad(values) if item.name in _SLOTS else np.array(values, dtype=float)
    return ModelTable(**out)


def _pad(columns: Sequence[Any]) -> np.ndarray:
    depth = max(len(c) for c in columns)
    # Padding repeats the first slot's shape (so no division by zero) with a count of zero.
    out = np.zeros((depth, len(columns)))
    for i, column in enumerate(columns):
        out[: len(column), i] = column
    return out
