"""Bytes on one device, pipeline rank by pipeline rank, for arrays of layouts.

Counts what a fused engine keeps: weights, gradients, optimiser states as ZeRO shards them;
activations saved for the backward pass as recomputation leaves them, times the micro-batches a
schedule has in flight; the output logits; the largest transient buffers.  What the allocator and
the communication library hold beside that is not predicted byte by byte: it is a distribution
(:data:`RESERVE_BYTES`), so that a layout *probably* fits.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import sqrt
from typing import Any

import numpy as np

from krzem.cost.schedule import in_flight, joined_ends, weight_copies
from krzem.cost.stages import stages
from krzem.layout.arrays import RECOMPUTES, Layouts
from krzem.layout.layout import Recompute
from krzem.layout.precision import Precision
from krzem.model.table import ModelTable

Array = Any

RESERVE_BYTES = 1.6e9
"""Median of what context, communication buffers and fragmentation take beside tensors."""
FRAGMENTATION = 0.01
"""Median share of the tensors lost to fragmentation."""
CONTEXT_BYTES = 6.4e9
"""Median of what the device's own tool counts too: the driver's context with all kernels loaded
(about 2 GB) and the buffers of a run's six to eight communicators (half a GB each)."""
CACHED = 0.08
"""Median share of the tensors that a caching allocator holds where memory is not short."""
SPREAD = 0.035
"""Standard deviation of the relative error of the tensor bytes."""
RESERVE_SPREAD = 1.2e9


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSizes:
    """What an engine keeps (floats or arrays); bytes per parameter unless said otherwise."""

    weight: Array
    gradient: Array
    optimizer: Array
    """Master weights and moments."""
    logit: Array = 6.0
    """Per logit at the peak: 6 where loss and gradient are fused, up to 14 where they are not."""
    stored: Array = 2.0
    """Per element of saved gate inputs and attention outputs (1.25 where kept in scaled fp8)."""
    buckets: Array = 0.0
    """Bytes (not per parameter) that the engine sets aside for communication buckets."""
    whole: Array = 0.0
    """1 where sharded gradients stay whole between micro-batches (no_sync), else 0."""
    held: Array = 0.0
    """Of gradients that stay whole (0: as ``gradient``)."""
    scratch: Array = 2.0
    """Per weight of one layer: products for weight gradients before they are added up."""
    gathered: Array = 2.0
    """Of weights gathered for the products under ZeRO-3."""
    gather: Array = 6.0
    """Of the layer at work under ZeRO-3: two layers of weights and one of gradients, or more."""
    stay: Array = 0.0
    """1 where sharded weights stay gathered between the micro-batches of a pipeline."""
    ends: Array = 0.0
    """1 where ZeRO-3 gathers embedding and output matrix whole, beside the layers, and the output
    matrix has its gradient in a tensor of its own."""
    copies: Array = 0.0
    """Of a layer's matrices: 8-bit copies and their transposes, beside the weights."""
    squeeze: Array = 1.0
    """Share of ``weight`` that the layers' matrices take (a base in 4 bits: about a quarter)."""
    norm: Array = 0.0
    """Per element that a norm reads, beyond a fused one: 32-bit copies that eager code saves."""
    gate: Array = 0.0
    """Per element of inner width, beyond a fused gate: what eager activation functions save."""
    wide: Array = 0.0
    """1 where keys and values are saved once per query head."""
    whole_logits: Array = 0.0
    """1 where every tensor-parallel rank holds the logits of the whole vocabulary."""
    lazy: Array = 0.0
    """1 where gradients come into being in the backward pass, as activations go."""
    step: Array = 0.0
    """Temporaries of the optimiser's step, cut as the states are."""
    least_stage: Array = 0.0
    """ZeRO stage that the engine uses at least (DeepSpeed's bf16 optimiser: 1)."""
    rank: Array = 0.0
    """Rank of adapters; 0 where the weights themselves are trained."""
    adapter: Array = 16.0
    """Of adapters, with gradients and states."""
    products: Array = 0.0
    """Share of each layer's products whose results partial recomputation keeps; 0 where it
    runs some layers again and others not at all."""
    dispatched: Array = 0.0
    """1 where it keeps what expert dispatch brought, too."""
    host: Array = 0.0
    """Share of the saved activations that waits in host memory."""
    skew: Array = 0.0
    """Excess of the expert tokens on the fullest rank over the mean, in the layer at work."""


