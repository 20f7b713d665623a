"""Shapes of the weights of each module, as counts of elements.

``matrices`` multiply activations and cost FLOPs; ``vectors`` (norms, biases, sinks, position
biases of compressors) only occupy memory.  Only trained weights count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from krzem.model.architecture import (
    Attention,
    AttentionKind,
    FeedForward,
    Indexer,
    Matrix,
    Recurrence,
)


@dataclass(frozen=True, slots=True)
class Weights:
    """Elements of the weights of a module."""

    matrices: int = 0
    vectors: int = 0

    @property
    def total(self) -> int:
        """All elements."""
        return self.matrices + self.vectors

    def __add__(self, other: Weights) -> Weights:
        return Weights(self.matrices + other.matrices, self.vectors + other.vectors)

    def __mul__(self, times: int) -> Weights:
        return Weights(self.matrices * times, self.vectors * times)


NONE = Weights()


def attention_weights(attention: Attention, hidden: int) -> Weights:
    """An attention module without its indexer: projections, biases, norms, sinks, compressor."""
    if attention.kind is AttentionKind.NONE:
        return NONE
    own = {
        AttentionKind.GROUPED: _grouped,
        AttentionKind.LATENT: _latent,
        AttentionKind.SHARED_KV: _shared_kv,
    }[attention.kind](attention, hidden)
    sinks = attention.heads if attention.sinks else 0
    return own + further(attention.matrices, attention.vectors + sinks)


def further(matrices: Iterable[Matrix], vectors: int) -> Weights:
    """Listed matrices and elements."""
    return Weights(sum(m.elements for m in matrices), vectors)


def recurrence_weights(recurrence: Recurrence | None) -> Weights:
    """A recurrent mixer: projections, the short convolution, decays and norms."""
    if recurrence is None:
        return NONE
    taps = recurrence.conv_channels * recurrence.conv_taps
    return further(recurrence.matrices, recurrence.vectors) + Weights(taps)


def indexer_weights(attention: Attention, hidden: int) -> Weights:
    """The lightning indexer: queries from the low-rank q, keys, one weight per head, a norm."""
    indexer = attention.indexer
    if indexer is None or indexer.shared:
        return NONE
    queries = (attention.q_lora_rank or hidden) * indexer.heads * indexer.head_dim
    own = Weights(queries + hidden * indexer.heads)
    if attention.compression:
        return own + _compressor(attention.compression, indexer.head_dim, hidden, series=2)
    return own + _indexer_keys(indexer, hidden)


def mlp_weights(hidden: int, width: int, *, gated: bool, bias: bool) -> Weights:
    """Two matrices of ``hidden`` x ``width``, three where gated, and their biases."""
    inner = 2 if gated else 1
    return Weights((inner + 1) * hidden * width, inner * width + hidden if bias else 0)


def expert_weights(mlp: FeedForward, hidden: int) -> Weights:
    """The dense network, or one routed expert."""
    if not mlp.width:
        return NONE
    return mlp_weights(mlp.input_width or hidden, mlp.width, gated=mlp.gated, bias=mlp.bias)


def shared_weights(mlp: FeedForward, hidden: int) -> Weights:
    """The shared experts and the scalar gate on them."""
    gate = Weights(hidden if mlp.shared_gate else 0)
    return gate + mlp_weights(hidden, mlp.shared_width, gated=mlp.gated, bias=False)


def router_weights(mlp: FeedForward, hidden: int) -> Weights:
    """The gate of ``hidden`` x experts, with a trained bias where the experts have biases."""
    scored = mlp.experts + mlp.zero_experts
    return Weights(scored * (mlp.router_width or hidden), scored if mlp.bias else 0)


def hyper_weights(streams: int, hidden: int, mix: bool = True) -> Weights:
    """One hyper-connection: from all ``streams`` the weights that collapse, expand and mix them."""
    if streams == 1:
        return NONE
    outputs = streams * (streams + 2 if mix else 2)
    return Weights(outputs * streams * hidden, outputs + (3 if mix else 2))


def stream_head_weights(streams: int, hidden: int) -> Weights:
    """What collapses the streams into one before the last norm."""
    return NONE if streams == 1 else Weights(streams * streams * hidden, streams + 1)


def _grouped(a: Attention, hidden: int) -> Weights:
    """q, k, v and output projections; the norms of q and k are one head wide."""
    qkv, out = a.heads * a.head_dim + projected_kv(a), a.heads * a.value_dim
    norms = a.head_dim * (1 if a.shares_kv else 2) if a.qk_norm else 0
    matrices = (a.input_width or hidden) * qkv + hidden * out
    return Weights(matrices, norms + _biases(a, qkv, hidden))


def projected_kv(a: Attention) -> int:
    """Columns of the key and value projections of grouped attention."""
    if a.shares_kv:
        return 0
    return a.kv_heads * (a.head_dim + (0 if a.values_are_keys else a.value_dim))


def _latent(a: Attention, hidden: int) -> Weights:
    """Low-rank (or full) q, one compressed kv with its rope part, and its expansion."""
    rank, rope = a.kv_lora_rank or 0, a.rope_dim or 0
    down = hidden * (rank + rope)
    up = rank * a.heads * (a.head_dim - rope + a.value_dim)
    out = a.heads * a.value_dim * hidden
    biases = _biases(a, rank + rope + (a.q_lora_rank or 0), hidden)
    return _queries(a, hidden) + Weights(down + up + out, rank + biases)


def _shared_kv(a: Attention, hidden: int) -> Weights:
    """V4: one key that is also the value, a compressor beside it, a grouped output projection."""
    groups, rank = a.output_groups or 1, a.output_lora_rank or 0
    kv = Weights(hidden * a.head_dim, a.head_dim)
    out = Weights(rank * a.heads * a.value_dim + groups * rank * hidden)
    own = _queries(a, hidden) + kv + out
    if not a.compression:
        return own
    return own + _compressor(a.compression, a.head_dim, hidden, series=2 if a.indexer else 1)


def _queries(a: Attention, hidden: int) -> Weights:
    width = a.heads * a.head_dim
    if a.q_lora_rank is None:
        return Weights(hidden * width)
    return Weights(a.q_lora_rank * (hidden + width), a.q_lora_rank)


def _biases(a: Attention, qkv: int, out: int) -> int:
    return (qkv if a.qkv_bias else 0) + (out if a.out_bias else 0)


def _compressor(rate: int, width: int, hidden: int, *, series: int) -> Weights:
    """Values and gates in ``series`` (two where windows overlap), position biases, and a norm."""
    return Weights(2 * series * width * hidden, series * width * rate + width)


def _indexer_keys(indexer: Indexer, hidden: int) -> Weights:
    """One key per token under a LayerNorm."""
    return Weights(hidden * indexer.head_dim, 2 * indexer.head_dim)
