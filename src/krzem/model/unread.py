"""What is not read of a config, and which keys a query reads (the score products of attention)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from krzem.errors import shorten
from krzem.model.architecture import (
    Attention,
    AttentionKind,
    Recurrence,
    RecurrenceKind,
    keys_by_branch,
    mean_visible,
)
from krzem.model.description import show

if TYPE_CHECKING:
    from krzem.model.config_file import Scope
MOST = 12
"""Names that one note lists."""


def unread_notes(scope: Scope) -> tuple[str, ...]:
    """Notes on what was assumed, what changes the function alone, and what was not read."""
    raw = scope.fields.raw
    check_rope(scope)
    left = {key: raw[key] for key in raw if _matters(key, raw[key], scope)}
    changed = {key: value for key, value in left.items() if _is_known(key, scope)}
    unknown = {key: value for key, value in left.items() if key not in changed}
    warned = [w["note"] for w in scope.description.warn if scope.flag("warn", w["when"])]
    return (
        *scope.description.notes,
        *warned,
        *_note("not in the config, taken from the class", scope.assumed),
        *_note(
            "changes what the model computes, not what a step costs, and is not read",
            changed,
        ),
        *_note("not a field that krzem knows, and not read", unknown),
    )


def check_rope(scope: Scope) -> None:
    """Refuse two statements of the rotary positions that contradict each other."""
    raw, fields = scope.fields.raw, scope.fields
    given: list[Mapping[str, object]] = []
    for name in ("rope_parameters", "rope_scaling"):
        item = raw.get(name)
        if isinstance(item, Mapping):
            given.append(item)
        elif item is not None:
            fields.fail(f"{name!r} is {show(item)}; it has to be an object")
    if len(given) == 2:
        both = sorted(k for k in set(given[0]) & set(given[1]) if given[0][k] != given[1][k])
        if both:
            values = " and ".join(show(item[both[0]]) for item in given)
            fields.fail(
                f"'rope_parameters' and 'rope_scaling' disagree on {both[0]!r}: {values}; keep one"
            )
    for key in ("rope_theta", "partial_rotary_factor"):
        for item in given:
            if key in item and raw.get(key) is not None and item[key] != raw[key]:
                fields.fail(
                    f"{key!r} is {show(raw[key])} beside a rope dictionary that says "
                    f"{show(item[key])}; keep one"
                )


def _matters(key: str, value: Any, scope: Scope) -> bool:
    """Whether a field says something that nobody read and that is not as good as not said."""
    kinds, known = field_kinds(), scope.description
    names = {key, *known.aliases.get(key, ())}
    if value in (None, False, [], {}) or key.startswith("_"):
        return False
    if names & scope.read or names & known.mentioned:
        return False
    if key in kinds["neutral"] or key.endswith(tuple(kinds["neutral_endings"])):
        return False
    if key in ("rope_parameters", "rope_scaling"):
        return not _is_plain_rope(value)
    if any(known.defaults.get(name) == value for name in names):
        return False
    plain = kinds["function"].get(key)
    return plain is None or value not in plain


def _is_known(key: str, scope: Scope) -> bool:
    """Whether the class has the field, so that changed configs have shown it to cost nothing."""
    known = scope.description
    names = {key, *known.aliases.get(key, ())}
    return key in field_kinds()["function"] or bool(names & set(known.defaults))


def _is_plain_rope(value: Any) -> bool:
    """Whether a rope dictionary rotates whole heads at unscaled positions."""
    if not isinstance(value, Mapping):
        return False
    parts = [part for part in value.values() if isinstance(part, Mapping)] or [value]
    return all(
        part.get("rope_type", part.get("type", "default")) == "default"
        and part.get("partial_rotary_factor") in (None, 1, 1.0)
        for part in parts
    )


def _note(what: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    if not found:
        return ()
    listed = [f"{shorten(key, 40)} = {show(value)}" for key, value in sorted(found.items())][:MOST]
    more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
    return (f"{what}: {', '.join(listed)}{more}",)


@cache
def field_kinds() -> dict[str, dict[str, Any]]:
    """Fields that decide nothing (``neutral``), and those that decide no cost (``function``)."""
    path = files("krzem.facts").joinpath("families", "field_kinds.json")
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


# Which keys a query reads: the score products of one attention module
# --------------------------------------------------------------------


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
