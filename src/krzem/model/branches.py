"""Which keys a query reads: the score products of one attention module.

Means are exact over the positions of a sequence under causal masking (:mod:`krzem.model.keys`).
"""

from __future__ import annotations

from dataclasses import dataclass

from krzem.model.architecture import Attention, AttentionKind, Recurrence, RecurrenceKind
from krzem.model.keys import keys_by_branch, mean_visible


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
