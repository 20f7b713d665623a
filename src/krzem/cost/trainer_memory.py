"""Bytes that krzem's own trainer holds on one device, as its code asks for them.

What other engines hold is estimated from what is published of them; this engine's code is known,
and rehearsed (:mod:`krzem.train.rehearsal`), so that its tensors are counted, on the very layers
that each pipeline rank holds.  Of three moments the fullest is taken: the loss, the backward pass
of a layer with all activations in flight, and the reduction of gradients at the end.

Elements have two bytes where nothing else is said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from krzem.cost.memory import MemoryBytes, RankBytes
from krzem.cost.sizes import StateCuts, StateSizes, state_cuts
from krzem.cost.stages import in_flight, is_schedule, kinds_held
from krzem.cost.trainer_layers import LayerBytes, Tokens, layer_bytes, tokens_of
from krzem.layout.layout import RECOMPUTES, Layouts, Precision, Recompute, Schedule
from krzem.model.architecture import Architecture, AttentionKind, Layer, LayerRun
from krzem.model.table import ModelTable, tabulate

Array = Any
_PIECE = 2.0**25
_ROWS = 256.0
"""Logits of a piece of the loss, and its tokens at least (train/model/transformer.py)."""


def is_counted(arch: Architecture, precision: Precision) -> bool:
    """Whether every tensor of the trainer's step with this model is known here."""
    layers = [run.layer for run in arch.runs]
    return precision is Precision.BF16 and all(map(_is_known, layers))


def _is_known(layer: Layer) -> bool:
    a, f = layer.attention, layer.feed_forward
    if a.kind is AttentionKind.NONE or layer.recurrence is not None or not f.gated:
        return False
    # DeepSeek-V3.2's masks and GPT-OSS's widened heads are not counted.
    return a.kind is AttentionKind.SHARED_KV or not (a.sinks or a.indexer)


def trainer_bytes(
    arch: Architecture, t: ModelTable, x: Layouts, global_batch: Array, sizes: StateSizes
) -> MemoryBytes:
    """Bytes of the first, the fullest middle and the last pipeline rank of ``krzem train``.

    ``sizes`` are the bytes of states, which are as other engines have them.  The fullest middle
    rank is the second or, where the second has layers without experts, the third.
    """
    rank = trainer_ranks(arch, t, x, global_batch, sizes)
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
    arch: Architecture, t: ModelTable, x: Layouts, global_batch: Array, sizes: StateSizes
) -> Callable[[Array], RankBytes]:
    """Bytes of any pipeline rank of layouts ``[N]``: a function of the ranks ``[N]``."""
    count = np.maximum(global_batch / (x.dp * x.micro_batch), 1.0)
    step = _Step(
        x=x,
        k=tokens_of(arch, int(t.sequence), x),
        count=count,
        cuts=state_cuts(x, sizes, count),
        held=held_weights(arch, t, x),
        angles=_angles(arch, float(t.sequence)),
    )
    return lambda rank: _rank(step, np.asarray(rank))


def _angles(arch: Architecture, sequence: float) -> float:
    """Cosines and sines of rotations, for each micro-batch under way; two kinds in V4."""
    attentions = [run.layer.attention for run in arch.runs]
    kinds = {bool(a.compression) for a in attentions}
    return 4.0 * sequence * max(a.rope_dim or a.head_dim for a in attentions) * len(kinds)


# Which weights lie on which rank
# -------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Layers, embedding and output matrix, and where they lie."""

    layers: tuple[LayerBytes, ...]
    """Of each kind, and at the end that of prediction modules."""
    counts: Callable[[Array], Array]
    """[K, N] how many of each kind pipeline ranks ``[N]`` hold, without prediction modules."""
    predicts: Callable[[Array], Array]
    """[N] whether these ranks compute the loss."""
    embedding: Array
    """Elements on a rank that has it."""
    head: Array
    mtp: float
    module: float
    """Elements of a prediction module beside its layer."""
    tied: bool

    def weights(self, rank: Array) -> tuple[Array, Array, Array]:
        """Elements on pipeline ranks ``[N]``: of layers, of routed experts, and of the ends."""
        counts, last = self.every(rank), self.predicts(rank)
        dense = sum(n * layer.dense for n, layer in zip(counts, self.layers, strict=True))
        experts = sum(n * layer.experts for n, layer in zip(counts, self.layers, strict=True))
        embeds = (rank == 0) | (last & (self.tied or self.mtp > 0))
        heads = last & ~((rank == 0) & self.tied)
        shared = self.tied & last & (rank > 0)  # A second copy of the embedding is the output.
        ends = np.where(embeds, self.embedding, 0.0)
        ends = ends + np.where(heads & ~shared, self.head, 0.0)
        return dense, experts, ends + np.where(last, self.mtp * self.module, 0.0)

    def every(self, rank: Array) -> Array:
        """:attr:`counts` with the layers of prediction modules."""
        counts = self.counts(rank)
        counts[-1] += np.where(self.predicts(rank), self.mtp, 0.0)
        return counts


