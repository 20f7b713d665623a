"""What each module multiplies: shapes of its weights, as counts of elements; queries with keys.

``matrices`` multiply activations and cost FLOPs; ``vectors`` (norms, biases, sinks, position
biases of compressors) only occupy memory.  Only trained weights count.  Score products of attention
and states of recurrences have no weights; they are :class:`Branch`.
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
    RecurrenceKind,
    keys_by_branch,
    mean_visible,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One product of queries with keys (and of scores with values, where ``v_dim`` > 0)."""

    heads: int
    qk_dim: int
    v_dim: int
    """0 for an indexer, which only scores."""
    keys: float
    """Mean keys read per query, causal."""
    span: float
    """Keys a kernel without block skipping would compute per query."""
    sparse: bool = False
    """Keys are chosen one by one, so that they are gathered instead of streamed."""


def branches(attention: Attention, sequence: int) -> tuple[Branch, ...]:
    """The score products of ``attention`` over sequences of ``sequence`` tokens."""
    a = attention
    if a.kind is AttentionKind.SHARED_KV:
        return _compressed(a, sequence)
    if a.kind is AttentionKind.NONE:
        return ()
    limit = min(x for x in (sequence, a.window, a.chunk) if x is not None)
    topk = a.indexer.topk if a.indexer else sequence
    main = Branch(
        heads=a.heads,
        qk_dim=a.head_dim,
        v_dim=a.value_dim,
        keys=keys_by_branch(a, sequence)[0],
        span=float(sequence),
        sparse=topk < limit,
    )
    return (main, *_indexer(a, sequence, 1))


def _compressed(a: Attention, sequence: int) -> tuple[Branch, ...]:
    window = min(sequence, a.window or sequence)
    near = mean_visible(sequence, limit=window)
    found = [
        Branch(heads=a.heads, qk_dim=a.head_dim, v_dim=a.value_dim, keys=near, span=float(window))
    ]
    if a.compression:
        entries = sequence // a.compression
        topk = a.indexer.topk if a.indexer else entries
        far = Branch(
            heads=a.heads,
            qk_dim=a.head_dim,
            v_dim=a.value_dim,
            keys=mean_visible(sequence, limit=topk, stride=a.compression),
            span=float(min(entries, topk)),
            sparse=topk < entries,
        )
        found.append(far)
    return (*found, *_indexer(a, sequence, a.compression or 1))


def _indexer(a: Attention, sequence: int, stride: int) -> tuple[Branch, ...]:
    i = a.indexer
    if i is None or i.shared:
        return ()
    keys = mean_visible(sequence, limit=sequence, stride=stride)
    score = Branch(
        heads=i.heads, qk_dim=i.head_dim, v_dim=0, keys=keys, span=float(sequence // stride)
    )
    return (score,)


def state_branch(recurrence: Recurrence, sequence: int) -> Branch | None:
    """A chunked recurrence as a score product with as many keys as cost the same.

    A kernel multiplies blocks of ``c`` tokens: scores within the block, ``2 c (k + v)`` FLOPs a
    token and state; then ``2 k v`` each to add the block to the state and to read it. That is
    attention over ``c + 2 k v / (k + v)`` keys, whatever the sequence (arXiv 2405.21060 section 6).
    Mamba-2 makes the scores of keys once for a group of heads (its ``bmm_chunk`` kernel). The delta
    rule also inverts a triangle and applies it to keys and values: once more ``c`` keys (the WY
    form of arXiv 2406.06484 section 3). None where the state is one value per channel.
    """
    r = recurrence
    if r.kind in _CHANNELWISE:
        return None
    block, width = min(r.chunk, sequence), r.key_dim + r.value_dim
    if r.kind is RecurrenceKind.MAMBA2:
        within = block * (r.key_dim * r.key_heads / r.heads + r.value_dim) / width
    else:
        within = float(block)
    again = 2 if r.kind in (RecurrenceKind.DELTA, RecurrenceKind.KEY_DELTA) else 1
    keys = within * again + 2 * r.key_dim * r.value_dim / width
    return Branch(heads=r.heads, qk_dim=r.key_dim, v_dim=r.value_dim, keys=keys, span=keys)


_CHANNELWISE = (
    RecurrenceKind.MAMBA, RecurrenceKind.RGLRU, RecurrenceKind.WKV, RecurrenceKind.CONVOLUTION,
)  # fmt: skip
"""Kinds that no matrix unit helps: element-wise work over channels."""


def state_widths(r: Recurrence | None) -> tuple[float, float, float]:
    """Query, key-value and output widths of a recurrent mixer, as attention has them.

    Keys and values carry the states that a chunked kernel writes once per chunk for its backward
    pass (arXiv 2405.21060 section 6; flash-linear-attention does the same).
    """
    if r is None:
        return 0.0, 0.0, 0.0
    if r.value_dim == 1:
        return 0.0, float(r.conv_channels), float(r.heads)
    kv = r.key_heads * r.key_dim + r.heads * r.value_dim + _written_states(r)
    return float(r.key_heads * r.key_dim), float(kv), float(r.heads * r.value_dim)


def state_traffic(r: Recurrence | None) -> float:
    """Bytes of a recurrent mixer per token, forward, beside projections and its score product.

    16-bit activations: the short convolution reads and writes its channels; the gated norm reads
    output and gate and writes. The states that a chunked kernel makes are written in 32 bits, read
    and written in 16 where they are passed along the chunks, and read (the kernels of
    state-spaces/mamba); 4 of these 12 bytes are in :func:`state_widths`, and so are the two
    readings of queries, keys and values.
    """
    if r is None:
        return 0.0
    moved = 4.0 * r.conv_channels + 6.0 * r.heads * r.value_dim
    return moved if r.kind in _CHANNELWISE else moved + 8.0 * _written_states(r)


def _written_states(r: Recurrence) -> float:
    return r.heads * r.key_dim * r.value_dim / r.chunk
