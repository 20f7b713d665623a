"""Bytes that krzem's own trainer holds on one device, as its code asks for them.

What other engines hold is estimated from what is published of them; this engine's code is known,
and rehearsed (:mod:`krzem.train.rehearsal`), so that its tensors are counted, on the very layers
that each pipeline rank holds.  Of three moments the fullest is taken: the loss, the backward pass
of a layer with all activations in flight, and the reduction of gradients at the end.

Elements have two bytes where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from krzem.cost.memory import MemoryBytes, RankBytes
from krzem.cost.sizes import StateCuts, StateSizes, state_cuts
from krzem.cost.stages import is_schedule
from krzem.cost.trainer_held import Held, held_weights
from krzem.cost.trainer_layers import Tokens, tokens_of
from krzem.cost.trainer_schedule import Moment, moments
from krzem.layout.layout import RECOMPUTES, Layouts, Precision, Recompute, Schedule
from krzem.model.architecture import Architecture, AttentionKind, Layer
from krzem.model.table import ModelTable

Array = Any
_WIDE = {Precision.BF16: 1.0, Precision.FP32: 2.0}
"""Bytes of an element over two, of the precisions whose tensors are counted."""
_PIECE = 2.0**25
_ROWS = 256.0
"""Logits of a piece of the loss, and its tokens at least (train/model/transformer.py)."""


def is_counted(arch: Architecture, precision: Precision) -> bool:
    """Whether every tensor of the trainer's step with this model is known here."""
    layers = [run.layer for run in arch.runs]
    return precision in _WIDE and all(map(_is_known, layers))


def _is_known(layer: Layer) -> bool:
    a, f = layer.attention, layer.feed_forward
    if a.kind is AttentionKind.NONE or layer.recurrence is not None or not f.gated:
        return False
    # DeepSeek-V3.2's masks and GPT-OSS's widened heads are not counted.
    return a.kind is AttentionKind.SHARED_KV or not (a.sinks or a.indexer)


def trainer_bytes(
    arch: Architecture,
    t: ModelTable,
    x: Layouts,
    global_batch: Array,
    sizes: StateSizes,
    precision: Precision = Precision.BF16,
) -> MemoryBytes:
    """Bytes of the first, the fullest middle and the last pipeline rank of ``krzem train``.

    ``sizes`` are the bytes of states, which are as other engines have them.  The fullest middle
    rank is the second or, where the second has layers without experts, the third.  Layouts of as
    many chunks are counted together.
    """
    alike = [np.flatnonzero(x.vpp == chunks) for chunks in np.unique(x.vpp)]
    if len(alike) == 1:
        return _of_alike(arch, t, x, global_batch, sizes, precision)
    found = [
        _of_alike(arch, t, x.take(i), global_batch, _taken(sizes, i), precision) for i in alike
    ]
    order = np.argsort(np.concatenate(alike), kind="stable")

    def joined(place: str) -> RankBytes:
        ranks = [getattr(one, place) for one in found]
        return RankBytes(
            **{
                name: np.concatenate([getattr(rank, name) for rank in ranks])[order]
                for name in RankBytes.__slots__
            }
        )

    return MemoryBytes(first=joined("first"), middle=joined("middle"), last=joined("last"))


def _taken(sizes: StateSizes, indices: Array) -> StateSizes:
    """Of some of the layouts."""
    values = {f.name: getattr(sizes, f.name) for f in fields(sizes)}
    return replace(sizes, **{n: v[indices] for n, v in values.items() if np.ndim(v)})


def _of_alike(
    arch: Architecture,
    t: ModelTable,
    x: Layouts,
    global_batch: Array,
    sizes: StateSizes,
    precision: Precision,
) -> MemoryBytes:
    rank = trainer_ranks(arch, t, x, global_batch, sizes, precision)
    second, third = (rank(np.minimum(place, x.pp - 1)) for place in (1, 2))
    fuller = (third.total > second.total) & (x.pp > 3)
    middle = {
        name: np.where(fuller, getattr(third, name), getattr(second, name))
        for name in RankBytes.__slots__
    }
    return MemoryBytes(
        first=rank(np.zeros(len(x))), middle=RankBytes(**middle), last=rank(x.pp - 1)
    )