def held_weights(arch: Architecture, t: ModelTable, x: Layouts) -> Held:
    """What each pipeline rank of ``krzem train`` holds."""
    sequence = int(t.sequence)
    k = tokens_of(arch, sequence, x)
    kinds = [layer for layer, _ in arch.kinds()]
    order = tuple(kinds.index(layer) for layer in arch.expanded())
    module = arch.mtp_layer or arch.expanded()[-1]
    layers = [layer_bytes(one, arch, _alone(one, arch, sequence), x, k) for one in (*kinds, module)]
    held = kinds_held(order, x, arch.mtp_layers)
    # In a V the first rank holds both ends, and the last one the middle.
    turned = is_schedule(x.schedule, Schedule.ZB_V, Schedule.DUALPIPE_V) & (x.pp > 1)

    def counts(rank: Array) -> Array:
        own = held(rank)
        return np.concatenate((own, np.zeros((1, own.shape[1]))))

    return Held(
        layers=tuple(layers),
        counts=counts,
        predicts=lambda rank: np.asarray(rank == np.where(turned, 0, x.pp - 1)),
        embedding=t.embedding_params / x.tp,
        head=np.maximum(t.head_params, t.embedding_params) / x.tp,
        mtp=float(arch.mtp_layers),
        module=float(t.mtp_params),
        tied=bool(arch.tied_embeddings),
    )


def _alone(layer: Layer, arch: Architecture, sequence: int) -> ModelTable:
    """The table of one layer."""
    runs = (LayerRun(layer=layer, count=1),)
    return tabulate(replace(arch, runs=runs, mtp_layers=0, mtp_layer=None), sequence)


def weight_traffic(held: Held, x: Layouts, global_batch: Array, rank: Array) -> Array:
    """Bytes that pipeline ranks ``[N]`` send in a step to gather weights and to sum gradients.

    Of a collective of n ranks a rank sends (n-1)/n, of a sum that all get twice that.  Weights
    travel in 16 bits, gradients in 32; with one pipeline rank ZeRO-2 does both for each
    micro-batch, and ZeRO-3 gathers before either pass.  NaN for ZeRO-3 in a pipeline: not counted.
    """
    dense, experts, ends = held.weights(rank)
    ranks = (x.dp * x.cp).astype(float)
    each = (x.zero >= 2) & (x.pp <= 1)
    times = np.where(each, np.maximum(global_batch / (x.dp * x.micro_batch), 1.0), 1.0)
    gathered = 2.0 * times * np.where(x.zero >= 3, 2.0, 1.0)

    def sent(elements: Array, over: Array) -> Array:
        shard: Array = np.where(x.shard > 0, np.minimum(x.shard, over), over)
        shard = np.where(x.zero == 0, 1.0, shard)
        inside = (shard - 1.0) / shard * elements * (gathered + 4.0 * times)
        copies = over / shard
        return inside + 8.0 * (copies - 1.0) / copies * elements / shard * times

    found = sent(dense + ends, ranks) + sent(experts, ranks * x.tp / (x.ep * x.etp))
    return np.where((x.zero >= 3) & (x.pp > 1), np.nan, found)


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
    x, cuts = s.x, s.cuts
    weights = s.held.weights(rank)
    activations, transient = _moments(s, rank)
    gradients = cuts.gradients.of(*weights)
    # A pipe that is never filled again is fullest before there are gradients, or one batch later.
    flying = _flying(s, rank)
    chunked = is_schedule(x.schedule, Schedule.INTERLEAVED)
    drains = (flying == s.count) & (x.pp > 1) & ((x.schedule == 0) | chunked)
    one = activations / flying
    before, after = drains & (one > gradients), drains & (one <= gradients)
    # Chunks turn one after the other: in a single round there are gradients of the last alone.
    around = chunked & (x.pp > 1) & (s.count < 2.0 * x.pp) & (one > gradients)
    turned = np.where((after & chunked) | around, 1.0 / x.vpp, 1.0)
    dense, experts, ends = weights
    ends = np.where((turned < 1.0) & ~s.held.predicts(rank), 0.0, ends)
    gradients = cuts.gradients.of(dense * turned, experts * turned, ends)
    activations = activations - np.where(after, one * turned, 0.0)
    # Of one micro-batch alone gradients come as activations go.  Last the ends are reduced: their
    # gradients in 16 bits, and in 32 to be sent.
    single, ends = (x.pp <= 1) & (s.count <= 1.0) & (x.zero >= 1), 6.0 * weights[2]
    each = single | ((x.pp <= 1) & (x.zero >= 2))
    late = each & (np.where(single, gradients, 0.0) + ends > activations + transient)
    before = before | (single & ~late)
    return RankBytes(
        weights=_gathered(x, cuts, weights),
        gradients=np.where(before, 0.0, gradients),
        optimizer=cuts.optimizer.of(*weights),
        activations=np.where(late, 0.0, activations),
        transient=np.where(late, ends, transient),
    )


