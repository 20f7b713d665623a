"""Bytes that krzem's own trainer holds on one device, as its code asks for them.

What other engines hold is estimated from what is published of them; this engine's code is known,
and rehearsed (:mod:`krzem.train.rehearsal`), so that its tensors are counted.  Of three moments the
fullest is taken: the loss, the backward pass of a layer with all activations in flight, and the
reduction of gradients at the end.

Elements have two bytes where nothing else is said.  ``own`` is a tensor ``[B, S/n, D]`` of this
rank's tokens, ``joined`` the same gathered over tensor-parallel ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from krzem.cost.memory import MemoryBytes, RankBytes
from krzem.cost.stages import in_flight, is_schedule, stages
from krzem.layout.layout import RECOMPUTES, Layouts, Precision, Recompute, Schedule
from krzem.model.architecture import Architecture, Attention, AttentionKind, FeedForward
from krzem.model.table import ModelTable

Array = Any
_PIECE = 2.0**25
_ROWS = 256.0
"""Logits of a piece of the loss, and its tokens at least (train/model/transformer.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """Tokens of a micro-batch on one rank, and the residual stream in bytes."""

    tp: Array
    gathered: Array
    """Of one context-parallel part."""
    own: Array
    own_bytes: Array
    joined: Array
    """Equal to ``own_bytes`` where nothing is gathered."""
    extra: Array
    """What gathering makes: 0 without tensor parallelism."""
    angles: float
    """Cosines and sines of rotations, for each micro-batch under way."""


def _tokens(arch: Architecture, sequence: int, x: Layouts) -> _Tokens:
    tp = x.tp.astype(float)
    m = x.micro_batch * float(sequence) / x.cp
    own, joined = 2.0 * m / tp * arch.hidden, 2.0 * m * arch.hidden
    attentions = [run.layer.attention for run in arch.runs]
    return _Tokens(
        tp=tp,
        gathered=m,
        own=m / tp,
        own_bytes=own,
        joined=joined,
        extra=np.where(tp > 1, joined, 0.0),
        angles=4.0 * sequence * max(a.rope_dim or a.head_dim for a in attentions),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One half of a layer: attention or network, with its norm, in bytes."""

    kept: Array
    """For its backward pass, when nothing is computed again."""
    products: Array
    """Of it, what ``recompute=modules`` keeps."""
    core: Array
    """Of it, what ``recompute=attention`` computes again."""
    more: Array
    """At the fullest moment of its backward pass, beside ``kept``."""


def _grouped(a: Attention, k: _Tokens) -> _Part:
    """Grouped queries (train/model/block.py): the gathered input, rotated queries and keys,
    values, what the core gives; with norms on heads also what these read."""
    m = 2.0 * k.gathered
    heads = np.maximum(a.kv_heads / k.tp, 1.0)
    q, key, value = m * a.heads * a.head_dim / k.tp, m * heads * a.head_dim, m * heads * a.value_dim
    out = m * a.heads * a.value_dim / k.tp + 4.0 * k.gathered * a.heads / k.tp
    normed = q + key if a.qk_norm else 0.0
    read: Array = np.where(k.tp > 1, k.joined, k.own_bytes)
    return _Part(
        kept=read + normed + q + key + value + out,
        products=q + key + value + out,
        core=out,
        more=k.own_bytes + k.extra + 2.0 * q + key + value + out,
    )


def _latent(a: Attention, k: _Tokens) -> _Part:
    """Latent attention (train/model/block.py): latents before and after their norms, queries, keys
    and values padded to the width of keys, what the core gives, and its part as wide as values."""
    m, rank, rope = 2.0 * k.gathered, a.kv_lora_rank or 0, a.rope_dim or 0
    down = (a.q_lora_rank or 0) + rank + rope
    after = np.where(k.tp > 1, m * down, 2.0 * k.own * (down - rope))
    latents = 2.0 * k.own * down + after
    wide = m * a.heads * a.head_dim / k.tp
    narrow = m * a.heads * a.value_dim / k.tp
    sums = 4.0 * k.gathered * a.heads / k.tp
    up = m * a.heads * (a.head_dim - rope + a.value_dim) / k.tp
    return _Part(
        kept=k.own_bytes + latents + 4.0 * wide + narrow + sums,
        products=2.0 * k.own * down + wide + up + wide + sums + narrow,
        core=wide + sums,
        more=k.own_bytes + 4.0 * wide + narrow,
    )


_ATTENTION = {AttentionKind.GROUPED: _grouped, AttentionKind.LATENT: _latent}
"""Kinds whose tensors are counted; others (DeepSeek-V4's) take the general formulas."""


def _dense(f: FeedForward, arch: Architecture, k: _Tokens) -> _Part:
    """A gated network: its input, both products, the activation and what it makes of them.

    Backward, fullest where the gradient of what it made is known, where those of both products are,
    or where those of all weights are.
    """
    read: Array = np.where(k.tp > 1, k.joined, k.own_bytes)
    wide = 2.0 * k.gathered * f.width / k.tp
    matrix = 2.0 * arch.hidden * f.width / k.tp
    made = matrix + np.maximum(wide + k.extra, 2.0 * wide)
    return _Part(
        kept=read + 4.0 * wide,
        products=2.0 * wide,
        core=0.0,
        more=np.maximum(made, 3.0 * matrix + 2.0 * read - 3.0 * wide),
    )


def _mixture(f: FeedForward, arch: Architecture, k: _Tokens, x: Layouts) -> _Part:
    """Routed and shared experts (train/model/mixture.py).

    Rows are kept as experts read them and as they come back.  Backward, fullest where those that
    came back are put into their places, or where the gradients of all weights are known.  Routers
    read 32 bits.
    """
    choices = k.own * f.experts_per_token
    hidden = f.input_width or arch.hidden
    rows, inner = 2.0 * choices * hidden, 2.0 * choices * f.width
    router = 4.0 * k.own * arch.hidden + 8.0 * k.own * f.experts + 40.0 * choices
    shared = 2.0 * k.gathered * f.shared_width / k.tp
    # The norm's output is kept for the shared expert alone: routers keep it in 32 bits.
    read = np.where(k.tp > 1, k.joined, k.own_bytes) if f.shared_width else 0.0
    here = rows * x.etp
    matrices = 6.0 * f.experts / x.ep * hidden * f.width / x.etp
    return _Part(
        kept=read + router + here + 4.0 * inner + rows + 4.0 * shared,
        products=3.0 * inner + here + 3.0 * shared,
        core=0.0,
        more=np.maximum(k.own_bytes + here, matrices + here - 4.0 * inner),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """A layer with a dense network or a mixture, in bytes for a micro-batch."""

    kept: Array
    """From the forward to the backward pass, as it is recomputed."""
    work: Array
    """Beside that, at the fullest moment of its backward pass."""
    weights: Array
    """Elements of all its weights on this rank, before FSDP cuts them."""
    unit: Array
    """Bytes that the reduction of its largest unit of FSDP takes beside what it reduces."""


def _layer(
    attention: _Part, network: _Part, weights: tuple[Array, Array], x: Layouts, k: _Tokens
) -> _Layer:
    """``weights``: elements of all but routed experts, and of these."""
    whole = k.own_bytes * 2.0 + attention.kept + network.kept
    full = x.recompute == RECOMPUTES.index(Recompute.FULL)
    core = x.recompute == RECOMPUTES.index(Recompute.ATTENTION)
    some = x.recompute == RECOMPUTES.index(Recompute.MODULES)
    kept = np.where(core, whole - attention.core, whole)
    kept = np.where(some, k.own_bytes + attention.products + network.products, kept)
    kept = np.where(full, k.own_bytes, kept)
    at_network = whole + network.more
    at_attention = whole - network.kept + attention.more
    every = weights[0] + weights[1]
    plain = np.where(x.zero == 0, 2.0 * every, 0.0)  # Weights are rounded by each pass itself.
    kept = kept + np.where(full, 0.0, plain)
    again = np.where(full, plain, 0.0)
    work = np.maximum(at_network, at_attention) + again - kept
    # A unit lets its gathered weights go, and copies its gradients to be sent.  On one rank alone
    # there are three copies in the place of one, after the layer's other unit is done.
    alone = x.tp * x.cp * x.dp <= x.ep * x.etp
    experts = np.where(alone, 6.0 * (weights[1] - weights[0]), 2.0 * weights[1])
    unit = np.maximum(2.0 * weights[0], experts)
    return _Layer(kept=kept, work=work, weights=every, unit=unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ends:
    """The embedding and the output matrix on this rank, elements, and what the loss makes."""

    embedding: Array
    head: Array
    loss: Array
    """Bytes while the loss is computed."""
    mtp: int


def _ends(arch: Architecture, t: ModelTable, x: Layouts, k: _Tokens) -> _Ends:
    embedding = t.embedding_params / k.tp
    head = np.maximum(t.head_params, t.embedding_params) / k.tp
    vocab = arch.vocab / k.tp
    rows = np.minimum(k.gathered, np.maximum(_ROWS, np.floor(_PIECE / vocab)))
    # The gradient of the output matrix in 32 bits and a piece's part of it; logits of the piece
    # and their gradient; that of the input, and the input.
    loss = 6.0 * head + 4.0 * rows * vocab + k.joined + k.extra + k.own_bytes
    return _Ends(embedding=embedding, head=head, loss=loss, mtp=arch.mtp_layers)


def _weights(t: ModelTable, x: Layouts) -> tuple[Array, Array, Array]:
    """Elements of a dense layer, of a mixture's without experts, and of a layer's experts."""
    tp = x.tp.astype(float)
    attention = t.attention_split / tp + t.attention_whole + t.norm_params
    dense = attention + t.dense_params / tp
    mixture = attention + t.shared_params / tp + t.router_params
    return dense, mixture, t.expert_params / (x.ep * x.etp)


def is_counted(arch: Architecture, precision: Precision) -> bool:
    """Whether every tensor of the trainer's step with this model is known here."""
    layers = [run.layer for run in arch.runs]
    known = all(x.attention.kind in _ATTENTION and x.recurrence is None for x in layers)
    return known and arch.hyper_connections == 1 and precision is Precision.BF16


def trainer_bytes(
    arch: Architecture, t: ModelTable, x: Layouts, global_batch: Array, states: MemoryBytes
) -> MemoryBytes:
    """Bytes of the first, the fullest middle and the last pipeline rank of ``krzem train``.

    ``states`` says weights, gradients and optimizer states, which are as other engines have them.
    """
    k = _tokens(arch, int(t.sequence), x)
    s, ends = stages(t, x), _ends(arch, t, x, k)
    dense, moe = _layers(arch, t, x, k)
    count = np.maximum(global_batch / (x.dp * x.micro_batch), 1.0)
    alone = x.pp <= 1
    # In a V the first rank holds both ends, and the last one the middle.
    turned = is_schedule(x.schedule, Schedule.ZB_V, Schedule.DUALPIPE_V) & ~alone
    rank = np.minimum(1.0, x.pp - 1.0)
    first = _rank(x, k, ends, dense, moe, (s.first_dense, s.first_moe, 0.0, count), alone | turned)
    middle = _rank(x, k, ends, dense, moe, (s.middle_dense, s.middle_moe, rank, count), False)
    last = _rank(
        x, k, ends, dense, moe, (s.last_dense, s.last_moe, x.pp - 1.0, count), ~alone & ~turned
    )
    return MemoryBytes(
        first=_filled(states.first, first, x),
        middle=_filled(states.middle, middle, x),
        last=_filled(states.last, last, x),
    )


def _filled(states: RankBytes, rank: tuple[Array, Array], x: Layouts) -> RankBytes:
    # Without FSDP there is one copy of the weights, in 32 bits.
    plain = x.zero == 0
    return RankBytes(
        weights=np.where(plain, 0.0, states.weights),
        gradients=states.gradients,
        optimizer=states.optimizer,
        activations=rank[0],
        transient=rank[1],
    )


def _layers(
    arch: Architecture, t: ModelTable, x: Layouts, k: _Tokens
) -> tuple[_Layer, _Layer | None]:
    """A mean dense layer and a mean mixture; attention is that of the mean layer."""
    kinds = [(run.layer, run.count) for run in arch.runs]
    dense_w, moe_w, expert_w = _weights(t, x)

    def mean(sparse: bool) -> _Layer | None:
        own = [(layer, n) for layer, n in kinds if layer.feed_forward.is_moe is sparse]
        if not own:
            return None
        total = sum(n for _, n in own)
        weights = (moe_w, expert_w) if sparse else (dense_w, 0.0 * dense_w)
        found = []
        for layer, n in own:
            attention = _ATTENTION[layer.attention.kind](layer.attention, k)
            f = layer.feed_forward
            network = _mixture(f, arch, k, x) if sparse else _dense(f, arch, k)
            found.append((_layer(attention, network, weights, x, k), n / total))
        return _Layer(
            kept=sum(layer.kept * share for layer, share in found),
            work=np.max([layer.work for layer, _ in found], axis=0),
            weights=found[0][0].weights,
            unit=found[0][0].unit,
        )

    sparse, dense = mean(True), mean(False)
    dense = dense or sparse
    assert dense is not None
    return dense, sparse


def _rank(
    x: Layouts,
    k: _Tokens,
    ends: _Ends,
    dense: _Layer,
    moe: _Layer | None,
    place: tuple[Array, Array, Array, Array],
    predicts: Array,
) -> tuple[Array, Array]:
    """Bytes of activations and transient ones of a pipeline rank.

    ``place``: its layers with dense networks and with mixtures, its place in the pipe, and the
    micro-batches of a step; ``predicts``: it computes the loss.
    """
    n_dense, n_moe, rank, count = place
    predicts = np.asarray(predicts)
    mtp = np.where(predicts, float(ends.mtp), 0.0)
    sparse = moe if moe is not None else dense
    more_dense, more_moe = (0.0, mtp) if moe is not None else (mtp, 0.0)
    kept = (n_dense + more_dense) * dense.kept + (n_moe + more_moe) * sparse.kept
    # A module joins two normed inputs and norms what its layer gives.
    kept = kept + mtp * 7.0 * k.own_bytes
    kept = kept + np.where(predicts, k.own_bytes + k.joined, 0.0)
    handed = np.where((x.pp > 1) & ~predicts, k.own_bytes * x.vpp, 0.0)
    flying = in_flight(x.schedule, x.pp, x.vpp, rank, count)
    handed = handed + k.angles
    routed = n_moe + more_moe > 0
    work = np.where(routed, sparse.work, dense.work)
    received = np.where((x.pp > 1) & ~predicts, k.own_bytes, 0.0)
    weights: Array = np.where(routed, sparse.weights, dense.weights)
    cut = (x.zero >= 3) & (x.dp * x.cp > 1)
    whole = np.where(cut, 2.0 * (ends.embedding + ends.head), 0.0) * (x.pp <= 1)
    # This layer and the next gathered, and the gradient of the one before on its way.
    gathered = whole + np.where(cut, 8.0 * weights, 0.0)
    held = np.where(predicts, 2.0 * ends.head * (1.0 + (mtp > 0)), 0.0)
    backward = work + received + held + gathered
    loss = np.where(predicts, ends.loss + 2.0 * ends.head * mtp + whole, 0.0)
    loss = loss + np.where(predicts & (x.zero == 0), 2.0 * ends.head, 0.0)
    activations = flying * (kept + handed)
    # At the end gradients that stayed whole are reduced, unit by unit.
    whole_gradients = (x.zero >= 1) & ((x.pp > 1) | ((x.zero <= 1) & (count > 1.0)))
    end = 2.0 * np.where(rank == 0.0, ends.embedding, np.where(predicts, ends.head, 0.0))
    reduced = np.maximum(end, np.where(routed, sparse.unit, dense.unit)) - activations
    moments = np.maximum(np.maximum(backward, loss), np.where(whole_gradients, reduced, 0.0))
    return activations, moments
