"""Bytes on one device, pipeline rank by pipeline rank, for arrays of layouts.

Counts what a fused engine keeps: weights, gradients, optimizer states as ZeRO shards them;
activations saved for the backward pass as recomputation leaves them, times the micro-batches a
schedule has in flight; the output logits; the largest transient buffers.  What allocator and
libraries hold beside is a median, and how far all may be off :mod:`krzem.cost.memory_error` knows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from krzem.cost.saved import Saved, layer_activations
from krzem.cost.sizes import StateCuts, StateSizes, state_cuts
from krzem.cost.stages import in_flight, joined_ends, stages, weight_copies
from krzem.layout.layout import RECOMPUTES, Layouts, Precision, Recompute
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


def low_bytes(precision: Precision) -> float:
    """Bytes per element of inputs that products keep for their weight gradients."""
    return {"fp8": 1.0, "fp4": 1.0}.get(precision.arithmetic, 2.0)


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
        """Median of what the device must have: an allocator short of memory empties half a pool."""
        return self.tensors * (1.0 + FRAGMENTATION) + RESERVE_BYTES + 0.5 * self.pools

    @property
    def reserved(self) -> Array:
        """Median of what a caching allocator holds."""
        return self.peak + 0.5 * self.pools

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
    layer = layer_activations(t, x, low_bytes, unfused, sizes)
    whole = x.pp <= 1
    ends = _ends(t, x, sizes)
    common = _common(t, x, sizes, m)
    first, pools = _rank(common, s.first, s.first_moe, 0.0, layer, ends.embed(whole))
    rank = np.minimum(1.0, x.pp - 1.0)
    middle, _ = _rank(common, s.middle, s.middle_moe, rank, layer, ends.none())
    last, _ = _rank(common, s.last, s.last_moe, x.pp - 1.0, layer, ends.head(whole))
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
    each = m * t.vocab * (1.0 / tp + sizes.whole_logits * (1.0 - 1.0 / tp))
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    """What the pipeline ranks of a layout share."""

    t: ModelTable
    x: Layouts
    sizes: StateSizes
    tp: Array
    micro_batches: Array
    cuts: StateCuts
    adapters: Array
    """Per layer."""
    attention: Array
    """Parameters of a layer on a device, without feed-forward networks."""
    expert: Array
    """Those of all its experts."""
    gathers: Array
    """Whether weights are sharded over several devices."""
    off: Array
    """Whether the optimizer's states wait in host memory."""
    full: Array
    """Whether layers are recomputed whole."""
    apart: Array
    """Whether gradients come into being only as activations go; False where none do."""


def _common(t: ModelTable, x: Layouts, sizes: StateSizes, m: Array) -> _Common:
    tp = x.tp.astype(float)
    cuts = state_cuts(x, sizes, m)
    lazy = np.any(np.asarray(sizes.lazy) > 0)
    return _Common(
        t=t,
        x=x,
        sizes=sizes,
        tp=tp,
        micro_batches=m,
        cuts=cuts,
        adapters=_adapters(t, tp, sizes, np.where(cuts.third, cuts.parts, 1.0)),
        attention=t.attention_split / tp + t.attention_whole + t.norm_params,
        expert=t.expert_params / (x.ep * x.etp),
        gathers=cuts.third & (x.dp * x.cp > 1),
        off=x.offload_optimizer > 0,
        full=x.recompute == RECOMPUTES.index(Recompute.FULL),
        apart=(np.asarray(sizes.lazy) > 0) & (m <= 1.0) & (x.pp <= 1) if lazy else False,
    )


def _adapters(t: ModelTable, tp: Array, sizes: StateSizes, parts: Array) -> Array:
    """Bytes of a layer's adapters: a rank of each is as wide as its matrix has ins and outs.

    Matrices that the table holds as one (q, k and v; gate and up) share an adapter, as engines that
    merge them have it.  Experts are left out: adapters on them are rare.
    """
    if not np.any(np.asarray(sizes.rank) > 0):
        return 0.0
    split = np.asarray(t.proj_count) * (np.asarray(t.proj_k) + np.asarray(t.proj_n))
    dense = np.where(np.asarray(t.dense_up) > 0, 2.0 * t.hidden + t.dense_up + t.dense_width, 0.0)
    dense = sizes.on_mlp * np.where(np.asarray(t.experts) > 0, 0.0, dense)
    width = sizes.on_attention * split.sum(axis=0) + dense
    return sizes.adapter * sizes.rank * width / tp * parts


