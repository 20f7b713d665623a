"""Seconds of each part of a model for one micro-batch on one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from krzem.cost import machine as collectives
from krzem.cost import machine as kernels
from krzem.cost.machine import Machine
from krzem.cost.stages import LayerSeconds
from krzem.layout.layout import Cells
from krzem.model.table import COLUMN, REPLICATED, ROW, ModelTable

Array = Any

KERNELS_ATTENTION = 12.0
KERNELS_DENSE = 7.0
KERNELS_MOE = 30.0
KERNELS_EXPERT = 1.5
"""Launches of a forward layer in a fused engine (``EXPERT``: for each local expert); a backward
pass launches about twice as many."""
HOST_BACKWARD = 1.2
"""Host time of a backward pass relative to forward: twice the launches, but not from Python."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """Forward and backward seconds."""

    f: Array
    b: Array

    def __add__(self, other: _Pair) -> _Pair:
        return _Pair(self.f + other.f, self.b + other.b)


def _slots(values: Array) -> Array:
    """Slot fields broadcast over cells: ``[S]`` becomes ``[S, 1]``."""
    return values[:, None] if np.ndim(values) == 1 else values


def _matmul(m: Array, n: Array, k: Array, mc: Machine, rate: Array, width: Array) -> _Pair:
    """A product and its two gradients (by input and by weight)."""
    forward = kernels.matmul(m, n, k, mc, rate, width)
    by_input = kernels.matmul(m, k, n, mc, rate, width)
    by_weight = kernels.matmul(k, n, m, mc, rate, width)
    return _Pair(forward, by_input + mc.trained * (by_weight + _accumulate(k * n, mc)))


def _accumulate(weights: Array, mc: Machine) -> Array:
    """Adding the gradients of one micro-batch to those of the earlier ones."""
    return weights * mc.accumulate_bytes / mc.memory_bytes_per_s


def _memory(moved: Array, mc: Machine) -> _Pair:
    """Element-wise work; the backward pass reads the gradient beside what was saved."""
    seconds = kernels.memory(moved, mc)
    return _Pair(seconds, 2.0 * seconds)


def _casts(elements: Array, mc: Machine, each: Array | None = None) -> _Pair:
    """Quantising operands to low precision: activations forward, gradients backward."""
    seconds = elements * (mc.cast_bytes if each is None else each) / mc.memory_bytes_per_s
    return _Pair(seconds, seconds)


def _hosted(pair: _Pair, launches: Array, mc: Machine, each: Array | None = None) -> _Pair:
    """Bound a part by the host that launches its kernels, and add the gaps between them."""
    host = launches * (mc.host_seconds if each is None else each)

    def bound(seconds: Array, hosted: Array) -> Array:
        return (seconds**4 + hosted**4) ** 0.25

    gaps = launches * mc.gap_seconds
    return _Pair(bound(pair.f, host) + gaps, bound(pair.b, HOST_BACKWARD * host) + 2.0 * gaps)


KERNELS_ADAPTER = 5.0
"""Launches that an adapter adds to a matrix, forward: dropout, two products, scaling, sum."""


def _adapters(matrices: Array, mc: Machine) -> Array:
    """Launches of the adapters beside ``matrices`` products."""
    return KERNELS_ADAPTER * matrices * (1.0 - mc.trained)


def _restored(weights: Array, mc: Machine) -> _Pair:
    """Weights kept in 4 bits, restored before each pass."""
    seconds = weights * mc.dequantised / mc.memory_bytes_per_s
    return _Pair(seconds, seconds)


def tokens(t: ModelTable, c: Cells) -> Array:
    """Tokens of one micro-batch on one context-parallel rank."""
    return c.micro_batch * t.sequence / c.cp


def _projections(t: ModelTable, c: Cells, mc: Machine) -> tuple[_Pair, Array]:
    """All attention projections, and the forward part that latent recomputation repeats."""
    shard = _slots(t.proj_shard)
    count, k, n = _slots(t.proj_count), _slots(t.proj_k), _slots(t.proj_n)
    m = tokens(t, c)
    cols = np.where(shard == COLUMN, n / c.tp, n)
    rows = np.where(shard == ROW, k / c.tp, k)
    # Replicated projections run on the sequence-parallel share of the tokens.
    own = np.where((shard == REPLICATED) & (c.sequence_parallel > 0), m / c.tp, m)
    each = _matmul(own, cols, rows, mc, mc.matmul_flops, mc.low_bytes)
    cast = _casts(own * (rows + cols), mc)
    again = count * (shard == COLUMN) * each.f * (_latent(t) > 0)
    total = _Pair((count * (each.f + cast.f)).sum(0), (count * (each.b + cast.b)).sum(0))
    return total, again.sum(0)


def _latent(t: ModelTable) -> Array:
    return np.asarray(t.latent_width) > 0


def _core(t: ModelTable, c: Cells, mc: Machine) -> _Pair:
    """Attention scores; context parallelism splits queries evenly (balanced causal halves)."""
    s = _slots
    forward = s(t.core_count) * kernels.attention(
        tokens(t, c),
        np.maximum(s(t.core_heads) / c.tp, 1.0),
        s(t.core_qk),
        s(t.core_v),
        s(t.core_keys),
        s(t.core_span),
        s(t.core_sparse),
        mc,
    )
    seconds = forward.sum(0)
    ratio = np.where(mc.unfused_attention > 0, kernels.BACKWARD_UNFUSED, kernels.BACKWARD_ATTENTION)
    return _Pair(seconds, seconds * ratio)


def _gathering(t: ModelTable, c: Cells, mc: Machine) -> _Pair:
    """Exposed tensor-parallel collectives around one block (attention or feed-forward).

    Forward gathers and scatters once.  Backward sums the gradient of the input, which may run
    beside the product for the weights; with sequence parallelism the gradient of the output is
    gathered in the open and the input a second time beside the product for the input.
    """
    once = collectives.ring(2.0 * t.hidden * tokens(t, c), c.tp, 1.0, mc)
    exposed = once * (1.0 - mc.tp_overlap)
    beside = 1.0 - mc.tp_backward
    backward = np.where(c.sequence_parallel > 0, 1.0 + 1.5 * beside, 2.0 * beside)
    return _Pair(2.0 * exposed, backward * exposed)


def _context(t: ModelTable, c: Cells, mc: Machine, core: _Pair) -> tuple[_Pair, _Pair]:
    """Context-parallel communication of one attention block: what is exposed, what is hidden."""
    m = tokens(t, c)
    kv = 2.0 * m * t.kv_stored / np.minimum(c.tp, np.maximum(t.kv_stored / 128.0, 1.0))
    around = collectives.ring(kv * c.cp, c.cp, c.tp, mc)
    both = 2.0 * m * (t.q_width + t.o_width + 2.0 * t.kv_stored) / c.tp
    turned = collectives.all_to_all(both, both, c.cp, c.tp, mc)
    hidden_f = np.maximum(around - 0.9 * core.f, 0.05 * around)
    hidden_b = np.maximum(2.0 * around - 0.9 * core.b, 0.1 * around)
    f = np.where(c.ring > 0, hidden_f, np.where(c.gather > 0, around, turned))
    b = np.where(c.ring > 0, hidden_b, np.where(c.gather > 0, 2.0 * around, turned))
    exposed = _Pair(np.where(c.cp > 1, f, 0.0), np.where(c.cp > 1, b, 0.0))
    rings = (c.cp > 1) & (c.ring > 0)
    return exposed, _Pair(
        np.where(rings, around - hidden_f, 0.0), np.where(rings, 2.0 * around - hidden_b, 0.0)
    )


def _residual(t: ModelTable, c: Cells) -> Array:
    """Bytes of one norm and one residual addition, forward."""
    own = tokens(t, c) / np.where(c.sequence_parallel > 0, c.tp, 1.0)
    # Hyper-connections read all streams, mix them, and write all streams back.
    streams = np.where(t.streams > 1, 4.0 * t.streams, 0.0)
    return 2.0 * t.hidden * own * (5.0 + streams)


def _attention(t: ModelTable, c: Cells, mc: Machine) -> tuple[_Pair, Array, Array, _Pair, _Pair]:
    """Attention block; its core and its cheap part, forward; its communication, open and hidden."""
    m = tokens(t, c)
    proj, up = _projections(t, c, mc)
    core = _core(t, c, mc)
    rotary = 4.0 * m * (t.q_width + t.kv_width) / c.tp * np.where(_latent(t), mc.latent_rotary, 1.0)
    mixing = m * t.mixer_traffic / c.tp
    small = _memory(rotary + 4.0 * m * t.latent_width + mixing, mc)
    norm = _memory(_residual(t, c), mc)
    rest = proj + small + norm + _restored((t.attention_split + t.attention_whole) / c.tp, mc)
    launches = KERNELS_ATTENTION + _adapters(mc.adapted_attention, mc)
    bare = _hosted(rest, launches, mc)
    block = _hosted(rest + core, launches, mc)
    # A ring hides behind the time the core takes, which is less than its own where the host binds.
    turns, covered = _context(t, c, mc, _Pair(block.f - bare.f, block.b - bare.b))
    comm = _gathering(t, c, mc) + turns
    return block + comm, core.f, up + 0.6 * norm.f, comm, covered


def _dense(t: ModelTable, c: Cells, mc: Machine) -> tuple[_Pair, Array, _Pair]:
    m = tokens(t, c)
    up = _matmul(m, t.dense_up / c.tp, t.hidden, mc, mc.matmul_flops, mc.low_bytes)
    down = _matmul(m, t.hidden, t.dense_width / c.tp, mc, mc.matmul_flops, mc.low_bytes)
    cast = _casts(m * (2.0 * t.hidden + (t.dense_up + t.dense_width) / c.tp), mc)
    act = _memory(2.0 * m * (t.dense_up + t.dense_width) / c.tp, mc)
    norm = _memory(_residual(t, c), mc)
    comm = _gathering(t, c, mc)
    inner = up + down + cast + act + norm + _restored(t.dense_params / c.tp, mc)
    block = _hosted(inner, KERNELS_DENSE + _adapters(mc.adapted_mlp, mc), mc) + comm
    return block, act.f + 0.6 * norm.f, comm


def _moe(t: ModelTable, c: Cells, mc: Machine) -> tuple[_Pair, Array, _Pair]:
    """Router, permutation, routed and shared experts of one layer, without the all-to-all."""
    m = tokens(t, c)
    own = m / c.tp
    picked = own * t.experts_per_token * c.etp * mc.imbalance
    local = np.maximum(t.experts / c.ep, 1.0)
    rows = picked / local
    up_n, down_k = t.expert_up / c.etp, t.expert_width / c.etp
    wide = t.expert_hidden
    routed = _experts(local, rows, up_n, wide, mc) + _experts(local, rows, wide, down_k, mc)
    shared = _matmul(m, t.shared_up / c.tp, t.hidden, mc, mc.matmul_flops, mc.low_bytes) + _matmul(
        m, t.hidden, t.shared_width / c.tp, mc, mc.matmul_flops, mc.low_bytes
    )
    router = _matmul(own, t.experts, t.hidden, mc, mc.matmul16_flops, 2.0)
    moved = 2.0 * own * wide * (1.0 + t.experts_per_token) * 2.0
    moved = moved + np.where(c.ep > 1, 4.0 * picked * wide, 0.0)
    moved = moved * mc.permute + 12.0 * own * t.experts
    act = 2.0 * (picked * (up_n + down_k) + m * (t.shared_up + t.shared_width) / c.tp)
    cast = _casts(picked * (2.0 * wide + up_n + down_k), mc, mc.expert_cast_bytes)
    norm = _residual(t, c)
    comm = _gathering(t, c, mc)
    shared_comm = _Pair(*(np.where(t.shared_width > 0, x, 0.0) for x in (comm.f, comm.b)))
    inner = routed + shared + router + cast + _memory(moved + act + norm, mc)
    outside = shared_comm + _expert_tensor(t, c, mc, picked)
    launches = (KERNELS_MOE + KERNELS_EXPERT * local) * mc.moe_launches
    hosted = _hosted(inner, launches, mc, mc.expert_host_seconds)
    block = _Pair(mc.expert_pace * hosted.f, mc.expert_pace * hosted.b) + outside
    # While the host waits for the routing its queue runs dry; the experts are then launched anew.
    dry = mc.synchronised * 0.5 * launches * mc.expert_host_seconds
    block = block + _Pair(dry, np.zeros_like(dry))
    return block, kernels.memory(act + 0.6 * norm, mc), outside


def _experts(groups: Array, m: Array, n: Array, k: Array, mc: Machine) -> _Pair:
    width = mc.low_bytes
    forward = kernels.grouped(groups, m, n, k, mc, width)
    by_input = kernels.grouped(groups, m, k, n, mc, width)
    by_weight = kernels.grouped(groups, k, n, m, mc, width)
    by_weight = by_weight + _accumulate(groups * k * n, mc)
    return _Pair(forward, by_input + mc.trained * by_weight)


def _expert_tensor(t: ModelTable, c: Cells, mc: Machine, picked: Array) -> _Pair:
    """Gathering and scattering of dispatched tokens over expert-tensor ranks."""
    once = collectives.ring(2.0 * t.expert_hidden * picked, c.etp, 1.0, mc)
    return _Pair(2.0 * once, 2.0 * once)


def _dispatch(t: ModelTable, c: Cells, mc: Machine) -> _Pair:
    """All-to-all of one layer: dispatch and combine."""
    own = tokens(t, c) / c.tp
    k = c.ep / collectives.members(c.ep, c.etp, mc.domain)
    # Group-limited routing keeps a token within some groups, so within a share of the domains.
    open_to = np.maximum(k * t.groups_per_token / t.expert_groups, 1.0)
    reached = open_to * (1.0 - (1.0 - 1.0 / open_to) ** t.experts_per_token)
    size = own * t.expert_hidden * mc.imbalance

    def once(width: Array) -> Array:
        copies = size * t.experts_per_token * width
        sent = collectives.all_to_all(copies, size * reached * width, c.ep, c.etp, mc)
        gathered = collectives.ring(own * t.expert_hidden * width * c.ep, c.ep, c.etp, mc)
        return np.where(mc.dispatch_all > 0, gathered, sent)

    there, back = once(mc.dispatch_bytes), once(np.asarray(2.0))
    return _Pair(there + back, 2.0 * back)


def _head(t: ModelTable, c: Cells, mc: Machine) -> _Pair:
    """Output matrix and cross-entropy, vocabulary cut over tensor-parallel ranks."""
    m = tokens(t, c)
    product = _matmul(m, t.vocab / c.tp, t.hidden, mc, mc.matmul16_flops, 2.0)
    loss = m * t.vocab / c.tp * mc.logit_bytes / mc.memory_bytes_per_s
    once = collectives.ring(2.0 * t.hidden * m, c.tp, 1.0, mc)
    return product + _Pair(loss + once, loss + once)


def _embed(t: ModelTable, c: Cells, mc: Machine) -> Array:
    m = tokens(t, c)
    gather = collectives.ring(2.0 * t.hidden * m, c.tp, 1.0, mc)
    return kernels.memory(14.0 * m * t.hidden, mc) + 2.0 * gather


def _weight_share(t: ModelTable) -> Array:
    """Share of forward and backward FLOPs that are products for weight gradients.

    A third of the matrix products and nothing of the attention core.  FLOPs and not seconds: how
    fast a machine is must not change what a schedule can move into its bubbles.
    """
    routed = t.experts_per_token * t.expert_params / np.maximum(t.experts, 1.0) + t.shared_params
    sparse = np.asarray(t.moe_layers) / t.layers
    weights = t.attention_split + t.attention_whole
    weights = weights + sparse * routed + (1.0 - sparse) * t.dense_params
    s = _slots
    core = s(t.core_count) * s(t.core_heads) * (s(t.core_qk) + s(t.core_v)) * s(t.core_keys)
    return weights / (3.0 * weights + 3.5 * core.sum(0))


def layer_seconds(t: ModelTable, c: Cells, mc: Machine) -> LayerSeconds:
    """Price every part of the model for every cell."""
    attention, core, cheap, comm, covered = _attention(t, c, mc)
    dense, dense_cheap, dense_comm = _dense(t, c, mc)
    moe, moe_cheap, moe_comm = _moe(t, c, mc)
    dispatch = _dispatch(t, c, mc)
    head = _head(t, c, mc)
    joined = _matmul(tokens(t, c), t.hidden, 2.0 * t.hidden / c.tp, mc, mc.matmul_flops, 2.0)
    is_moe = np.asarray(t.experts) > 0
    last = _Pair(
        attention.f + np.where(is_moe, moe.f + dispatch.f, dense.f),
        attention.b + np.where(is_moe, moe.b + dispatch.b, dense.b),
    )
    mtp = last + joined + head
    return LayerSeconds(
        attention_f=attention.f,
        attention_b=attention.b,
        core_f=core,
        cheap_f=cheap + np.where(is_moe, moe_cheap, dense_cheap),
        dense_f=dense.f,
        dense_b=dense.b,
        moe_f=moe.f,
        moe_b=moe.b,
        dispatch_f=dispatch.f,
        dispatch_b=dispatch.b,
        head_f=head.f,
        head_b=head.b,
        embed=_embed(t, c, mc),
        mtp_f=mtp.f,
        mtp_b=mtp.b,
        weight_share=_weight_share(t) * np.ones_like(core),
        attention_comm_f=comm.f,
        attention_comm_b=comm.b,
        dense_comm_f=dense_comm.f,
        dense_comm_b=dense_comm.b,
        moe_comm_f=moe_comm.f,
        moe_comm_b=moe_comm.b,
        covered_f=covered.f,
        covered_b=covered.b,
    )