def low_bytes(precision: Precision) -> float:
    """Bytes per element of inputs that products keep for their weight gradients."""
    return {"fp8": 1.0, "fp4": 1.0}.get(precision.arithmetic, 2.0)


def stored_bytes(precision: Precision) -> float:
    """:attr:`StateSizes.stored` of a precision: DeepSeek's recipe keeps these in scaled fp8."""
    return 1.25 if precision is Precision.FP8_BLOCK else 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RankBytes:
    """Bytes on one pipeline rank, arrays ``[N]``."""

    weights: Array
    gradients: Array
    optimizer: Array
    activations: Array
    transient: Array
    """Logits, unsharded weights of the layer at work, dispatch buffers, one recomputed layer."""

    @property
    def total(self) -> Array:
        """Tensor bytes, without the reserve of allocator and libraries."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.transient


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBytes:
    """The three kinds of pipeline rank."""

    first: RankBytes
    middle: RankBytes
    last: RankBytes
    pools: Array = 0.0
    """Gradients that a caching allocator cannot put where activations were: those of sharded
    weights are made on the stream of their reduction, whose pool is its own."""

    @property
    def tensors(self) -> Array:
        """Tensor bytes of the fullest rank."""
        return np.maximum(np.maximum(self.first.total, self.middle.total), self.last.total)

    @property
    def peak(self) -> Array:
        """Median of what the device must have, with a tight allocator."""
        return self.tensors * (1.0 + FRAGMENTATION) + RESERVE_BYTES

    @property
    def reserved(self) -> Array:
        """Median of what a caching allocator holds."""
        return self.peak + self.pools

    @property
    def shown(self) -> Array:
        """Median of what the device's own tool shows: pages that a caching allocator keeps too."""
        return self.tensors * (1.0 + CACHED) + RESERVE_BYTES + CONTEXT_BYTES


def memory_bytes(
    t: ModelTable,
    x: Layouts,
    sizes: StateSizes,
    low_bytes: Array,
    global_batch: Array,
    unfused: Array,
) -> MemoryBytes:
    """Bytes of the first, the fullest middle and the last pipeline rank."""
    s = stages(t, x)
    m = np.maximum(global_batch / (x.dp * x.micro_batch), 1.0)
    layer = _layer_activations(t, x, low_bytes, unfused, sizes)
    whole = x.pp <= 1
    ends = _ends(t, x, sizes)
    first, pools = _rank(t, x, sizes, s.first, s.first_moe, 0.0, m, layer, ends.embed(whole))
    rank = np.minimum(1.0, x.pp - 1.0)
    middle, _ = _rank(t, x, sizes, s.middle, s.middle_moe, rank, m, layer, ends.none())
    last, _ = _rank(t, x, sizes, s.last, s.last_moe, x.pp - 1.0, m, layer, ends.head(whole))
    return _mirrored(x, first, middle, last, pools)


def _mirrored(
    x: Layouts, first: RankBytes, middle: RankBytes, last: RankBytes, pools: Array
) -> MemoryBytes:
    """The ranks as schedules that run through a pipe in both directions fill them."""
    front, back = {}, {}
    for item in fields(RankBytes):
        three = [getattr(rank, item.name) for rank in (first, middle, last)]
        ends = joined_ends(x.schedule, *three)
        front[item.name] = np.where(x.pp > 1, ends[0], three[0])
        back[item.name] = np.where(x.pp > 1, ends[1], three[2])
    return MemoryBytes(first=RankBytes(**front), middle=middle, last=RankBytes(**back), pools=pools)


def fits_probability(memory: MemoryBytes, capacity: Array) -> Array:
    """Chance that the fullest rank stays within ``capacity`` bytes (normal error)."""
    mean = memory.peak
    sigma = np.sqrt((SPREAD * memory.tensors) ** 2 + RESERVE_SPREAD**2)
    return normal_cdf((capacity - mean) / sigma)


def normal_cdf(z: Array) -> Array:
    """Standard normal distribution function (Abramowitz and Stegun 26.2.17, error < 1e-7)."""
    a = np.abs(z)
    k = 1.0 / (1.0 + 0.2316419 * a)
    poly = k * (0.319381530 + k * (-0.356563782 + k * (1.781477937 + k * (
        -1.821255978 + k * 1.330274429))))  # fmt: skip
    tail = np.exp(-0.5 * a * a) / sqrt(2.0 * np.pi) * poly
    return np.where(z >= 0, 1.0 - tail, tail)


