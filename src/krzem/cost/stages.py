"""How layers and parameters fall on ranks, and what a micro-batch, a rank and a step take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from krzem.errors import LayoutError
from krzem.layout.layout import (
    RECOMPUTES,
    SCHEDULES,
    Layout,
    Layouts,
    Recompute,
    Schedule,
    stage_ranks,
)
from krzem.layout.stages import stage_layers
from krzem.model.table import ModelTable

Array = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Layers per pipeline rank, arrays ``[N]``; ``*_moe`` counts those with routed experts."""

    first: Array
    middle: Array
    last: Array
    first_moe: Array
    middle_moe: Array
    last_moe: Array

    @property
    def first_dense(self) -> Array:
        return self.first - self.first_moe

    @property
    def middle_dense(self) -> Array:
        return self.middle - self.middle_moe

    @property
    def last_dense(self) -> Array:
        return self.last - self.last_moe

    @property
    def each(self) -> tuple[tuple[Array, Array, Array], ...]:
        """(all, dense, expert) layers of the first, the fullest middle and the last rank."""
        return (
            (self.first, self.first_dense, self.first_moe),
            (self.middle, self.middle_dense, self.middle_moe),
            (self.last, self.last_dense, self.last_moe),
        )


def stages(t: ModelTable, x: Layouts) -> Stages:
    """Spread ``layers`` over ``pp`` ranks.

    Without wishes for the first and last rank the layers go as evenly as whole layers allow, the
    last rank (which holds the output matrix) and then the first getting the smaller share.
    """
    pp = x.pp.astype(float)
    even = np.ceil(t.layers / pp)
    spare = even * pp - t.layers
    # Prediction modules sit on the last rank, which is then given all that can be spared.
    heavy = (np.asarray(t.mtp_layers) > 0) & (spare < even)
    fewer = np.where(heavy, spare, spare >= 1)
    last = np.where(x.last_stage_layers >= 0, x.last_stage_layers, even - fewer)
    fewer = np.where(heavy, 0, spare >= 2)
    first = np.where(x.first_stage_layers >= 0, x.first_stage_layers, even - fewer)
    given = (x.last_stage_layers >= 0) | (x.first_stage_layers >= 0)
    rest = np.ceil((t.layers - first - last) / np.maximum(pp - 2.0, 1.0))
    middle = np.where(given & (pp > 2), rest, even)
    middle = np.where(pp > 2, middle, np.maximum(first, last))
    first = np.where(pp > 1, first, t.layers)
    last = np.where(pp > 1, last, t.layers)
    middle = np.where(pp > 1, middle, t.layers)
    dense = t.layers - t.moe_layers
    first_dense = np.minimum(first, dense)
    left = (dense - first_dense) / np.maximum(t.layers - first, 1.0)
    whole = pp <= 1
    return Stages(
        first=first,
        middle=middle,
        last=last,
        first_moe=np.where(whole, t.moe_layers, first - first_dense),
        middle_moe=np.where(whole, t.moe_layers, middle * (1.0 - left)),
        last_moe=np.where(whole, t.moe_layers, last * (1.0 - left)),
    )


def kinds_held(kinds: tuple[int, ...], x: Layouts, mtp: int) -> Callable[[Array], Array]:
    """How many layers of each kind each chunk of a rank of krzem's own trainer holds.

    ``kinds`` is the kind of each layer in order, from 0; of pipeline ranks ``[N]`` the result
    gives counts ``[C, K, N]``.
    """
    columns = (x.pp, x.vpp, x.schedule, x.first_stage_layers, x.last_stage_layers)
    code = np.zeros(len(x), dtype=np.int64)
    for column in columns:
        code = code * (int(np.max(column)) + 2) + column + 1
    _, at, which = np.unique(code, return_index=True, return_inverse=True)
    tables = [_held(kinds, mtp, *(int(c[i]) for c in columns)) for i in at]
    deepest, chunks = (max(table.shape[axis] for table in tables) for axis in (0, 1))
    padded = [
        np.pad(t, ((0, deepest - t.shape[0]), (0, chunks - t.shape[1]), (0, 0))) for t in tables
    ]
    found = np.stack(padded)
    return lambda rank: np.moveaxis(found[which, np.asarray(rank, dtype=np.int64)], 0, -1).copy()


