"""Counts parameters from shapes, module by module.

Conventions, the same for every model:

* Only trained weights count: balancing biases of routers, hash tables and rotary caches do not.
* ``total`` and ``active`` leave the multi-token-prediction modules out; ``mtp`` holds them.
* ``active`` is what one token uses: everything but the experts it is not routed to.  The input
  embedding is in it, whole, although a token reads one row; ``active_of`` takes it out for
  sources that count otherwise (DeepSeek, GPT-OSS).
* A tied head has no weights of its own: ``head`` is 0 and the matrix counts as ``embedding``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields

from krzem.model.architecture import (
    Architecture,
    Attention,
    AttentionKind,
    FeedForward,
    Indexer,
    Layer,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParameters:
    """Trained weights of one layer, by module; ``hyper`` is its two hyper-connections."""

    attention: int
    """Projections, their biases and inner norms, sinks, compressor and indexer."""
    indexer: int
    """The part of ``attention`` that picks keys."""
    dense: int
    routed_experts: int
    shared_experts: int
    router: int
    norms: int
    hyper: int
    idle_experts: int
    """The part of ``routed_experts`` that one token does not use."""

    @property
    def total(self) -> int:
        """All weights of the layer."""
        return (
            self.attention
            + self.dense
            + self.routed_experts
            + self.shared_experts
            + self.router
            + self.norms
            + self.hyper
        )

    @property
    def active(self) -> int:
        """The weights that one token uses."""
        return self.total - self.idle_experts


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Trained weights of a model by module; all but ``mtp`` and ``mtp_active`` add to ``total``."""

    embedding: int
    """Token table, and position table where positions are learned."""
    attention: int
    """All attention weights but the indexers."""
    indexer: int
    dense_mlp: int
    routed_experts: int
    shared_experts: int
    router: int
    norms: int
    hyper: int
    head: int
    """The output matrix; 0 where it is the embedding (tied)."""
    mtp: int
    """Multi-token-prediction modules, without the embedding and head they share."""
    total: int
    active: int
    mtp_active: int

    def total_of(self, parts: Collection[str]) -> int:
        """``total`` under another convention: ``parts`` of {"embedding", "head", "mtp"} count."""
        return self._of(self.total, self.mtp, parts)

    def active_of(self, parts: Collection[str]) -> int:
        """``active`` under another convention: ``parts`` of {"embedding", "head", "mtp"} count."""
        return self._of(self.active, self.mtp_active, parts)

    def by_module(self) -> dict[str, int]:
        """The modules that add to ``total``, in the order of a forward pass."""
        sums = {"mtp", "total", "active", "mtp_active"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in sums}

    def _of(self, all_in: int, mtp: int, parts: Collection[str]) -> int:
        shared = "head" in parts and not self.head
        embedding = 0 if "embedding" in parts or shared else self.embedding
        return (
            all_in
            - embedding
            - (0 if "head" in parts else self.head)
            + (mtp if "mtp" in parts else 0)
        )


def count(arch: Architecture) -> ParameterCount:
    """The trained weights of ``arch``, by module."""
    kinds = [(layer_parameters(layer, arch), times) for layer, times in arch.kinds()]
    norm = norm_parameters(arch)
    by_layer = {
        name: sum(getattr(layer, name) * times for layer, times in kinds)
        for name in (f.name for f in fields(LayerParameters))
    }
    embedding = (arch.vocab + arch.learned_positions) * arch.hidden
    head = 0 if arch.tied_embeddings else arch.vocab * arch.hidden
    layers = sum(layer.total * times for layer, times in kinds)
    total = embedding + head + layers + norm + stream_head_parameters(arch)
    mtp, idle = _mtp(arch)
    return ParameterCount(
        embedding=embedding,
        attention=by_layer["attention"] - by_layer["indexer"],
        indexer=by_layer["indexer"],
        dense_mlp=by_layer["dense"],
        routed_experts=by_layer["routed_experts"],
        shared_experts=by_layer["shared_experts"],
        router=by_layer["router"],
        norms=by_layer["norms"] + norm,
        hyper=by_layer["hyper"] + stream_head_parameters(arch),
        head=head,
        mtp=mtp,
        total=total,
        active=total - by_layer["idle_experts"],
        mtp_active=mtp - idle,
    )


def layer_parameters(layer: Layer, arch: Architecture) -> LayerParameters:
    """The trained weights of one layer of ``arch``."""
    mlp = layer.feed_forward
    expert = mlp_parameters(arch.hidden, mlp.width, gated=mlp.gated, bias=mlp.bias)
    shared = mlp_parameters(arch.hidden, mlp.shared_width, gated=mlp.gated, bias=False)
    return LayerParameters(
        attention=attention_parameters(layer.attention, arch.hidden),
        indexer=indexer_parameters(layer.attention, arch.hidden),
        dense=0 if mlp.is_moe else expert,
        routed_experts=mlp.experts * expert,
        shared_experts=shared + (arch.hidden if mlp.shared_gate else 0),
        router=router_parameters(mlp, arch.hidden),
        norms=layer.norms * norm_parameters(arch),
        hyper=2 * hyper_parameters(arch.hyper_connections, arch.hidden),
        idle_experts=(mlp.experts - mlp.experts_per_token) * expert,
    )


