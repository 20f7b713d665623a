"""Bytes that one layer of krzem's own trainer holds, tensor by tensor.

A layer is two halves, attention and network, each with a norm and, in DeepSeek-V4, with
hyper-connections.  For each half: what it keeps for its backward pass, what of it the kinds of
recomputation keep or compute again, and what is beside it at the fullest moments of its backward
pass.  Elements have two bytes where nothing else is said.  The rehearsal
(:mod:`krzem.train.rehearsal`) shows these tensors by name and shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from krzem.layout.layout import RECOMPUTES, Layouts, Recompute
from krzem.model.architecture import Architecture, Attention, AttentionKind, FeedForward, Layer
from krzem.model.table import ModelTable

Array = Any
_BALANCING = 20.0
"""Sinkhorn steps of a hyper-connection (``hc_sinkhorn_iters`` of both published V4 configs)."""
_SINK = 8.0
"""Channels by which queries, keys and values are widened for sinks (train/ops/attention.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens of a micro-batch on one rank, and the residual in bytes.

    ``own`` is a tensor ``[B, S/n, D]`` of this rank's tokens, ``joined`` the same gathered over
    tensor-parallel ranks.
    """

    tp: Array
    cp: Array
    sequence: float
    """Tokens of a sequence."""
    whole: Array
    """Of the micro-batch."""
    gathered: Array
    """Of one context-parallel part."""
    own: Array
    own_bytes: Array
    joined: Array
    """Equal to ``own_bytes`` where nothing is gathered."""
    extra: Array
    """What gathering makes: 0 without tensor parallelism."""
    streams: float
    """Residual streams: the residual is so many times ``own_bytes``."""
    wide: float = 1.0
    """Bytes of an element over two: 2 in float32, whose layers are counted twice as large."""

    @property
    def residual(self) -> Array:
        """Bytes that a layer hands on."""
        return self.streams * self.own_bytes

    @property
    def projected(self) -> Array:
        """Results of the output projection that ``recompute=modules`` keeps: not partial ones."""
        return np.where(self.tp > 1, 0.0, self.own_bytes)

    @property
    def read(self) -> Array:
        """What the products of a half read: gathered where tensor parallelism cuts them."""
        return np.where(self.tp > 1, self.joined, self.own_bytes)


def tokens_of(arch: Architecture, sequence: int, x: Layouts, wide: float = 1.0) -> Tokens:
    """Of layouts ``x [N]``; ``own_bytes``, ``joined`` and ``extra`` of elements of two bytes."""
    tp = x.tp.astype(float)
    whole = x.micro_batch * float(sequence)
    m = whole / x.cp
    own, joined = 2.0 * m / tp * arch.hidden, 2.0 * m * arch.hidden
    return Tokens(
        tp=tp,
        cp=x.cp.astype(float),
        sequence=float(sequence),
        whole=whole,
        gathered=m,
        own=m / tp,
        own_bytes=own,
        joined=joined,
        extra=np.where(tp > 1, joined, 0.0),
        streams=float(arch.hyper_connections),
        wide=wide,
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


# Attention
# ---------


def _grouped(a: Attention, k: Tokens, _: Architecture) -> _Part:
    """Grouped queries (train/model/block.py): the gathered input, rotated queries and keys,
    values, what the core gives; with norms on heads also what these read."""
    m = 2.0 * k.gathered
    heads = np.maximum(a.kv_heads / k.tp, 1.0)
    q, key, value = m * a.heads * a.head_dim / k.tp, m * heads * a.head_dim, m * heads * a.value_dim
    out = m * a.heads * a.value_dim / k.tp + 4.0 * k.gathered * a.heads / k.tp
    # One vector a head, or one over all heads together (OLMo).
    normed = q + key if a.qk_norm or a.vectors >= a.heads * a.head_dim else 0.0
    return _Part(
        kept=k.read + normed + q + key + value + out,
        products=q + key + value + out + k.projected,
        core=out,
        more=k.own_bytes + k.extra + 2.0 * q + key + value + out,
    )


def _latent(a: Attention, k: Tokens, _: Architecture) -> _Part:
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
        products=2.0 * k.own * down + wide + up + wide + sums + k.projected,
        core=wide + sums,
        more=k.own_bytes + 4.0 * wide + narrow,
    )


def _shared_kv(a: Attention, k: Tokens, arch: Architecture) -> _Part:
    """DeepSeek-V4's (train/model/shared_kv.py): latents, queries before their norm and with a
    channel for sinks, keys that are values, a mask of numbers, what the core gives, the same
    rotated back, and the low-rank outputs of its groups.

    Backward, fullest where the kernel gives gradients of keys and values for each head.
    """
    m, width, latent = 2.0 * k.gathered, float(a.head_dim), float(a.q_lora_rank or 0)
    queries = m * a.heads * width / k.tp
    padded = m * a.heads * (width + _SINK) / k.tp
    sums = 4.0 * k.gathered * a.heads / k.tp
    rank = float(a.output_groups or 1) * (a.output_lora_rank or 0)
    low = m * rank / k.tp
    far = np.floor(k.sequence / a.compression) if a.compression else 0.0
    keys = k.sequence + far + 1.0
    mask = 2.0 * k.sequence * keys
    pairs = 4.0 * k.whole / k.sequence * keys * (width + _SINK)
    indexed = _indexed(a, k, far)
    again = 2.0 * k.own * latent if indexed else 0.0  # An indexer reads this rank's own.
    after = np.where(k.tp > 1, m * latent + again, 2.0 * k.own * latent)
    entries = _compressed(a.compression, width, k, overlap=a.indexer is not None)
    latents = 2.0 * k.own * (latent + width) + after
    small = entries[0] + _sum(indexed, 0)
    matrices = 2.0 * (a.heads * width / (a.output_groups or 1) * rank + rank * arch.hidden) / k.tp
    return _Part(
        kept=k.own_bytes
        + latents
        + 2.0 * queries
        + 2.0 * padded
        + sums
        + low
        + mask
        + pairs
        + small,
        products=2.0 * k.own * (latent + width)
        + queries
        + padded
        + sums
        + low
        + k.projected
        + entries[1]
        + _sum(indexed, 1),
        core=2.0 * padded - queries + sums + 0.5 * mask,
        more=2.0 * padded + pairs * a.heads / (k.tp * k.cp) + matrices - queries - low,
    )


def _sum(pair: tuple[Array, Array] | None, index: int) -> Array:
    return pair[index] if pair else 0.0


def _compressed(rate: int | None, width: float, k: Tokens, *, overlap: bool) -> tuple[Array, Array]:
    """What a compressor keeps (train/model/compressor.py), and its products.

    Windows of all tokens and their shares in 32 and in 16 bits; windows that overlap are copied
    twice as wide, others are seen in the joined products of values and gates.
    """
    if not rate:
        return 0.0, 0.0
    outputs = width * (2.0 if overlap else 1.0)
    return (16.0 if overlap else 10.0) * k.whole * width, 4.0 * k.own * outputs


def _indexed(a: Attention, k: Tokens, far: Array) -> tuple[Array, Array] | None:
    """What an indexer keeps: its queries, its compressor's windows, the logarithm of its choice,
    the attention that it learns from, and two masks; and its products."""
    i = a.indexer
    if i is None:
        return None
    queries = 2.0 * k.own * i.heads * i.head_dim
    windows, products = _compressed(a.compression, float(i.head_dim), k, overlap=True)
    weights = 2.0 * k.own * i.heads
    return queries + windows + weights + 10.0 * k.own * far, queries + weights + products


_ATTENTION = {
    AttentionKind.GROUPED: _grouped,
    AttentionKind.LATENT: _latent,
    AttentionKind.SHARED_KV: _shared_kv,
}


# Networks
# --------


def _dense(f: FeedForward, arch: Architecture, k: Tokens) -> _Part:
    """A gated network: its input, both products, the activation and what it makes of them.

    Backward, fullest where the gradient of what it made is known, where those of both products are,
    or where those of all weights are.
    """
    wide = 2.0 * k.gathered * f.width / k.tp
    matrix = 2.0 * arch.hidden * f.width / k.tp
    made = matrix + np.maximum(wide + k.extra, 2.0 * wide)
    return _Part(
        kept=k.read + 4.0 * wide,
        products=2.0 * wide,
        core=0.0,
        more=np.maximum(made, 3.0 * matrix + 2.0 * k.read - 3.0 * wide),
    )


def _mixture(f: FeedForward, arch: Architecture, k: Tokens, x: Layouts) -> _Part:
    """Routed and shared experts (train/model/mixture.py).

    Rows are kept as experts read them and as they come back.  Backward, fullest where those that
    came back are put into their places, or where the gradients of all weights are known.  Routers
    read 32 bits.  Gates and values that are cut off (DeepSeek-V4) are kept before and after.
    """
    cut_off = k.streams > 1
    choices = k.own * f.experts_per_token
    hidden = f.input_width or arch.hidden
    rows, inner = 2.0 * choices * hidden, 2.0 * choices * f.width
    scores = 12.0 if cut_off else 8.0
    router = 4.0 * k.own * arch.hidden * (k.wide == 1.0)  # In float32 it reads what is there.
    router = router + (scores * k.own * f.experts + 40.0 * choices) / k.wide
    shared = 2.0 * k.gathered * f.shared_width / k.tp
    # The norm's output is kept for the shared expert alone: routers keep it in 32 bits.
    read = k.read if f.shared_width else 0.0
    here = rows * x.etp
    matrices = 6.0 * f.experts / x.ep * hidden * f.width / x.etp
    made = 6.0 if cut_off else 4.0
    return _Part(
        kept=read + router + here + made * inner + rows + made * shared,
        products=2.0 * inner + here + 2.0 * shared + 4.0 * k.own * f.experts,
        core=0.0,
        more=np.maximum(k.own_bytes + here, matrices + here - made * inner),
    )


# A layer
# -------


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBytes:
    """A layer with a dense network or a mixture, in bytes for a micro-batch."""

    kept: Array
    """From the forward to the backward pass, as it is recomputed."""
    whole: Array
    """The same where nothing is."""
    work: Array
    """Beside ``kept``, at the fullest moment of its backward pass."""
    waits: Array
    """Gradients of results that wait for those of weights, where the two are computed apart."""
    dense: Array
    """Elements of its weights on this rank but routed experts, before FSDP cuts them."""
    experts: Array
    unit: Array
    """Bytes that the reduction of its largest unit of FSDP takes beside what it reduces."""

    @property
    def weights(self) -> Array:
        """All elements."""
        return self.dense + self.experts


def _connected(k: Tokens) -> Array:
    """What a half keeps for its hyper-connection (train/model/hyper.py): the streams collapsed,
    the half's output, and the steps that make the mixing matrix doubly stochastic."""
    if k.streams <= 1:
        return 0.0
    mixing = 4.0 * k.streams * (k.streams + 1.0) * 2.0 * _BALANCING
    return 2.0 * k.own_bytes + k.own * mixing


def layer_bytes(
    layer: Layer, arch: Architecture, t: ModelTable, x: Layouts, k: Tokens
) -> LayerBytes:
    """Of a layer whose own table is ``t``, as layouts ``x [N]`` recompute it."""
    f = layer.feed_forward
    attention = _ATTENTION[layer.attention.kind](layer.attention, k, arch)
    network = _mixture(f, arch, k, x) if f.is_moe else _dense(f, arch, k)
    streams = _connected(k)
    # Where streams are mixed, their gradient stands beside that of what is computed of them.
    beside = k.residual + k.own_bytes if k.streams > 1 else 0.0
    # Norms of what a half gives keep that.
    around = 2.0 * k.own_bytes if layer.norms > 2 and k.streams == 1 else 0.0
    whole = 2.0 * (k.residual + streams) + attention.kept + network.kept + around
    products = attention.products + network.products
    if k.streams > 1:
        products = products + 2.0 * (k.own_bytes + k.residual)
    dense, experts = layer_weights(t, x)
    kept, again = _kept(x, k, whole, whole - attention.core, products, dense + experts)
    at_network = whole + network.more + beside
    at_attention = whole - network.kept - streams + attention.more + beside
    plain = np.where(x.zero == 0, 2.0 * (dense + experts), 0.0) * (k.wide == 1.0)
    return LayerBytes(
        kept=k.wide * kept,
        whole=k.wide * (whole + plain),
        work=k.wide * (np.maximum(at_network, at_attention) + again - kept),
        # Of each product but the core's, of either norm, and what both output matrices read.
        waits=k.wide * (products - attention.core - k.projected + 2.0 * (k.own_bytes + k.read)),
        dense=dense,
        experts=experts,
        unit=_unit(x, dense, experts),
    )


def _kept(
    x: Layouts, k: Tokens, whole: Array, no_core: Array, products: Array, weights: Array
) -> tuple[Array, Array]:
    """Bytes kept between the passes, and what computing a layer again makes of its weights."""
    full = x.recompute == RECOMPUTES.index(Recompute.FULL)
    core = x.recompute == RECOMPUTES.index(Recompute.ATTENTION)
    some = x.recompute == RECOMPUTES.index(Recompute.MODULES)
    kept: Array = np.where(core, no_core, whole)
    kept = np.where(some, k.residual + products, kept)
    kept = np.where(full, k.residual, kept)
    # Weights are rounded by each pass itself.
    plain = np.where((x.zero == 0) & (k.wide == 1.0), 2.0 * weights, 0.0)
    return kept + np.where(full, 0.0, plain), np.where(full, plain, 0.0)


def layer_weights(t: ModelTable, x: Layouts) -> tuple[Array, Array]:
    """Elements of a layer on a rank: all but routed experts, and these; ``t`` is of it alone."""
    network = t.dense_params + t.shared_params
    dense = (t.attention_split + network) / x.tp + t.attention_whole + t.norm_params
    return dense + t.router_params, t.expert_params / (x.ep * x.etp) * np.ones(len(x))


def _unit(x: Layouts, dense: Array, experts: Array) -> Array:
    """A unit lets its gathered weights go, and copies its gradients to be sent.  On one rank alone
    there are three copies in the place of one, after the layer's other unit is done."""
    alone = x.tp * x.cp * x.dp <= x.ep * x.etp
    return np.maximum(2.0 * dense, np.where(alone, 6.0 * (experts - dense), 2.0 * experts))
