"""Seconds of one optimizer step, term by term, for arrays of layouts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from krzem.cost import machine as collectives
from krzem.cost.machine import Machine
from krzem.cost.stages import (
    LayerSeconds,
    RankSeconds,
    Stages,
    StepSeconds,
    expert_group,
    fill_factor,
    joined_ends,
    overlaps_dispatch,
    parameters,
    recomputed,
    shard_group,
    stages,
)
from krzem.layout.layout import RECOMPUTES, Layouts, Recompute
from krzem.model.table import ModelTable

Array = Any

HIDE = 0.9
"""Largest share of a computation that communication can hide behind."""
MODULES = 7.0
EXPERT_MODULES = 3.0
"""Modules with weights of their own in a layer, and in an expert beside it."""
OFFLOAD_BYTES_PER_S = 12e9
"""Host memory and PCIe traffic per device for an offloaded optimizer."""
NEWTON_SCHULZ_FLOPS = 30.0
"""Muon: FLOPs per parameter and unit of the shorter matrix side, five iterations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Optim:
    """Bytes per parameter of the optimizer and its kind (floats or arrays)."""

    weight_bytes: Array
    state_bytes: Array
    """Master weights and moments."""
    muon: Array
    """1 for Muon, 0 for AdamW."""


def step_seconds(
    t: ModelTable,
    x: Layouts,
    parts: LayerSeconds,
    mc: Machine,
    global_batch: Array,
    optim: Optim,
) -> StepSeconds:
    """Assemble a step from the parts of a micro-batch (``parts`` aligned with ``x``)."""
    s = stages(t, x)
    ranks = rank_seconds(t, x, parts, s, mc)
    sharded = slowest_rank(x, ranks)
    m = global_batch / (x.dp * x.micro_batch)
    slowest = sharded.total
    everything = _sum_over_ranks(x, ranks)
    transfer, ramp = _transfer(t, x, mc, m)
    # In units of the forward pass, so that slow links do not change what fills a bubble.
    again = 2.0 + recomputed(x, np.maximum(s.first, s.middle))
    factor = fill_factor(x.schedule, x.vpp, np.ones_like(again), again, 3.0 * parts.weight_share)
    bubble = np.maximum(everything - slowest, 0.0) * factor + ramp
    data, optimizer = _update(t, x, s, mc, optim, sharded, m)
    busy = m * slowest
    recompute = m * sharded.recompute
    expert = m * sharded.dispatch
    tensor = m * sharded.comm
    gather = m * sharded.gather
    base = busy + m * transfer + bubble + data + optimizer
    nodes = np.maximum(x.tp * x.cp * x.pp * x.dp / mc.node, 1.0)
    # An engine ahead of the average one has better kernels: all its parts are shorter.
    pace = np.minimum(mc.overhead, 1.0)
    stretch = mc.overhead / pace * (1.0 + mc.jitter * np.log2(nodes)) - 1.0
    return StepSeconds(
        compute=pace * (busy - recompute - expert - tensor - gather),
        recompute=pace * recompute,
        tensor_parallel=pace * tensor,
        expert_parallel=pace * expert,
        pipeline_transfer=pace * m * transfer,
        bubble=pace * bubble,
        data_parallel=pace * (data + gather),
        optimizer=pace * optimizer,
        overhead=pace * base * stretch + mc.fixed_seconds,
        micro_batches=m,
    )


def rank_seconds(
    t: ModelTable, x: Layouts, parts: LayerSeconds, s: Stages, mc: Machine
) -> tuple[RankSeconds, RankSeconds, RankSeconds]:
    """The first, the fullest middle and the last pipeline rank."""
    return _sharded_weights(t, x, s, mc, _ranks(t, x, parts, s, mc))


@dataclass(frozen=True, slots=True)
class Exchange:
    """How the communication of a pipeline rank falls on its passes, for one micro-batch."""

    around: Array
    """Share of what is exposed around layers that is exposed in the forward pass."""
    sent_f: Array
    """Seconds of expert all-to-all in the forward pass, hidden or not."""
    sent_b: Array


def exchanges(x: Layouts, parts: LayerSeconds, s: Stages, mc: Machine) -> tuple[Exchange, ...]:
    """Of the first, the fullest middle and the last pipeline rank."""
    return tuple(_exchange(x, parts, counts, mc) for counts in s.each)