@dataclass(frozen=True, slots=True)
class _Saved:
    """Activation bytes of one layer and micro-batch by recomputation, and its working set."""

    dense: Array
    moe: Array
    dense_kept: Array
    moe_kept: Array
    dense_partly: Array
    """What partial recomputation leaves where it keeps every second product."""
    moe_partly: Array
    boundary: Array
    skew: Array
    """What the fullest rank holds more while it works on a layer of experts."""
    turned: Array
    """Gradients of the gate's inputs, beside what the recomputed layer holds."""


def _layer_activations(
    t: ModelTable, x: Layouts, low: Array, unfused: Array, sizes: StateSizes
) -> _Saved:
    tp = x.tp.astype(float)
    stored = sizes.stored
    m = x.micro_batch * t.sequence / x.cp
    own = m / np.where(x.sequence_parallel > 0, tp, 1.0)
    cut = m / tp
    h = t.hidden
    low = np.minimum(low, 2.0)
    norm = own * h * (2.0 + low + sizes.norm)
    heads = t.heads / tp
    pairs = np.maximum(t.kv_width, sizes.wide * (t.q_width + t.o_width))
    qkv = 2.0 * cut * (t.q_width + pairs)
    latent = np.where(np.asarray(t.latent_width) > 0, 4.0 * own * t.latent_width, 0.0)
    # The core keeps its output; a product in low precision keeps its own copy of it.
    out = cut * t.o_width * np.where((low < 2.0) & (stored >= 2.0), 3.0, stored)
    scores = unfused * 5.0 * heads * m * t.sequence
    attention = norm + qkv + latent + out + 4.0 * m * heads + scores
    streams = np.where(t.streams > 1, 2.0 * t.streams * own * h * 2.0, 0.0)
    dense = norm + cut * (stored * t.dense_up + (low + sizes.gate) * t.dense_width)
    # Dropout masks and unfused biases of engines before fused attention.
    dense = dense + unfused * (2.0 * own * h + 2.0 * cut * t.dense_width)
    picked = cut * t.experts_per_token * x.etp
    expert = (stored * t.expert_up + (low + sizes.gate) * t.expert_width) / x.etp
    routed = picked * ((low + sizes.norm) * h + expert)
    moe = norm + routed + cut * t.experts * 8.0
    moe = moe + cut * (stored * t.shared_up + (low + sizes.gate) * t.shared_width)
    boundary = 2.0 * own * h * t.streams
    core = scores
    cheap_a = 0.5 * norm + np.where(np.asarray(t.latent_width) > 0, qkv, 0.0)
    low = low + sizes.gate
    cheap_d = 0.5 * norm + low * cut * t.dense_width
    cheap_m = 0.5 * norm + low * (picked * t.expert_width / x.etp + cut * t.shared_width)
    kind = x.recompute
    attn = kind == RECOMPUTES.index(Recompute.ATTENTION)
    mods = kind == RECOMPUTES.index(Recompute.MODULES)
    saved = np.where(attn, core, np.where(mods, cheap_a, 0.0))
    part = np.asarray(sizes.products)
    own_part = boundary + cut * 2.0 * (t.q_width + part * t.kv_width + t.o_width)
    own_part = own_part + 2.0 * own * h * np.maximum(2.0 * part - 1.0, 0.0)
    grouped = picked * np.maximum(2.0 * part - 1.0, 0.0) * 2.0 * (t.expert_up / x.etp + h)
    sent = np.where(x.ep > 1, sizes.dispatched * 4.0 * picked * h, 0.0)
    return _Saved(
        dense=attention + dense + streams,
        moe=attention + moe + streams,
        dense_kept=attention + dense + streams - saved - np.where(mods, cheap_d, 0.0),
        moe_kept=attention + moe + streams - saved - np.where(mods, cheap_m, 0.0),
        dense_partly=own_part + cut * 2.0 * (part * t.dense_up + h),
        moe_partly=own_part + cut * 2.0 * part * t.shared_up + grouped + sent,
        boundary=boundary,
        skew=np.where(x.ep > 1, sizes.skew * routed, 0.0),
        turned=2.0 * cut * t.dense_up,
    )


@dataclass(frozen=True, slots=True)
class _End:
    """What the first and last rank hold beside layers."""

    params: Array
    activations: Array
    transient: Array
    mtp: Array


