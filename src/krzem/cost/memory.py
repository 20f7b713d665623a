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
    """Bytes per parameter (floats or arrays)."""

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
    scratch: Array = 2.0
    """Per weight of one layer: products for weight gradients before they are added up."""


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

    @property
    def tensors(self) -> Array:
        """Tensor bytes of the fullest rank."""
        return np.maximum(np.maximum(self.first.total, self.middle.total), self.last.total)

    @property
    def peak(self) -> Array:
        """Median of what the device must have, with a tight allocator."""
        return self.tensors * (1.0 + FRAGMENTATION) + RESERVE_BYTES

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
    layer = _layer_activations(t, x, low_bytes, unfused, sizes.stored)
    whole = x.pp <= 1
    ends = _ends(t, x, sizes)
    first = _rank(t, x, sizes, s.first, s.first_moe, 0.0, m, layer, ends.embed(whole))
    rank = np.minimum(1.0, x.pp - 1.0)
    middle = _rank(t, x, sizes, s.middle, s.middle_moe, rank, m, layer, ends.none())
    last = _rank(t, x, sizes, s.last, s.last_moe, x.pp - 1.0, m, layer, ends.head(whole))
    return _mirrored(x, first, middle, last)


def _mirrored(x: Layouts, first: RankBytes, middle: RankBytes, last: RankBytes) -> MemoryBytes:
    """The ranks as schedules that run through a pipe in both directions fill them."""
    front, back = {}, {}
    for item in fields(RankBytes):
        three = [getattr(rank, item.name) for rank in (first, middle, last)]
        ends = joined_ends(x.schedule, *three)
        front[item.name] = np.where(x.pp > 1, ends[0], three[0])
        back[item.name] = np.where(x.pp > 1, ends[1], three[2])
    return MemoryBytes(first=RankBytes(**front), middle=middle, last=RankBytes(**back))


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
    boundary: Array