def _rank(
    c: _Common, layers: Array, moe_layers: Array, rank: Array, saved: Saved, end: _End
) -> tuple[RankBytes, Array]:
    """One pipeline rank, and the gradients that lie in an allocator pool of their own."""
    t, x, sizes = c.t, c.x, c.sizes
    sparse = np.asarray(t.experts) > 0
    moe = moe_layers + np.where(sparse, end.mtp, 0.0)
    dense = layers - moe_layers + np.where(sparse, 0.0, end.mtp)
    count = dense + moe
    params = count * c.attention + dense * t.dense_params / c.tp
    params = params + moe * (t.shared_params / c.tp + t.router_params)
    expert = moe * c.expert
    kinds = (params, expert, end.params)
    copies = weight_copies(x.schedule)
    gradients = c.cuts.gradients.of(*kinds) * copies
    weights = c.cuts.weights.of(*kinds) * copies
    if np.any(c.off):
        gradients = np.where(c.off * sizes.off_gradients > 0, 0.0, gradients)
        weights = np.where(c.off * c.gathers * sizes.off_weights > 0, 0.0, weights)
    optimizer = c.cuts.optimizer.of(*kinds) + count * c.adapters + end.params * sizes.ends_adapter
    flying = in_flight(x.schedule, x.pp, x.vpp, rank, c.micro_batches)
    kept, again = _layers(c, layers, dense, moe, saved)
    routed = moe > 0
    split = t.attention_split + np.where(routed, t.shared_params, t.dense_params)
    fixed = sizes.scratch * split / c.tp + sizes.buckets + np.where(routed, saved.sent, 0.0)
    layer = c.attention + np.where(routed, c.expert, t.dense_params / c.tp)
    working = again + fixed + np.where(c.gathers, _at_work(c) * layer, 0.0)
    ends = np.where(c.gathers, sizes.ends * sizes.gathered * end.params, 0.0)
    transient = np.maximum(end.transient + ends + fixed, working)
    handed = np.where(x.pp > 1, sizes.outputs * saved.boundary * x.vpp, 0.0)
    kept_through = flying * (kept + end.activations + handed) + _received(c, rank, saved)
    moment = _Moment(gradients, kept_through, transient)
    if c.apart is not False or c.cuts.step is not None:
        step = 0.0 if c.cuts.step is None else c.cuts.step.of(*kinds)
        moment = _fullest(moment, working, step, c.apart)
    found = RankBytes(
        weights=weights,
        gradients=moment.gradients,
        optimizer=np.where(c.off, 0.0, optimizer * copies),
        activations=moment.activations,
        transient=moment.transient,
    )
    if c.apart is False:
        return found, 0.0
    return found, np.where(c.gathers, gradients - found.gradients, 0.0)


def _at_work(c: _Common) -> Array:
    """Bytes a weight of the layer at work, whose weights are sharded.

    Weights that stay gathered (ZeRO-2) need no second layer and no buffer; under a pipeline their
    gradients are reduced at the end, when activations of other micro-batches are gone.
    """
    sizes = c.sizes
    if not np.any(np.asarray(sizes.stay) > 0):
        return sizes.gather
    stays = (np.asarray(sizes.stay) > 0) & (c.x.zero < 3)
    reduced = np.where(c.x.pp > 1, 0.0, np.maximum(sizes.gather - 3.0 * sizes.gathered, 0.0))
    return np.where(stays, reduced, sizes.gather)


def _received(c: _Common, rank: Array, saved: Saved) -> Array:
    """Buffers of a step for what comes from both neighbours of each of a rank's stages."""
    x = c.x
    if not np.any(np.asarray(c.sizes.received) > 0):
        return 0.0
    sides = 2.0 * x.vpp - (rank == 0.0) - (rank == x.pp - 1.0)
    return np.where(x.pp > 1, c.sizes.received * c.micro_batches * sides * saved.boundary, 0.0)


def _layers(
    c: _Common, layers: Array, dense: Array, moe: Array, saved: Saved
) -> tuple[Array, Array]:
    """Bytes kept of all layers of a rank for one micro-batch, and of one layer run again."""
    x, sizes = c.x, c.sizes
    asked = np.minimum(x.recompute_layers / np.maximum(layers, 1.0), 1.0)
    share = np.where(c.full, np.where(x.recompute_layers < 0, 1.0, asked), 0.0)
    kept = (1.0 - share) * (dense * saved.dense_kept + moe * saved.moe_kept)
    kept = kept + share * (dense + moe) * saved.boundary
    if np.any(np.asarray(sizes.products) > 0):
        partly = (np.asarray(sizes.products) > 0) & (share > 0.0) & (share < 1.0)
        kept = np.where(partly, dense * saved.dense_partly + moe * saved.moe_partly, kept)
    if np.any(np.asarray(sizes.host) > 0):
        kept = kept * (1.0 - sizes.host)
    routed, some = moe > 0, share > 0
    left = np.where(some, saved.boundary, np.where(routed, saved.moe_kept, saved.dense_kept))
    more = np.where(routed, saved.moe, saved.dense + np.where(some, saved.turned, 0.0))
    return kept, more - left


@dataclass(frozen=True, slots=True)
class _Moment:
    """What a rank holds beside weights and states at one moment of a step."""

    gradients: Array
    activations: Array
    transient: Array


def _fullest(begin: _Moment, working: Array, step: Array, apart: Array) -> _Moment:
    """The fullest of three moments: the backward pass begins, it ends, the optimizer steps.

    Where gradients come as activations go (``apart``) there are none at the first of them and no
    activations but one layer's at the second.
    """
    gradients = begin.gradients
    early = np.where(apart, 0.0, gradients)
    begins = early + begin.activations + begin.transient
    ends = np.where(apart, gradients + working, 0.0)
    updates = gradients + step
    updating = updates >= np.maximum(begins, ends)
    ending = ~updating & (ends > begins)
    late = updating | ending
    return _Moment(
        np.where(late, gradients, early),
        np.where(late, 0.0, begin.activations),
        np.where(updating, step, np.where(ending, working, begin.transient)),
    )