def trainer_ranks(
    arch: Architecture,
    t: ModelTable,
    x: Layouts,
    global_batch: Array,
    sizes: StateSizes,
    precision: Precision = Precision.BF16,
) -> Callable[[Array], RankBytes]:
    """Bytes of any pipeline rank of layouts ``[N]``: a function of the ranks ``[N]``."""
    count, wide = np.maximum(global_batch / (x.dp * x.micro_batch), 1.0), _WIDE[precision]
    step = _Step(
        x=x,
        k=tokens_of(arch, int(t.sequence), x, wide),
        count=count,
        cuts=state_cuts(x, sizes, count, experts_within=True),
        held=held_weights(arch, t, x, wide),
        angles=_angles(arch, float(t.sequence)),
    )
    return lambda rank: _rank(step, np.asarray(rank))


def _angles(arch: Architecture, sequence: float) -> float:
    """Cosines and sines of rotations, for each micro-batch under way; two kinds in V4."""
    attentions = [run.layer.attention for run in arch.runs]
    kinds = {bool(a.compression) for a in attentions}
    return 4.0 * sequence * max(a.rope_dim or a.head_dim for a in attentions) * len(kinds)


# One rank
# --------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What the ranks of a layout share."""

    x: Layouts
    k: Tokens
    count: Array
    """Micro-batches of a step."""
    cuts: StateCuts
    held: Held
    angles: float


def _rank(s: _Step, rank: Array) -> RankBytes:
    """The fullest moment of pipeline ranks ``[N]``."""
    x, weights = s.x, s.held.weights(rank)
    chunks = _chunks(s, rank)
    best = _ending(s, rank, chunks)
    for moment in moments(x, rank, s.count):
        found = _passing(s, rank, chunks, moment)
        best = tuple(
            np.where(moment.exists & (sum(found) > sum(best)), new, old)
            for new, old in zip(found, best, strict=True)
        )
    gradients, activations, transient = best
    # Of one micro-batch alone gradients come as activations go.  Last the ends are reduced: their
    # gradients in 16 bits, and in 32 to be sent.
    single, ends = (x.pp <= 1) & (s.count <= 1.0) & (x.zero >= 1), 6.0 * weights[2]
    each = single | ((x.pp <= 1) & (x.zero >= 2))
    late = each & (np.where(single, gradients, 0.0) + ends > activations + transient)
    return RankBytes(
        weights=s.k.wide * _gathered(x, s.cuts, weights),
        gradients=np.where(single & ~late, 0.0, gradients),
        optimizer=s.cuts.optimizer.of(*weights),
        activations=np.where(late, 0.0, activations),
        transient=np.where(late, ends, transient),
    )