@lru_cache(maxsize=4096)
def _held(
    kinds: tuple[int, ...], mtp: int, pp: int, vpp: int, schedule: int, first: int, last: int
) -> Array:
    """``[pp, C, K]`` of one pipe; even shares where the trainer refuses it."""
    layout = Layout(
        pp=pp,
        vpp=vpp,
        schedule=SCHEDULES[schedule],
        first_stage_layers=None if first < 0 else first,
        last_stage_layers=None if last < 0 else last,
    )
    counts = np.zeros((pp, vpp, max(kinds) + 1))
    try:
        held = stage_layers(len(kinds), layout, mtp)
    except LayoutError:
        return counts + np.bincount(kinds) / (pp * vpp)
    for stage, (rank, span) in enumerate(zip(stage_ranks(layout), held, strict=True)):
        own = np.bincount(kinds[span.start : span.stop], minlength=counts.shape[2])
        counts[rank, min(stage // pp, vpp - 1)] += own
    return counts


def shard_group(x: Layouts) -> tuple[Array, Array]:
    """Size and stride of the group over which ZeRO shards dense weights."""
    whole = x.dp * x.cp
    size = np.where(x.shard > 0, np.minimum(x.shard, whole), whole)
    return size.astype(float), x.tp.astype(float)


def expert_group(x: Layouts) -> Array:
    """Ranks that hold the same experts."""
    return np.maximum(x.tp * x.cp * x.dp / (x.ep * x.etp), 1.0)


def parameters(t: ModelTable, x: Layouts, s: Stages) -> tuple[Array, Array]:
    """Dense and expert parameters of the fullest rank before sharding over data parallelism."""
    n = np.maximum(s.middle, s.first)
    moe = np.where(s.middle >= s.first, s.middle_moe, s.first_moe)
    layer = t.attention_split / x.tp + t.attention_whole + t.norm_params
    dense = n * layer + (n - moe) * t.dense_params / x.tp
    dense = dense + moe * (t.shared_params / x.tp + t.router_params)
    dense = dense + (t.embedding_params + np.where(x.pp <= 1, t.head_params, 0.0)) / x.tp
    return dense, moe * t.expert_params / (x.ep * x.etp)


def recomputed(x: Layouts, layers: Array) -> Array:
    """Share of a rank's layers recomputed whole, 0 to 1."""
    full = x.recompute == RECOMPUTES.index(Recompute.FULL)
    share = np.where(x.recompute_layers < 0, 1.0, x.recompute_layers / np.maximum(layers, 1.0))
    return np.where(full, np.minimum(share, 1.0), 0.0)


# Pipeline schedules: idle time and micro-batches in flight, in closed form
# -------------------------------------------------------------------------


_INDEX = {schedule: i for i, schedule in enumerate(SCHEDULES)}


def is_schedule(codes: Array, *schedules: Schedule) -> Array:
    """Mask of the layouts that use one of ``schedules``."""
    found = codes == _INDEX[schedules[0]]
    for schedule in schedules[1:]:
        found = found | (codes == _INDEX[schedule])
    return found


def fill_factor(codes: Array, vpp: Array, forward: Array, backward: Array, weight: Array) -> Array:
    """Idle time of a pipeline relative to plain 1F1B (whose idle time is that of filling it).

    Arguments are seconds of one micro-batch on one rank; ``weight`` is the part of ``backward``
    that computes weight gradients.
    """
    total = forward + backward
    factor = np.ones_like(total)
    factor = np.where(is_schedule(codes, Schedule.INTERLEAVED), 1.0 / vpp, factor)
    h1 = np.maximum(total - 2.0 * weight, 0.0) / total
    factor = np.where(is_schedule(codes, Schedule.ZB_H1), h1, factor)
    v = np.maximum(total - 3.0 * weight, 0.05 * total) / total
    factor = np.where(is_schedule(codes, Schedule.ZB_V), v, factor)
    dual = np.maximum(total + backward - 3.0 * weight, 0.0) / (2.0 * total)
    return np.where(is_schedule(codes, Schedule.DUALPIPE, Schedule.DUALPIPE_V), dual, factor)


def in_flight(codes: Array, pp: Array, vpp: Array, rank: Array, micro_batches: Array) -> Array:
    """Micro-batches whose activations pipeline rank ``rank`` holds at the peak.

    In units of one micro-batch through all layers of the rank (chunks count as parts of it).
    """
    plain = pp - rank
    chunks = (vpp - 1.0) * pp + 2.0 * (pp - rank - 1.0) + 1.0
    held = np.where(is_schedule(codes, Schedule.INTERLEAVED), chunks / vpp, plain)
    # ZB-V holds p micro-batches' worth on every rank; DualPipe one more (both directions).
    held = np.where(is_schedule(codes, Schedule.ZB_V), pp, held)
    held = np.where(is_schedule(codes, Schedule.DUALPIPE, Schedule.DUALPIPE_V), pp + 1.0, held)
    return np.minimum(held, micro_batches)


def weight_copies(codes: Array) -> Array:
    """Copies of the weights a rank holds: DualPipe keeps both directions."""
    return np.where(is_schedule(codes, Schedule.DUALPIPE), 2.0, 1.0)


def joined_ends(codes: Array, first: Array, middle: Array, last: Array) -> tuple[Array, Array]:
    """What the first and the last rank carry, given what the ends and the middle of a pipe cost.

    In a V the first rank holds the first and the last chunk, at least a half of either end;
    DualPipe's ranks each hold a stage and its mirror image and work half of the time for either.
    """
    v = is_schedule(codes, Schedule.ZB_V, Schedule.DUALPIPE_V)
    both = is_schedule(codes, Schedule.DUALPIPE)
    mean = 0.5 * (first + last)
    folded = np.maximum(first + last - middle, 0.5 * np.maximum(first, last))
    front = np.where(v, folded, np.where(both, mean, first))
    return front, np.where(v, middle, np.where(both, mean, last))


def overlaps_dispatch(codes: Array) -> Array:
    """Whether forward and backward chunks run against each other, hiding the all-to-all."""
    return is_schedule(codes, Schedule.DUALPIPE, Schedule.DUALPIPE_V)


# What a micro-batch, a pipeline rank and a step take, part by part
# -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSeconds:
    """Seconds per micro-batch of the parts of a model on one device, arrays ``[U]``.

    Forward parts end in ``_f``, backward in ``_b``; ``*_comm_*`` is what stays exposed of tensor-
    and context-parallel communication and is contained in the part it belongs to.
    """

    attention_f: Array
    attention_b: Array
    core_f: Array
    """Attention core alone: what recomputing ``attention`` repeats."""
    cheap_f: Array
    """Norms, activations and latent up-projections: what recomputing ``modules`` repeats."""
    dense_f: Array
    dense_b: Array
    moe_f: Array
    """Mixture-of-experts network without its all-to-all."""
    moe_b: Array
    dispatch_f: Array
    """All-to-all of one forward pass (dispatch and combine)."""
    dispatch_b: Array
    head_f: Array
    head_b: Array
    embed: Array
    """Embedding look-up, forward and backward."""
    mtp_f: Array
    mtp_b: Array
    weight_share: Array
    """Share of forward and backward that computes weight gradients (zero-bubble schedules)."""
    attention_comm_f: Array
    """Exposed tensor- and context-parallel communication of an attention block."""
    attention_comm_b: Array
    dense_comm_f: Array
    """The same of a dense network."""
    dense_comm_b: Array
    moe_comm_f: Array
    """The same of a mixture-of-experts network."""
    moe_comm_b: Array
    covered_f: Array
    """Of an attention block, what runs beside context-parallel communication and hides it."""
    covered_b: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeconds:
    """One optimizer step, arrays ``[N]``; the parts add up to ``total``."""

    compute: Array
    """Matrix products, attention and element-wise work of the busiest pipeline rank."""
    recompute: Array
    """Forward work repeated in the backward pass."""
    tensor_parallel: Array
    """Exposed tensor- and context-parallel communication."""
    expert_parallel: Array
    """Exposed all-to-all."""
    pipeline_transfer: Array
    bubble: Array
    """Idle time of the pipeline, and of ranks with fewer layers."""
    data_parallel: Array
    """Exposed reduction of gradients and gathering of weights."""
    optimizer: Array
    overhead: Array
    """Engine overhead, stragglers and fixed time per step."""
    micro_batches: Array

    @property
    def total(self) -> Array:
        """Seconds per optimizer step."""
        return sum(getattr(self, f.name) for f in fields(self) if f.name != "micro_batches")


@dataclass(frozen=True, slots=True)
class RankSeconds:
    """Seconds per micro-batch of one pipeline rank.

    ``forward`` and ``backward`` are all of it; the others are parts of these two.
    """

    forward: Array
    backward: Array
    recompute: Array
    """Computation repeated in the backward pass (its communication is in ``comm``)."""
    dispatch: Array
    comm: Array
    gather: Array
    """Exposed gathering of sharded weights and scattering of their gradients."""
    free_f: Array
    """Computation of the forward pass that covers no communication yet."""
    free_b: Array

    @property
    def total(self) -> Array:
        return self.forward + self.backward