def _gathered(x: Layouts, cuts: StateCuts, weights: tuple[Array, Array, Array]) -> Array:
    """Weights in 16 bits.  Without FSDP, and where it lets go of what it gathered, there is one
    copy in 32 bits alone; in a pipeline the first backward pass leaves all of them gathered."""
    kept = np.where((x.zero >= 3) & (x.pp > 1), 2.0 * sum(weights), cuts.weights.of(*weights))
    return np.where((x.zero == 0) | ((x.zero >= 3) & (x.pp <= 1)), 0.0, kept)


def _moments(s: _Step, rank: Array) -> tuple[Array, Array]:
    """Bytes of activations and transient ones of pipeline ranks ``[N]``."""
    x, k, held = s.x, s.k, s.held
    predicts, begins = held.predicts(rank), rank == 0
    counts, mtp = held.every(rank), np.where(held.predicts(rank), held.mtp, 0.0)
    inner = (x.pp > 1) & ~predicts
    kept, chunked = _kept(s, counts), is_schedule(x.schedule, Schedule.INTERLEAVED) & (x.pp > 1)
    # The last norm's input and output, and what prediction modules join: of the last chunk, which
    # turns at once.
    closing = mtp * _joined(k) + np.where(predicts, k.own_bytes + k.joined, 0.0)
    kept = kept + np.where(chunked, 0.0, closing)
    given = x.vpp - np.where(predicts & chunked, 1.0, 0.0)
    handed = np.where(inner | chunked, k.residual * given, 0.0) + s.angles
    if k.streams > 1:
        kept = kept + np.where(predicts, k.residual, 0.0)
        # All streams begin as one tensor.
        kept = kept - np.where(begins, k.residual - k.own_bytes, 0.0)
    flying = _flying(s, rank)
    activations = flying * (kept + handed) + np.where(chunked, closing, 0.0)
    backward = _largest(counts, [layer.work for layer in held.layers])
    backward = backward + np.where(inner, k.residual, 0.0)
    weights = _largest(counts, [layer.weights for layer in held.layers])
    cut = (x.zero >= 3) & (x.dp * x.cp > 1) & (x.pp <= 1)
    whole = np.where(cut, 2.0 * (held.embedding + held.head), 0.0)
    # This layer and the next gathered, and the gradient of the one before on its way.
    backward = backward + whole + np.where(cut, 8.0 * weights, 0.0)
    # That one has let go of what it kept, as the output has.
    gone = k.own_bytes + k.joined + _largest(counts, [layer.kept for layer in held.layers])
    backward = backward - np.where(cut & predicts, gone, 0.0)
    backward = backward + np.where(predicts, 2.0 * held.head * (1.0 + (mtp > 0)), 0.0)
    loss = np.where(predicts, _loss(s) + 2.0 * held.head * mtp + whole, 0.0)
    # Weights' gradients computed apart wait in 16 bits: of all chunks, at the loss of one of two.
    # DualPipeV computes them apart only where it fills and drains.
    dense, experts, _ = held.weights(rank)
    apart = is_schedule(x.schedule, Schedule.ZB_V) & (x.pp > 1)
    waiting = np.where(apart, dense + experts, 0.0)
    backward, loss = backward + 2.0 * waiting, loss + np.where(predicts, waiting, 0.0)
    # torch's DualPipeV has its half micro-batch more while one runs backward, not at the loss.
    half = is_schedule(x.schedule, Schedule.DUALPIPE_V) & (x.pp > 1) & (flying > x.pp)
    moments = np.maximum(backward, loss - np.where(half, (flying - x.pp) * (kept + handed), 0.0))
    moments = np.maximum(moments, _reduced(s, rank, counts) - activations)
    # ZB-V drains through input gradients: rank r has pp + r chunks left, and those of 2 r + 1 wait.
    left = np.minimum(0.5 * (x.pp + rank), s.count) * (kept + handed)
    late = sum(n * layer.waits for n, layer in zip(counts, held.layers, strict=True))
    late = late * np.minimum(rank + 0.5, s.count)
    drains = apart & (left + late > activations + moments)
    return np.where(drains, left, activations), np.where(drains, late, moments)


