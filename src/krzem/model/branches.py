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
    The delta rule also inverts a triangle and applies it to keys and values: once more ``c`` keys
    (the WY form of arXiv 2406.06484 section 3). None where the state is one value per channel.
    """
    r = recurrence
    if r.kind in _CHANNELWISE:
        return None
    block = min(r.chunk, sequence)
    again = 2 if r.kind in (RecurrenceKind.DELTA, RecurrenceKind.KEY_DELTA) else 1
    through = 2 * r.key_dim * r.value_dim / (r.key_dim + r.value_dim)
    keys = block * again + through
    return Branch(heads=r.heads, qk_dim=r.key_dim, v_dim=r.value_dim, keys=keys, span=keys)


_CHANNELWISE = (
    RecurrenceKind.MAMBA, RecurrenceKind.RGLRU, RecurrenceKind.WKV, RecurrenceKind.CONVOLUTION,
)  # fmt: skip
"""Kinds that no matrix unit helps: element-wise work over channels."""