def _sent_again(x: Layouts, share: Array, mc: Machine) -> Array:
    """Share of expert layers whose tokens are sent again in the backward pass: those recomputed
    whole, and where it keeps no rows that it received all that are recomputed by modules."""
    cheap = x.recompute == RECOMPUTES.index(Recompute.MODULES)
    return np.where(cheap, mc.modules_dispatch, share)


def _exchange(
    x: Layouts, parts: LayerSeconds, counts: tuple[Array, Array, Array], mc: Machine
) -> Exchange:
    n, _, moe = counts
    share = recomputed(x, n)
    f, b = _around(parts, counts)
    again = _sent_again(x, share, mc) * parts.dispatch_f
    return Exchange(
        around=f / np.maximum(f * (1.0 + share) + b, 1e-30),
        sent_f=moe * parts.dispatch_f,
        sent_b=moe * (parts.dispatch_b + again),
    )


def _around(parts: LayerSeconds, counts: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """Exposed communication around (all, dense, expert) layers, forward and backward."""
    n, dense, moe = counts
    return (
        n * parts.attention_comm_f + dense * parts.dense_comm_f + moe * parts.moe_comm_f,
        n * parts.attention_comm_b + dense * parts.dense_comm_b + moe * parts.moe_comm_b,
    )


def _rank(
    x: Layouts,
    parts: LayerSeconds,
    mc: Machine,
    counts: tuple[Array, Array, Array],
    extra: tuple[Array, Array],
) -> RankSeconds:
    """One rank with (all, dense, expert) layers and extra forward and backward seconds."""
    n, dense, moe = counts
    f = n * parts.attention_f + dense * parts.dense_f + moe * parts.moe_f
    b = n * parts.attention_b + dense * parts.dense_b + moe * parts.moe_b
    comm_f, comm_b = _around(parts, counts)
    share = recomputed(x, n)
    cheap = x.recompute == RECOMPUTES.index(Recompute.MODULES)
    core = x.recompute == RECOMPUTES.index(Recompute.ATTENTION)
    again = share * f + n * np.where(cheap, parts.cheap_f, np.where(core, parts.core_f, 0.0))
    dual = overlaps_dispatch(x.schedule)
    hidden = np.where(dual, 0.95, mc.ep_overlap)
    sent = moe * (parts.dispatch_f * (1.0 + _sent_again(x, share, mc)) + parts.dispatch_b)
    # One second of computation hides one second of communication, once.
    left_f = np.maximum(f - n * parts.covered_f - comm_f, 0.0)
    left_b = np.maximum(b - n * parts.covered_b - comm_b, 0.0)
    covered = np.minimum(hidden * sent, HIDE * (left_f + left_b))
    # What runs beside the computation takes compute units and memory bandwidth from it.
    exposed = sent - covered + mc.beside * covered
    part = parts.dispatch_f / np.maximum(parts.dispatch_f + parts.dispatch_b, 1e-30)
    forward = f + exposed * part + extra[0]
    backward = b + again + exposed * (1.0 - part) + extra[1]
    comm = comm_f * (1.0 + share) + comm_b
    taken = covered / np.maximum(left_f + left_b, 1e-30)
    return RankSeconds(
        forward, backward, again - share * comm_f, exposed, comm, np.zeros_like(comm),
        left_f * (1.0 - taken), left_b * (1.0 - taken),
    )  # fmt: skip


def _ranks(
    t: ModelTable, x: Layouts, parts: LayerSeconds, s: Stages, mc: Machine
) -> tuple[RankSeconds, RankSeconds, RankSeconds]:
    """The first, the fullest middle and the last pipeline rank."""
    alone = x.pp <= 1
    mtp_f, mtp_b = t.mtp_layers * parts.mtp_f, t.mtp_layers * parts.mtp_b
    head_f, head_b = parts.head_f + mtp_f, parts.head_b + mtp_b
    embed = parts.embed
    first_extra = (np.where(alone, head_f, 0.0) + embed / 3, np.where(alone, head_b, 0.0) + embed)
    zero = np.zeros_like(np.asarray(embed))
    extras = (first_extra, (zero, zero), (head_f, head_b))
    first, middle, last = (
        _rank(x, parts, mc, counts, extra) for counts, extra in zip(s.each, extras, strict=True)
    )
    return _mirrored(x, first, middle, last)


def _mirrored(
    x: Layouts, first: RankSeconds, middle: RankSeconds, last: RankSeconds
) -> tuple[RankSeconds, RankSeconds, RankSeconds]:
    """The three ranks as schedules that run through a pipe in both directions load them."""
    names = [f.name for f in fields(RankSeconds)]
    ends = [joined_ends(x.schedule, *(getattr(r, n) for r in (first, middle, last))) for n in names]
    deep = x.pp > 1
    front = RankSeconds(
        *(np.where(deep, e[0], getattr(first, n)) for e, n in zip(ends, names, strict=True))
    )
    back = RankSeconds(
        *(np.where(deep, e[1], getattr(last, n)) for e, n in zip(ends, names, strict=True))
    )
    return front, middle, back


def slowest_rank(x: Layouts, ranks: tuple[RankSeconds, RankSeconds, RankSeconds]) -> RankSeconds:
    """The slowest rank, field by field."""
    first, middle, last = ranks
    alone = x.pp <= 1
    two = x.pp == 2
    a = np.where(alone, first.total, np.maximum(first.total, last.total))
    b = np.where(alone | two, 0.0, middle.total)
    use_middle = b > a
    use_last = ~use_middle & ~alone & (last.total > first.total)

    def choose(name: str) -> Array:
        i, j, k = (getattr(r, name) for r in ranks)
        return np.where(use_middle, j, np.where(use_last, k, i))

    return RankSeconds(*(choose(f.name) for f in fields(RankSeconds)))


def _sharded_weights(
    t: ModelTable,
    x: Layouts,
    s: Stages,
    mc: Machine,
    ranks: tuple[RankSeconds, RankSeconds, RankSeconds],
) -> tuple[RankSeconds, RankSeconds, RankSeconds]:
    """The ranks, slowed by gathering weights layer by layer where they are sharded.

    All ranks gather as much as the fullest one.
    """
    dense, expert = parameters(t, x, s)
    group, stride = shard_group(x)
    once = collectives.ring(2.0 * dense, group, stride, mc)
    once = once + collectives.ring(2.0 * expert, expert_group(x), x.ep * x.etp, mc)
    once = np.where((x.zero == 3) & (x.dp * x.cp > 1), once, 0.0)
    # Gradients that stay whole until the last micro-batch are scattered once a step instead.
    scattered = mc.trained * mc.gradient_bytes / 2.0 * np.where(mc.whole_gradients > 0, 0.0, 1.0)
    reduce = once * (1.0 + scattered)
    each = np.where(x.zero == 3, mc.fetch_seconds, 0.0)
    again = 1.0 + recomputed(x, np.maximum(s.first, s.middle))
    experts = EXPERT_MODULES * t.experts / (x.ep * x.etp)
    hosts = [each * (MODULES * n + experts * moe) for n, _, moe in s.each]
    return tuple(  # type: ignore[return-value]
        _gathering(rank, once, reduce, mc, (h, h * again))
        for rank, h in zip(ranks, hosts, strict=True)
    )


def _gathering(
    rank: RankSeconds, once: Array, reduce: Array, mc: Machine, host: tuple[Array, Array]
) -> RankSeconds:
    """A rank that gathers weights beside both passes and scatters gradients beside the second.

    Neither pass is shorter than the host takes to fetch and release the weights.
    """
    open_f, free_f = _overlap(rank.free_f, once, mc.gather_overlap, mc)
    open_b, free_b = _overlap(rank.free_b, reduce, mc.reduce_overlap, mc)
    forward, backward = rank.forward + open_f, rank.backward + open_b
    late_f = (forward**4 + host[0] ** 4) ** 0.25 - forward
    late_b = (backward**4 + host[1] ** 4) ** 0.25 - backward
    return RankSeconds(
        forward + late_f, backward + late_b, rank.recompute, rank.dispatch, rank.comm,
        open_f + open_b + late_f + late_b, free_f, free_b,
    )  # fmt: skip


def _overlap(free: Array, comm: Array, share: Array, mc: Machine) -> tuple[Array, Array]:
    """(exposed seconds, what is left of ``free``) of communication beside free computation.

    The longer of two streams decides, rounded off where they are equally long; one second of
    computation covers one second of communication, once.
    """
    wanted = share * comm
    square = np.sqrt((free * free) ** 2 + (wanted * wanted) ** 2)
    longer = np.sqrt(square)
    covered = np.maximum(free + wanted - longer, 0.0)
    exposed = comm - covered + mc.beside * covered
    return exposed, np.maximum(free - covered, 0.0)


def _sum_over_ranks(x: Layouts, ranks: tuple[RankSeconds, RankSeconds, RankSeconds]) -> Array:
    first, middle, last = ranks
    between = np.maximum(x.pp - 2, 0) * middle.total
    return np.where(x.pp > 1, first.total + last.total + between, first.total)


def _transfer(t: ModelTable, x: Layouts, mc: Machine, m: Array) -> tuple[Array, Array]:
    """Exposed pipeline transfers per micro-batch, and those of filling and draining."""
    cut = np.where((x.sequence_parallel > 0) | (mc.pp_scatter > 0), x.tp, 1)
    whole = 2.0 * t.hidden * t.streams * x.micro_batch * t.sequence / x.cp
    once = collectives.transfer(whole / cut, x.tp * x.cp * x.dp, mc)
    # Without sequence parallelism the receiver needs the whole again.
    again = collectives.ring(whole, x.tp.astype(float), 1.0, mc)
    once = once + np.where(x.sequence_parallel > 0, 0.0, np.where(mc.pp_scatter > 0, again, 0.0))
    chunks = np.where(x.schedule == 0, 1.0, x.vpp)
    turn = mc.turn_seconds + np.where(x.tp > 1, mc.cut_turn_seconds, 0.0)
    steady = chunks * (2.0 * once * mc.pp_exposed + turn)
    ramp = 2.0 * (x.pp - 1.0) * once * (1.0 - mc.pp_exposed)
    some = x.pp > 1
    return np.where(some, steady, 0.0), np.where(some, ramp, 0.0)


def _beside(comm: Array, share: Array, free: Array, mc: Machine) -> Array:
    """Exposed seconds of communication that may hide behind ``free`` seconds of computation."""
    covered = np.minimum(share * comm, HIDE * free)
    return comm - covered + mc.beside * covered


def _update(
    t: ModelTable, x: Layouts, s: Stages, mc: Machine, optim: Optim, slow: RankSeconds, m: Array
) -> tuple[Array, Array]:
    """Exposed data-parallel communication and the optimizer step."""
    dense, expert = parameters(t, x, s)
    group, stride = shard_group(x)
    whole = (x.dp * x.cp).astype(float)
    edp = expert_group(x)
    reduce = collectives.ring(mc.gradient_bytes * dense, whole, stride, mc)
    reduce = reduce + collectives.ring(mc.gradient_bytes * expert, edp, x.ep * x.etp, mc)
    gather = collectives.ring(optim.weight_bytes * dense, whole, stride, mc)
    gather = gather + collectives.ring(optim.weight_bytes * expert, edp, x.ep * x.etp, mc)
    # Without sharding an all-reduce carries the gradients back instead of the weights.
    second = np.where(x.zero == 0, reduce, gather)
    open_reduce = _beside(reduce, mc.reduce_overlap, slow.free_b, mc)
    # ZeRO-2 scatters the gradients of every micro-batch, unless they are kept whole.
    each = (x.zero == 2) & (mc.whole_gradients == 0)
    open_reduce = open_reduce * np.where(each, np.maximum(m, 1.0), 1.0)
    hides: Array = np.where(x.zero == 0, mc.reduce_overlap, mc.gather_overlap)
    open_second = _beside(second, hides, slow.free_f, mc)
    # With sharded weights only the hybrid part (between shard groups) is left for the end.
    between = (
        collectives.ring(mc.gradient_bytes * dense / group, whole / group, stride * group, mc) * 2.0
    )
    hybrid = _beside(between, mc.reduce_overlap, slow.free_b, mc)
    once = _beside(reduce, mc.reduce_overlap, slow.free_b, mc)
    late = np.where(mc.whole_gradients > 0, once, 0.0)
    data = np.where(x.zero == 3, hybrid + late, open_reduce + open_second)
    share_dense = dense / np.where(x.zero >= 1, np.where(x.zero == 3, group, whole), 1.0)
    share_expert = expert / np.where(x.zero >= 1, edp, 1.0)
    owned = share_dense + share_expert
    moved = owned * (2.0 * optim.state_bytes + 8.0 + optim.weight_bytes) + 4.0 * (
        dense / np.where(x.zero == 3, group, 1.0) + expert / np.where(x.zero == 3, edp, 1.0)
    )
    seconds = moved / mc.memory_bytes_per_s
    side = np.minimum(t.hidden, np.where(t.experts > 0, t.expert_width, t.dense_width))
    muon = optim.muon * NEWTON_SCHULZ_FLOPS * side * owned / mc.matmul16_flops
    hosted = owned * 2.0 * optim.state_bytes / OFFLOAD_BYTES_PER_S
    update = np.where(x.offload_optimizer > 0, hosted, seconds) + muon
    return mc.trained * data, mc.trained * update