def _layer_activations(
    t: ModelTable, x: Layouts, low: Array, unfused: Array, stored: Array
) -> _Saved:
    tp = x.tp.astype(float)
    m = x.micro_batch * t.sequence / x.cp
    own = m / np.where(x.sequence_parallel > 0, tp, 1.0)
    h = t.hidden
    low = np.minimum(low, 2.0)
    norm = own * h * (2.0 + low)
    heads = t.heads / tp
    qkv = 2.0 * m * (t.q_width + t.kv_width) / tp
    latent = np.where(np.asarray(t.latent_width) > 0, 4.0 * own * t.latent_width, 0.0)
    # The core keeps its output; a product in low precision keeps its own copy of it.
    out = m * t.o_width / tp * np.where((low < 2.0) & (stored >= 2.0), 3.0, stored)
    scores = unfused * 5.0 * heads * m * t.sequence
    attention = norm + qkv + latent + out + 4.0 * m * heads + scores
    streams = np.where(t.streams > 1, 2.0 * t.streams * own * h * 2.0, 0.0)
    dense = norm + m * (stored * t.dense_up + low * t.dense_width) / tp
    # Dropout masks and unfused biases of engines before fused attention.
    dense = dense + unfused * (2.0 * own * h + 2.0 * m * t.dense_width / tp)
    picked = m / tp * t.experts_per_token * x.etp
    moe = norm + picked * (low * h + (stored * t.expert_up + low * t.expert_width) / x.etp)
    moe = moe + m / tp * t.experts * 8.0
    moe = moe + m * (stored * t.shared_up + low * t.shared_width) / tp
    full_d, full_m = attention + dense + streams, attention + moe + streams
    boundary = 2.0 * own * h * t.streams
    core = scores
    cheap_a = 0.5 * norm + np.where(np.asarray(t.latent_width) > 0, qkv, 0.0)
    cheap_d = 0.5 * norm + low * m * t.dense_width / tp
    cheap_m = 0.5 * norm + low * (picked * t.expert_width / x.etp + m * t.shared_width / tp)
    kind = x.recompute
    attn = kind == RECOMPUTES.index(Recompute.ATTENTION)
    mods = kind == RECOMPUTES.index(Recompute.MODULES)
    saved = np.where(attn, core, np.where(mods, cheap_a, 0.0))
    return _Saved(
        dense=full_d,
        moe=full_m,
        dense_kept=full_d - saved - np.where(mods, cheap_d, 0.0),
        moe_kept=full_m - saved - np.where(mods, cheap_m, 0.0),
        boundary=boundary,
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
    logits = m * t.vocab / tp * sizes.logit
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
) -> RankBytes:
    tp = x.tp.astype(float)
    moe = moe_layers + np.where(np.asarray(t.experts) > 0, end.mtp, 0.0)
    dense = layers - moe_layers + np.where(np.asarray(t.experts) > 0, 0.0, end.mtp)
    count = dense + moe
    params = count * (t.attention_split / tp + t.attention_whole + t.norm_params)
    params = params + dense * t.dense_params / tp + end.params
    params = params + moe * (t.shared_params / tp + t.router_params)
    expert = moe * t.expert_params / (x.ep * x.etp)
    weights, gradients, optimizer = _states(x, sizes, params, expert)
    flying = in_flight(x.schedule, x.pp, x.vpp, rank, m)
    asked = np.minimum(x.recompute_layers / np.maximum(layers, 1.0), 1.0)
    share = np.where(x.recompute_layers < 0, 1.0, asked)
    share = np.where(x.recompute == RECOMPUTES.index(Recompute.FULL), share, 0.0)
    kept = (1.0 - share) * (dense * saved.dense_kept + moe * saved.moe_kept)
    kept = kept + share * count * saved.boundary
    layer = np.where(moe > 0, saved.moe, saved.dense)
    left = np.where(moe > 0, saved.moe_kept, saved.dense_kept)
    again = layer - np.where(share > 0, saved.boundary, left)
    unsharded = np.where((x.zero == 3) & (x.dp * x.cp > 1), _gathered(t, x, sizes, moe), 0.0)
    split = t.attention_split + np.where(moe > 0, t.shared_params, t.dense_params)
    transient = np.maximum(end.transient, again) + unsharded + sizes.scratch * split / tp
    transient = transient + sizes.buckets
    copies = weight_copies(x.schedule)
    return RankBytes(
        weights=weights * copies,
        gradients=gradients * copies,
        optimizer=np.where(x.offload_optimizer > 0, 0.0, optimizer * copies),
        activations=flying * kept + end.activations * flying,
        transient=transient,
    )


def _states(
    x: Layouts, sizes: StateSizes, params: Array, expert: Array
) -> tuple[Array, Array, Array]:
    """Weights, gradients and optimiser bytes after ZeRO sharding."""
    whole = (x.dp * x.cp).astype(float)
    group = np.where(x.shard > 0, np.minimum(x.shard, whole), whole)
    edp = np.maximum(x.tp * x.cp * x.dp / (x.ep * x.etp), 1.0)
    both = params + expert
    by = np.where(x.zero == 3, group, whole)
    cut = params / by + expert / edp
    weights = sizes.weight * np.where(x.zero >= 3, cut, both)
    gradients = sizes.gradient * np.where((x.zero >= 2) & (sizes.whole == 0), cut, both)
    return weights, gradients, sizes.optimizer * np.where(x.zero >= 1, cut, both)


def _gathered(t: ModelTable, x: Layouts, sizes: StateSizes, moe: Array) -> Array:
    """Two layers of unsharded weights (one at work, one prefetched) and one of gradients."""
    tp = x.tp.astype(float)
    layer = t.attention_split / tp + t.attention_whole
    layer = layer + np.where(moe > 0, t.expert_params / (x.ep * x.etp), t.dense_params / tp)
    return layer * (2.0 * sizes.weight + sizes.weight)
