"""How many keys a query reads, as exact means over the positions of a sequence.

Under a causal mask the query at position ``i`` (from 1) sees ``floor(i / stride)`` keys, at most
``limit`` of them: ``stride`` tokens make one compressed entry, and ``limit`` is a window or a
top-k.  Both are one closed form.
"""

from __future__ import annotations

from numbers import Integral

from krzem.errors import GoalError
from krzem.model.architecture import Attention, AttentionKind


def mean_keys(attention: Attention, sequence: int, causal: bool = True) -> float:
    """Mean keys that core attention reads per query, window and compressed entries together.

    Without ``causal`` every query reads as many keys as the last one does under the mask.
    """
    return sum(keys_by_branch(attention, sequence, causal))


def keys_by_branch(attention: Attention, sequence: int, causal: bool = True) -> tuple[float, float]:
    """Mean keys per query of single tokens, and of compressed entries (0 where there are none)."""
    check_sequence(sequence)
    if attention.chunk:
        return mean_in_chunks(sequence, attention.chunk, causal), 0.0
    window = attention.window or sequence
    topk = attention.indexer.topk if attention.indexer else sequence
    if attention.kind is not AttentionKind.SHARED_KV:
        return mean_visible(sequence, limit=min(window, topk), causal=causal), 0.0
    near = mean_visible(sequence, limit=window, causal=causal)
    if not attention.compression:
        return near, 0.0
    return near, mean_visible(sequence, limit=topk, stride=attention.compression, causal=causal)


def mean_scored(attention: Attention, sequence: int, causal: bool = True) -> float:
    """Mean keys (or compressed entries) per query that the indexer of this layer scores."""
    check_sequence(sequence)
    if attention.indexer is None or attention.indexer.shared:
        return 0.0
    stride = attention.compression or 1
    return mean_visible(sequence, limit=sequence, stride=stride, causal=causal)


def mean_visible(sequence: int, *, limit: int, stride: int = 1, causal: bool = True) -> float:
    """Mean over ``i = 1 … sequence`` of ``min(floor(i / stride), limit)``.

    Entry ``e`` (from 1, up to the limit) is seen from position ``e * stride`` to the end, that is
    by ``sequence + 1 - e * stride`` queries; summing over entries gives the closed form.
    """
    entries = min(sequence // stride, limit)
    if not causal:
        return float(entries)
    return entries * (2 * (sequence + 1) - stride * (entries + 1)) / (2 * sequence)


def mean_in_chunks(sequence: int, chunk: int, causal: bool = True) -> float:
    """As ``mean_visible`` where no query looks out of its block of ``chunk`` tokens."""
    whole, rest = divmod(sequence, chunk)
    parts = [(whole * chunk, chunk)] + ([(rest, rest)] if rest else [])
    if not causal:
        return float(min(sequence, chunk))
    return sum(share * (length + 1) / 2 for share, length in parts) / sequence


def check_sequence(sequence: int) -> None:
    """Refuse a sequence length that is not a whole number above zero."""
    if isinstance(sequence, bool) or not isinstance(sequence, Integral) or sequence < 1:
        raise GoalError(f"the sequence length is {sequence!r}; it has to be a whole number >= 1")