@dataclass(frozen=True, slots=True)
class _Ends:
    embed_params: Array
    head_params: Array
    logits: Array
    embed_activations: Array
    mtp: Array
    mtp_params: Array

    def none(self) -> _End:
        return _End(0.0, 0.0, 0.0, 0.0)

    def embed(self, whole: Array) -> _End:
        """The first rank; the only one holds the output matrix too."""
        head = np.where(whole, self.head_params, 0.0)
        return _End(
            self.embed_params + head + np.where(whole, self.mtp_params, 0.0),
            self.embed_activations,
            np.where(whole, self.logits, 0.0),
            np.where(whole, self.mtp, 0.0),
        )

    def head(self, whole: Array) -> _End:
        """The last rank of several (tied embeddings are held there a second time)."""
        own = np.where(self.head_params > 0, self.head_params, self.embed_params)
        mtp_embed = np.where(self.mtp > 0, self.embed_params, 0.0)
        params = np.where(whole, self.embed_params + self.head_params, own + mtp_embed)
        return _End(params + self.mtp_params, 0.0, self.logits, self.mtp)


def _ends(t: ModelTable, x: Layouts, sizes: StateSizes) -> _Ends:
    tp = x.tp.astype(float)
    m = x.micro_batch * t.sequence / x.cp
    own = m / np.where(x.sequence_parallel > 0, tp, 1.0)
    each = m * t.vocab / np.where(np.asarray(sizes.whole_logits) > 0, 1.0, tp)
    matrix = np.maximum(t.head_params, t.vocab * t.hidden) / tp
    # Either the loss at work, or the output matrix at work on its own gradient.
    after = np.minimum(sizes.logit, 2.0) * each + 2.0 * sizes.ends * matrix
    logits = np.maximum(sizes.logit * each, after)
    return _Ends(
        embed_params=t.embedding_params / tp,
        head_params=t.head_params / tp,
        logits=logits,
        embed_activations=2.0 * own * t.hidden,
        mtp=np.asarray(t.mtp_layers) * np.ones_like(tp),
        mtp_params=t.mtp_layers * t.mtp_params / tp,
    )


def _rank(
    t: ModelTable,
    x: Layouts,
    sizes: StateSizes,
    layers: Array,
    moe_layers: Array,
    rank: Array,
    m: Array,
    saved: _Saved,
    end: _End,
) -> tuple[RankBytes, Array]:
    tp = x.tp.astype(float)
    moe = moe_layers + np.where(np.asarray(t.experts) > 0, end.mtp, 0.0)
    dense = layers - moe_layers + np.where(np.asarray(t.experts) > 0, 0.0, end.mtp)
    count = dense + moe
    params = count * (t.attention_split / tp + t.attention_whole + t.norm_params)
    params = params + dense * t.dense_params / tp
    params = params + moe * (t.shared_params / tp + t.router_params)
    expert = moe * t.expert_params / (x.ep * x.etp)
    several = m > 1.0
    weights, gradients, optimizer, step = _states(
        t, x, sizes, params, expert, end.params, count, several
    )
    flying = in_flight(x.schedule, x.pp, x.vpp, rank, m)
    asked = np.minimum(x.recompute_layers / np.maximum(layers, 1.0), 1.0)
    share = np.where(x.recompute_layers < 0, 1.0, asked)
    share = np.where(x.recompute == RECOMPUTES.index(Recompute.FULL), share, 0.0)
    partly = np.asarray(sizes.products) * ((share > 0.0) & (share < 1.0))
    kept = (1.0 - share) * (dense * saved.dense_kept + moe * saved.moe_kept)
    kept = kept + share * count * saved.boundary
    kept = np.where(partly > 0, dense * saved.dense_partly + moe * saved.moe_partly, kept)
    kept = kept * (1.0 - sizes.host)
    layer = np.where(moe > 0, saved.moe, saved.dense)
    left = np.where(moe > 0, saved.moe_kept, saved.dense_kept)
    again = layer - np.where(share > 0, saved.boundary, left)
    again = again + np.where(moe > 0, saved.skew, np.where(share > 0, saved.turned, 0.0))
    sharded = (x.zero == 3) & (x.dp * x.cp > 1)
    unsharded = np.where(sharded, _gathered(t, x, sizes, moe), 0.0)
    split = t.attention_split + np.where(moe > 0, t.shared_params, t.dense_params)
    fixed = sizes.scratch * split / tp + sizes.buckets
    ends = np.where(sharded, sizes.ends * sizes.gathered * end.params, 0.0)
    copies = weight_copies(x.schedule)
    gradients = gradients * copies
    activations = flying * kept + end.activations * flying
    working = again + unsharded + fixed
    transient = np.maximum(end.transient + ends + fixed, working)
    # Gradients that come as activations go: at the first all of these, at the end all of those.
    apart = (np.asarray(sizes.lazy) > 0) & ~several & (x.pp <= 1)
    early = np.where(apart, 0.0, gradients)
    begins = early + activations + transient
    ending = np.where(apart, gradients + working, 0.0)
    updating = gradients + step >= np.maximum(begins, ending)
    ends_it = ~updating & (ending > begins)
    found = RankBytes(
        weights=weights * copies,
        gradients=np.where(updating | ends_it, gradients, early),
        optimizer=np.where(x.offload_optimizer > 0, 0.0, optimizer * copies),
        activations=np.where(updating | ends_it, 0.0, activations),
        transient=np.where(updating, step, np.where(ends_it, working, transient)),
    )
    return found, np.where(sharded, gradients - found.gradients, 0.0)