def mlp_parameters(hidden: int, width: int, *, gated: bool, bias: bool) -> int:
    """Two matrices of ``hidden`` x ``width``, three where gated, and their biases."""
    inner = 2 if gated else 1
    return (inner + 1) * hidden * width + (inner * width + hidden if bias else 0)


def router_parameters(mlp: FeedForward, hidden: int) -> int:
    """The gate of ``hidden`` x experts, with a trained bias where the experts have biases."""
    return mlp.experts * (hidden + (1 if mlp.bias else 0))


def norm_parameters(arch: Architecture) -> int:
    """One norm of the residual width."""
    return arch.hidden * (2 if arch.norm_bias else 1)


def hyper_parameters(streams: int, hidden: int) -> int:
    """One hyper-connection of ``streams`` residual streams: weights for collapse, expand, mix."""
    if streams == 1:
        return 0
    outputs = streams * (streams + 2)
    return outputs * streams * hidden + outputs + 3


def stream_head_parameters(arch: Architecture) -> int:
    """What collapses the streams into one before the last norm."""
    streams = arch.hyper_connections
    return 0 if streams == 1 else streams * streams * arch.hidden + streams + 1


def attention_parameters(attention: Attention, hidden: int) -> int:
    """All trained weights of an attention module, its indexer included."""
    weights = {
        AttentionKind.GROUPED: _grouped,
        AttentionKind.LATENT: _latent,
        AttentionKind.SHARED_KV: _shared_kv,
    }[attention.kind]
    sinks = attention.heads if attention.sinks else 0
    return weights(attention, hidden) + sinks + indexer_parameters(attention, hidden)


def indexer_parameters(attention: Attention, hidden: int) -> int:
    """The lightning indexer: queries from the low-rank q, keys, head weights, a norm."""
    indexer = attention.indexer
    if indexer is None or indexer.shared:
        return 0
    queries = (attention.q_lora_rank or hidden) * indexer.heads * indexer.head_dim
    weights = hidden * indexer.heads
    if attention.compression:
        return queries + weights + _compressor(attention.compression, indexer.head_dim, hidden, 2)
    return queries + weights + hidden * indexer.head_dim + _layer_norm(indexer)


def _grouped(a: Attention, hidden: int) -> int:
    """q, k, v and output projections; q and k norms are one head wide."""
    queries, keys, values = a.heads * a.head_dim, a.kv_heads * a.head_dim, a.kv_heads * a.value_dim
    out = a.heads * a.value_dim
    biases = (queries + keys + values if a.qkv_bias else 0) + (hidden if a.out_bias else 0)
    norms = 2 * a.head_dim if a.qk_norm else 0
    return hidden * (queries + keys + values + out) + biases + norms


def _latent(a: Attention, hidden: int) -> int:
    """Low-rank (or full) q, one compressed kv with its rope part, and their expansions."""
    rank, rope = a.kv_lora_rank or 0, a.rope_dim or 0
    nope = a.head_dim - rope
    down = hidden * (rank + rope) + rank
    up = rank * a.heads * (nope + a.value_dim)
    out = a.heads * a.value_dim * hidden
    biases = (rank + rope + (a.q_lora_rank or 0) if a.qkv_bias else 0) + (
        hidden if a.out_bias else 0
    )
    return _queries(a, hidden) + down + up + out + biases


def _shared_kv(a: Attention, hidden: int) -> int:
    """V4: one key that is also the value, a compressor beside it, a grouped output projection."""
    groups, rank = a.output_groups or 1, a.output_lora_rank or 0
    kv = hidden * a.head_dim + a.head_dim
    out = rank * a.heads * a.value_dim + groups * rank * hidden
    series = 2 if a.indexer else 1
    compressor = _compressor(a.compression, a.head_dim, hidden, series) if a.compression else 0
    return _queries(a, hidden) + kv + out + compressor


def _queries(a: Attention, hidden: int) -> int:
    width = a.heads * a.head_dim
    if a.q_lora_rank is None:
        return hidden * width
    return a.q_lora_rank * (hidden + 1 + width)


def _compressor(rate: int, width: int, hidden: int, series: int) -> int:
    """Values, gates and position biases of ``series`` (2 where windows overlap), and one norm."""
    return series * width * (2 * hidden + rate) + width


def _layer_norm(indexer: Indexer) -> int:
    return 2 * indexer.head_dim


def _mtp(arch: Architecture) -> tuple[int, int]:
    """Weights of the MTP modules, and how many of them one token does not use.

    A module is a layer, the projection of the joined hidden state and embedding (2h x h), a norm
    for each of the two and one before the shared head, and a collapse of its own with streams.
    """
    if arch.mtp_layer is None:
        return 0, 0
    layer = layer_parameters(arch.mtp_layer, arch)
    join = 2 * arch.hidden * arch.hidden + 3 * norm_parameters(arch)
    module = layer.total + join + stream_head_parameters(arch)
    return arch.mtp_layers * module, arch.mtp_layers * layer.idle_experts
