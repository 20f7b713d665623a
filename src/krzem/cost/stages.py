"""How layers and parameters fall on ranks: the first, the fullest middle and the last stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from krzem.layout.layout import RECOMPUTES, SCHEDULES, Layouts, Recompute, Schedule
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