def _gathered(x: Layouts, cuts: StateCuts, weights: tuple[Array, Array, Array]) -> Array:
    """Weights in 16 bits.  Without FSDP, and where it lets go of what it gathered, there is one
    copy in 32 bits alone; halves of backward passes gather all of a chunk."""
    apart = is_schedule(x.schedule, Schedule.ZB_V, Schedule.DUALPIPE_V) & (x.pp > 1)
    kept = np.where((x.zero >= 3) & apart, 2.0 * sum(weights), cuts.weights.of(*weights))
    return np.where((x.zero == 0) | ((x.zero >= 3) & ~apart), 0.0, kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunks:
    """Of each chunk of pipeline ranks, arrays ``[C, N]``; bytes."""

    kept: Array
    """Of a micro-batch from its forward to its backward pass."""
    work: Array
    """Beside that at the fullest moment of its backward pass."""
    loss: Array
    """The same at the loss; 0 where there is none."""
    waits: Array
    """Gradients of results that wait for those of weights, where the two are computed apart."""
    gradients: Array
    """In 32 bits."""


def _chunks(s: _Step, rank: Array) -> _Chunks:
    x, k, held = s.x, s.k, s.held
    predicts, counts = held.predicts(rank), held.chunks(rank)
    number = np.arange(len(counts))[:, None]
    closes = predicts & (number == x.vpp - 1)
    begins = (rank == 0) & (number == 0)
    mtp = np.where(closes, held.mtp, 0.0)
    # The last norm's input and output, and what prediction modules join.
    closing = mtp * _joined(k) + np.where(closes, k.own_bytes + k.joined, 0.0)
    closing = k.wide * closing
    handed = np.where((x.pp > 1) & ~closes, k.wide * k.residual, 0.0)
    kept = _kept(s, counts) + closing + handed + s.angles / x.vpp
    if k.streams > 1:
        # All streams begin as one tensor.
        kept = kept + np.where(closes, k.residual, 0.0)
        kept = kept - np.where(begins, k.residual - k.own_bytes, 0.0)
    dense, experts = (
        sum(n * layer for n, layer in zip(np.moveaxis(counts, 1, 0), layers, strict=True))
        for layers in ([one.dense for one in held.layers], [one.experts for one in held.layers])
    )
    every = held.weights(rank)
    first = np.where(rank == 0, held.embedding, 0.0)
    ends = np.where(number == 0, first, 0.0) + np.where(
        closes | (number == x.vpp - 1), 1.0, 0.0
    ) * (every[2] - first)
    work, loss = _worked(s, counts, closes, mtp)
    more, at_loss = _regathered(s, counts, ends)
    work, loss = work + more, loss + at_loss
    # Weights' gradients computed apart wait in 16 bits: of all chunks, at the loss of one of two.
    # DualPipeV computes them apart only where it fills and drains.
    apart = is_schedule(x.schedule, Schedule.ZB_V) & (x.pp > 1)
    waiting = np.where(apart, every[0] + every[1], 0.0)
    held_back = sum(
        n * layer.waits for n, layer in zip(np.moveaxis(counts, 1, 0), held.layers, strict=True)
    )
    return _Chunks(
        kept=np.where(number < x.vpp, kept, 0.0),
        work=work + 2.0 * k.wide * waiting,
        loss=np.where(closes, loss + k.wide * waiting, 0.0),
        waits=held_back,
        gradients=s.cuts.gradients.of(dense, experts, ends),
    )


def _worked(s: _Step, counts: Array, closes: Array, mtp: Array) -> tuple[Array, Array]:
    """Bytes ``[C, N]`` beside what is kept, in the backward pass of a layer and at the loss."""
    x, k, held = s.x, s.k, s.held
    work = _turning(s, counts)
    work = work + np.where((x.pp > 1) & ~closes, k.wide * k.residual, 0.0)
    weights = _largest(counts, [layer.weights for layer in held.layers])
    cut = (x.zero >= 3) & (x.dp * x.cp > 1) & (x.pp <= 1)
    whole = np.where(cut, 2.0 * k.wide * (held.embedding + held.head), 0.0)
    # This layer and the next gathered, and the gradient of the one before on its way.
    work = work + whole + np.where(cut, (4.0 * k.wide + 4.0) * weights, 0.0)
    # That one has let go of what it kept, as the output has.
    gone = k.wide * (k.own_bytes + k.joined) + _largest(
        counts, [layer.kept for layer in held.layers]
    )
    work = work - np.where(cut & closes, gone, 0.0)
    work = work + np.where(closes, 2.0 * k.wide * held.head * (1.0 + (mtp > 0)), 0.0)
    return work, _loss(s) + 2.0 * k.wide * held.head * mtp + whole


def _regathered(s: _Step, counts: Array, ends: Array) -> tuple[Array, Array]:
    """With ZeRO-3 in a pipeline forward passes let go of all but the ends, backward passes leave
    what they gather: at first the ends, a layer, and the buffer that the larger came in."""
    x = s.x
    apart = is_schedule(x.schedule, Schedule.ZB_V, Schedule.DUALPIPE_V)
    third = (x.zero >= 3) & (x.pp > 1) & ~apart
    layer = _largest(counts, [one.weights for one in s.held.layers])
    each = 2.0 * s.k.wide
    work = each * (ends + layer + np.maximum(ends, layer))
    return np.where(third, work, 0.0), np.where(third, each * ends, 0.0)


def _passing(s: _Step, rank: Array, chunks: _Chunks, moment: Moment) -> tuple[Array, Array, Array]:
    """Bytes of gradients, activations and transient ones at a moment of the schedule."""
    gradients = (moment.begun * chunks.gradients).sum(axis=0)
    activations = (moment.held * chunks.kept).sum(axis=0)
    work = np.maximum(chunks.work, chunks.loss)
    return gradients, activations, work[moment.turn, np.arange(work.shape[1])]


def _ending(s: _Step, rank: Array, chunks: _Chunks) -> tuple[Array, ...]:
    """The same at the end: gradients that stayed whole are reduced; or ZB-V drains through input
    gradients, of which pp and r chunks are left and those of 2 r + 1 wait."""
    x = s.x
    gradients, none = chunks.gradients.sum(axis=0), np.zeros(len(x))
    reduced = _reduced(s, rank, s.held.every(rank))
    if not np.any(apart := is_schedule(x.schedule, Schedule.ZB_V) & (x.pp > 1)):
        return gradients, none, reduced
    left = np.minimum(x.pp, s.count) * chunks.kept[0] + np.minimum(rank, s.count) * chunks.kept[1]
    late = chunks.waits.sum(axis=0) * np.minimum(rank + 0.5, s.count)
    drains = apart & (left + late > reduced)
    return gradients, np.where(drains, left, none), np.where(drains, late, reduced)


def _again(s: _Step, counts: Array) -> Array:
    """Layers ``[C, N]`` that are computed again whole, from each rank's first."""
    x, each = s.x, counts.sum(axis=1)
    full = (x.recompute == RECOMPUTES.index(Recompute.FULL)) & (x.recompute_layers >= 0)
    before = np.cumsum(each, axis=0) - each
    return np.where(full, np.clip(x.recompute_layers - before, 0.0, each), each)


def _kept(s: _Step, counts: Array) -> Array:
    """Of all layers of each chunk ``[C, N]`` for one micro-batch."""
    left = 1.0 - _again(s, counts) / np.maximum(counts.sum(axis=1), 1.0)
    return sum(
        n * (layer.kept + left * (layer.whole - layer.kept))
        for n, layer in zip(np.moveaxis(counts, 1, 0), s.held.layers, strict=True)
    )


def _turning(s: _Step, counts: Array) -> Array:
    """Beside what a chunk keeps, at the fullest moment of one of its layers' backward pass: where
    some are computed again, those that are not go first and have let go of theirs by then."""
    layers = s.held.layers
    again = _largest(counts, [layer.work for layer in layers])
    left = counts.sum(axis=1) - _again(s, counts)
    if not np.any(left > 0):
        return again
    gone = left * _largest(counts, [layer.whole for layer in layers])
    plain = _largest(counts, [layer.work + layer.kept - layer.whole for layer in layers])
    return np.where(left > 0, np.maximum(again - gone, plain), again)


def _joined(k: Tokens) -> Array:
    """What a prediction module keeps beside its layer: two normed inputs, what they are joined to
    and the norm of what its layer gives; with streams one of the inputs is as wide as all."""
    return 4.0 * k.own_bytes + 2.0 * k.residual if k.streams > 1 else 7.0 * k.own_bytes


def _largest(counts: Array, values: list[Array]) -> Array:
    """The largest value of the kinds of layers that are held, of ``[..., K, N]``."""
    kinds = np.moveaxis(counts, -2, 0)
    return np.max(
        [np.where(n > 0, value, 0.0) for n, value in zip(kinds, values, strict=True)], axis=0
    )


def _loss(s: _Step) -> Array:
    """The gradient of the output matrix in 32 bits and a piece's part of it; logits of the piece
    and their gradient; that of the input, and the input."""
    k, head = s.k, s.held.head
    vocab = head / (k.own_bytes / (2.0 * k.own))
    rows = np.minimum(k.gathered, np.maximum(_ROWS, np.floor(_PIECE / vocab)))
    small = 4.0 * rows * vocab + k.joined + k.own_bytes
    return (4.0 + 2.0 * k.wide) * head + k.wide * small


def _reduced(s: _Step, rank: Array, counts: Array) -> Array:
    """At the end gradients that stayed whole are reduced, unit by unit."""
    x, held = s.x, s.held
    late = (x.zero >= 1) & ((x.pp > 1) | ((x.zero <= 1) & (s.count > 1.0)))
    last = np.where(held.predicts(rank), held.head, 0.0)
    end = 2.0 * np.where(rank == 0, held.embedding, last)
    unit = _largest(counts, [layer.unit for layer in held.layers])
    return np.where(late, np.maximum(end, unit), 0.0)