def _flying(s: _Step, rank: Array) -> Array:
    """Micro-batches under way; torch's DualPipeV has one chunk of two more than its stages."""
    x = s.x
    # torch takes interleaved chunks in rounds of as many micro-batches as there are, not of pp.
    chunked = is_schedule(x.schedule, Schedule.INTERLEAVED)
    turn = s.count / np.maximum(np.floor(s.count / x.pp), 1.0)
    ahead = np.where(chunked, (x.vpp - 1.0) / x.vpp * (turn - x.pp), 0.0)
    held = in_flight(x.schedule, x.pp, x.vpp, rank, np.inf) + ahead
    held = np.minimum(held, s.count)
    dual = is_schedule(x.schedule, Schedule.DUALPIPE_V) & (x.pp > 1)
    return np.where(dual, np.minimum(x.pp + 0.5, held), held)


def _kept(s: _Step, counts: Array) -> Array:
    """Of all layers of a rank for one micro-batch."""
    x, layers = s.x, s.held.layers
    full = (x.recompute == RECOMPUTES.index(Recompute.FULL)) & (x.recompute_layers >= 0)
    share = np.where(full, x.recompute_layers / np.maximum(counts.sum(axis=0), 1.0), 1.0)
    left = 1.0 - np.minimum(share, 1.0)
    return sum(
        n * (layer.kept + left * (layer.whole - layer.kept))
        for n, layer in zip(counts, layers, strict=True)
    )


def _joined(k: Tokens) -> Array:
    """What a prediction module keeps beside its layer: two normed inputs, what they are joined to
    and the norm of what its layer gives; with streams one of the inputs is as wide as all."""
    return 4.0 * k.own_bytes + 2.0 * k.residual if k.streams > 1 else 7.0 * k.own_bytes


def _largest(counts: Array, values: list[Array]) -> Array:
    """The largest value of the kinds of layers that a rank holds."""
    return np.max(
        [np.where(n > 0, value, 0.0) for n, value in zip(counts, values, strict=True)], axis=0
    )


def _loss(s: _Step) -> Array:
    """The gradient of the output matrix in 32 bits and a piece's part of it; logits of the piece
    and their gradient; that of the input, and the input."""
    k, head = s.k, s.held.head
    vocab = head / (k.own_bytes / (2.0 * k.own))
    rows = np.minimum(k.gathered, np.maximum(_ROWS, np.floor(_PIECE / vocab)))
    return 6.0 * head + 4.0 * rows * vocab + k.joined + k.own_bytes


def _reduced(s: _Step, rank: Array, counts: Array) -> Array:
    """At the end gradients that stayed whole are reduced, unit by unit."""
    x, held = s.x, s.held
    late = (x.zero >= 1) & ((x.pp > 1) | ((x.zero <= 1) & (s.count > 1.0)))
    last = np.where(held.predicts(rank), held.head, 0.0)
    end = 2.0 * np.where(rank == 0, held.embedding, last)
    unit = _largest(counts, [layer.unit for layer in held.layers])
    return np.where(late, np.maximum(end, unit), 0.0)