def _states(
    t: ModelTable,
    x: Layouts,
    sizes: StateSizes,
    params: Array,
    expert: Array,
    ends: Array,
    count: Array,
    several: Array,
) -> tuple[Array, Array, Array, Array]:
    """Weights, gradients, optimiser states and its temporaries after ZeRO sharding."""
    whole = (x.dp * x.cp).astype(float)
    group = np.where(x.shard > 0, np.minimum(x.shard, whole), whole)
    edp = np.maximum(x.tp * x.cp * x.dp / (x.ep * x.etp), 1.0)
    body, both = params + expert, params + expert + ends
    by = np.where(x.zero == 3, group, whole)
    cut = (params + ends) / by + expert / edp
    weights = sizes.weight * np.where(x.zero >= 3, cut, both)
    if np.any(np.asarray(sizes.stay) > 0):
        stays = (x.zero == 3) & (x.pp > 1)
        shared = np.where(whole > 1, params + ends, 0.0) + np.where(edp > 1, expert, 0.0)
        weights = weights + np.where(stays, sizes.stay * sizes.gathered * shared, 0.0)
    gradients = sizes.gradient * np.where(x.zero >= 2, cut, both)
    if np.any(np.asarray(sizes.whole) > 0):
        held = np.where(np.asarray(sizes.held) > 0, sizes.held, sizes.gradient) * both
        gradients = np.where((x.zero >= 2) & several & (sizes.whole > 0), held, gradients)
    if np.any(np.asarray(sizes.squeeze) < 1.0) or np.any(np.asarray(sizes.copies) > 0):
        matrices = np.where(x.zero >= 3, params / by + expert / edp, body)
        weights = weights - (1.0 - sizes.squeeze) * sizes.weight * matrices
        weights = weights + np.where(x.zero >= 3, 0.0, sizes.copies * body)
    sharded = np.maximum(x.zero, sizes.least_stage) >= 1
    optimizer = sizes.optimizer * np.where(sharded, cut, both)
    if np.any(np.asarray(sizes.rank) > 0):
        adapters = sizes.adapter * sizes.rank * _adapter_width(t) * count / x.tp
        optimizer = optimizer + adapters / np.where(x.zero >= 3, by, 1.0)
    return weights, gradients, optimizer, sizes.step * np.where(sharded, cut, both)


def _adapter_width(t: ModelTable) -> Array:
    """Inputs and outputs of a layer's matrices, which a rank of adapters multiplies.

    Experts are left out: adapters on them are rare.
    """
    split = np.asarray(t.proj_count) * (np.asarray(t.proj_k) + np.asarray(t.proj_n))
    dense = np.where(np.asarray(t.dense_up) > 0, 2.0 * t.hidden + t.dense_up + t.dense_width, 0.0)
    return split.sum(axis=0) + np.where(np.asarray(t.experts) > 0, 0.0, dense)


def _gathered(t: ModelTable, x: Layouts, sizes: StateSizes, moe: Array) -> Array:
    """The layer at work, whole: its weights, those of the next, its gradients."""
    tp = x.tp.astype(float)
    layer = t.attention_split / tp + t.attention_whole
    layer = layer + np.where(moe > 0, t.expert_params / (x.ep * x.etp), t.dense_params / tp)
    return layer * sizes.gather
