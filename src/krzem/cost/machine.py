"""The machine as the formulas see it: rates that work gets done at, not data-sheet peaks.

A :class:`Machine` joins a cluster, a precision, an engine and the calibrated coefficients.  Its
fields are floats for one cluster or arrays ``[N]`` for a batch of published runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

Array = Any
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Sustained rates and overheads of one device among many."""

    matmul_flops: Array
    """FLOP/s a large matrix product sustains in the precision in use, under the power limit."""
    matmul16_flops: Array
    """The same in 16 bits (head, router, attention projections kept in 16 bits)."""
    attention_flops: Array
    """FLOP/s of a fused attention kernel on long sequences."""
    memory_bytes_per_s: Array
    memory_bytes: Array
    fill: Array
    """Output elements of a matrix product that keep every compute unit busy once."""
    depth: Array
    """Inner dimension at which a matrix product reaches half of its rate."""
    tail: Array
    """Part of one filling that is lost at the end of a product."""
    slack: Array
    """Rate at which products are let through over what the chip could feed (1: no limiter)."""
    low_bytes: Array
    """Bytes per element of matrix operands (2 in 16 bits, 1 in fp8, 0.5 in fp4)."""
    cast_bytes: Array
    """Bytes moved per operand element to quantise it (0 in 16 bits)."""
    expert_cast_bytes: Array
    """The same for operands of experts, which no kernel before them has quantised."""
    node: Array
    """Devices per node."""
    domain: Array
    """Devices per scale-up domain."""
    up_bytes_per_s: Array
    """Over all scale-up links of a device, one direction."""
    mesh: Array
    """1 where each link of a scale-up domain joins one pair of devices, 0 behind a switch."""
    out_bytes_per_s: Array
    rails: Array
    """1 where every device has an interface of its own, 0 where pairs share the host's PCIe."""
    up_latency: Array
    """Seconds per hop inside a scale-up domain."""
    out_latency: Array
    up_start: Array
    """Seconds before a collective inside a scale-up domain flows at its rate."""
    out_start: Array
    """Seconds before a collective between nodes flows at its rate."""
    exchange_out: Array
    """Rate of all-to-all between nodes relative to rings, without kernels made for it."""
    fetch_seconds: Array
    """Host time to fetch and release the sharded weights of a module, each pass."""
    beside: Array
    """Computation lost per second of communication that runs beside it."""
    attention_half: Array
    """Keys of a row at which a fused attention kernel reaches half of its rate."""
    host_seconds: Array
    """Host time to launch one kernel; bounds small shapes."""
    expert_host_seconds: Array
    """The same for experts, which graphs of parts of layers leave out."""
    moe_launches: Array
    """Launches of a mixture-of-experts block relative to the count of a fused engine."""
    gap_seconds: Array
    """Device time lost between two kernels."""
    elementwise: Array
    """Memory traffic of element-wise operators relative to the fused minimum."""
    unfused_attention: Array
    """1 where attention scores go through memory (software before fused kernels), else 0."""
    unfused_bytes: Array
    """Bytes moved per score element by unfused attention, forward."""
    tp_overlap: Array
    """Share of tensor-parallel communication hidden behind matrix products."""
    tp_backward: Array
    """Share of backward tensor-parallel communication that runs beside the weight products."""
    reduce_overlap: Array
    """Share of gradient reduction that may hide behind the backward pass."""
    gather_overlap: Array
    """Share of weight gathering that may hide behind computation."""
    whole_gradients: Array
    """1 where sharded gradients stay whole until the last micro-batch of a step, else 0."""
    ep_overlap: Array
    """Share of expert all-to-all that may hide behind computation."""
    turn_seconds: Array
    """Host time of a pipeline engine per micro-batch and chunk, in which its device idles."""
    cut_turn_seconds: Array
    """The same, further, where activations are cut over tensor-parallel ranks."""
    pp_exposed: Array
    """Share of pipeline transfers that is not hidden."""
    dedup: Array
    """1 where a token is sent once per node and fanned out there, 0 where once per expert."""
    dispatch_all: Array
    """1 where every expert-parallel rank gathers all tokens, 0 where each is sent its own."""
    modules_dispatch: Array
    """1 where recomputing ``modules`` sends tokens to experts again, 0 where it keeps the rows."""
    permute: Array
    """Memory passes that sort tokens by expert, relative to sorting before and after sending."""
    latent_rotary: Array
    """Passes over queries and keys of latent attention for their rotary part."""
    dispatch_bytes: Array
    """Bytes per element of dispatched tokens."""
    gradient_bytes: Array
    """Bytes per element of reduced gradients."""
    accumulate_bytes: Array
    """Bytes moved per weight and micro-batch to add gradients up (beyond the product itself)."""
    grouped_share: Array
    """Rate of grouped products (experts) relative to single ones."""
    logit_bytes: Array
    """Bytes moved per logit, forward (backward the same)."""
    pp_scatter: Array
    """1 where pipeline transfers are cut over tensor-parallel ranks and gathered again."""
    imbalance: Array
    """Load of the busiest expert-parallel rank over the mean."""
    synchronised: Array
    """1 where the host waits for the routing before it launches the experts, else 0."""
    expert_pace: Array
    """Time of expert layers relative to software of the middle of 2025."""
    trained: Array
    """1 where weights are trained, 0 where only adapters beside them are."""
    adapted_attention: Array
    """Matrices of attention with adapters beside them, where only adapters are trained."""
    adapted_mlp: Array
    """The same of the dense network."""
    dequantised: Array
    """Bytes moved per weight and use to restore 16-bit weights from the 4 bits they are kept in."""
    jitter: Array
    """Relative slow-down per doubling of the number of nodes."""
    overhead: Array
    """Everything the engine adds that is proportional to time (1: nothing)."""
    fixed_seconds: Array
    """Per step: optimizer launch, logging, data loading."""


def stack(machines: Sequence[Machine], which: Array) -> Machine:
    """Machines as one with fields ``[N]``: entry i is that of ``machines[which[i]]``."""
    return Machine(
        **{
            item.name: np.array([getattr(m, item.name) for m in machines], dtype=float)[which]
            for item in fields(Machine)
        }
    )


def side_by_side(values: Sequence[T], which: Array) -> T:
    """One dataclass of numbers whose fields are arrays ``[N]`` only where ``values`` differ."""
    first = values[0]
    if len(values) == 1 or np.ndim(which) == 0:
        return values[int(which)] if np.ndim(which) == 0 else first
    names = [item.name for item in fields(first)]  # type: ignore[arg-type]
    columns = {name: [getattr(v, name) for v in values] for name in names}
    apart = {n: np.array(c, dtype=float)[which] for n, c in columns.items() if len(set(c)) > 1}
    return replace(first, **apart) if apart else first  # type: ignore[type-var]


# Seconds of collectives over groups of ranks laid on two tiers of links
# ----------------------------------------------------------------------


def members(size: Array, stride: Array, domain: Array) -> Array:
    """Ranks of a group that share one scale-up domain (at least 1).

    Groups and domains are aligned powers of two in practice; where they are not, the mean number
    of members per domain is what bandwidth sees.
    """
    inside = np.maximum(1.0, np.floor(domain / stride))
    return np.minimum(size, inside)


def _inside(g: Array, machine: Machine) -> Array:
    """Scale-up bandwidth that ``g`` ranks of one domain have among themselves.

    Behind a switch all of it.  In a mesh every pair has a link of its own, so a small group is
    left with the links between its members.
    """
    links = np.maximum(g - 1.0, 1.0) / np.maximum(machine.domain - 1.0, 1.0)
    return machine.up_bytes_per_s * np.where(machine.mesh > 0, np.minimum(links, 1.0), 1.0)


def _hops(size: Array, g: Array, machine: Machine) -> Array:
    k = size / g
    # Rings inside a domain; between domains NCCL and its kin switch to trees as groups grow.
    across = np.minimum(k - 1.0, 4.0 * np.log2(np.maximum(k, 1.0)))
    start = np.where(k > 1.0, machine.out_start, machine.up_start)
    return (g - 1.0) * machine.up_latency + across * machine.out_latency + start


def ring(total_bytes: Array, size: Array, stride: Array, machine: Machine) -> Array:
    """Seconds of an all-gather or reduce-scatter of ``total_bytes`` (the gathered size)."""
    g = members(size, stride, machine.domain)
    k = size / g
    inside = total_bytes * (size - 1.0) / size / _inside(g, machine)
    # A ring through all interfaces: each carries all but one part, shared by the members of a node
    # (NCCL's ring; hierarchical algorithms that send less are used for small groups only).
    railed = total_bytes * (size - 1.0) / (size * g) / machine.out_bytes_per_s
    railed = np.where(k > 1.0, railed, 0.0)
    # Without an interface for each member one ring visits all ranks through the same few links.
    flat = np.where(k > 1.0, total_bytes * (size - 1.0) / size / machine.out_bytes_per_s, 0.0)
    across = np.where(machine.rails > 0, railed, flat)
    seconds = np.maximum(np.where(g > 1.0, inside, 0.0), across) + _hops(size, g, machine)
    return np.where(size > 1.0, seconds, 0.0)


def all_to_all(
    copies_bytes: Array, once_bytes: Array, size: Array, stride: Array, machine: Machine
) -> Array:
    """Seconds of an all-to-all of ``copies_bytes`` sent per rank.

    ``once_bytes`` is what one copy per reached domain would weigh: with deduplication only that
    crosses the network and is fanned out over the scale-up links.
    """
    g = members(size, stride, machine.domain)
    k = size / g
    crossing = np.where(machine.dedup > 0, np.minimum(once_bytes, copies_bytes), copies_bytes)
    # Pairs of ranks that all talk at once share paths of the network as no ring does; kernels made
    # for it (deduplicating ones) send along rails.
    share = np.where(machine.dedup > 0, 1.0, machine.exchange_out)
    across = crossing * (k - 1.0) / k / (machine.out_bytes_per_s * share)
    inside = copies_bytes * (g - 1.0) / g / _inside(g, machine)
    hops = (g - 1.0) * machine.up_latency + np.sqrt(k - 1.0) * 2.0 * machine.out_latency
    hops = hops + np.where(k > 1.0, machine.out_start, machine.up_start)
    return np.where(size > 1.0, np.maximum(across, inside) + hops, 0.0)


def transfer(sent_bytes: Array, stride: Array, machine: Machine) -> Array:
    """Seconds to send ``sent_bytes`` to the rank ``stride`` further on."""
    near = stride < machine.domain
    rate = np.where(near, _inside(np.asarray(2.0), machine), machine.out_bytes_per_s)
    return sent_bytes / rate + np.where(near, machine.up_latency, machine.out_latency)


# Seconds of single kernels on one device: matrix products, attention cores, memory passes
# ----------------------------------------------------------------------------------------


STREAMS = 4.0
"""Products of experts that run side by side: grouped layers launch one a group on four streams
(Transformer Engine, ``multi_stream_cublas_gemm``)."""
TILE = 64.0
"""Granularity at which kernels pick their tiles."""


def round_up(size: Array, tile: float = TILE) -> Array:
    """``size`` rounded up to whole tiles."""
    return np.ceil(np.maximum(size, 1.0) / tile) * tile


def matmul(m: Array, n: Array, k: Array, machine: Machine, rate: Array, width: Array) -> Array:
    """Seconds of one ``[m, k] x [k, n]`` product; ``width`` is bytes per operand element.

    The larger of the arithmetic time and the time to move operands and result once.
    """
    flops = 2.0 * round_up(m) * round_up(n) * k
    shape = (1.0 + machine.depth / np.maximum(k, 1.0)) * (
        1.0 + machine.tail * machine.fill / (round_up(m) * round_up(n))
    )
    moved = (m * k + k * n) * width + 2.0 * m * n
    busy = (m > 0) & (n > 0)
    shape = np.maximum(shape * machine.slack, 1.0)
    return busy * np.maximum(flops * shape / rate, moved / machine.memory_bytes_per_s)


def grouped(groups: Array, m: Array, n: Array, k: Array, machine: Machine, width: Array) -> Array:
    """Seconds of ``groups`` products ``[m, k] x [k, n]`` in one launch (experts on one rank)."""
    rows = round_up(m)
    flops = 2.0 * groups * rows * round_up(n) * k
    shape = (1.0 + machine.depth / np.maximum(k, 1.0)) * (
        1.0 + machine.tail * machine.fill / (np.clip(groups, 1.0, STREAMS) * rows * round_up(n))
    )
    moved = groups * ((m * k + k * n) * width + 2.0 * m * n)
    busy = (groups > 0) & (n > 0)
    shape = np.maximum(shape * machine.slack, 1.0)
    rate = machine.matmul_flops * machine.grouped_share
    return busy * np.maximum(flops * shape / rate, moved / machine.memory_bytes_per_s)


def memory(moved_bytes: Array, machine: Machine) -> Array:
    """Seconds of element-wise work that moves ``moved_bytes`` when perfectly fused."""
    return moved_bytes * machine.elementwise / machine.memory_bytes_per_s


BACKWARD_ATTENTION = 2.5 / 0.85
"""Backward over forward time: five products for two, at a lower rate (FlashAttention-2, -3)."""
BACKWARD_UNFUSED = 1.6
"""The same of unfused attention, whose time is traffic of scores (17 bytes each for 13)."""
UNALIGNED = 4.0
"""Slow-down of 16-bit products whose rows are no multiple of 16 bytes: the matrix units are left
out (A100: 78 of 312 TFLOP/s; cuBLAS, "Tensor Core usage").  Fused kernels pad instead."""
GATHER_RATE = 0.6
"""Rate of attention over gathered keys relative to streamed keys."""


def attention(
    queries: Array,
    heads: Array,
    qk: Array,
    v: Array,
    keys: Array,
    span: Array,
    sparse: Array,
    machine: Machine,
) -> Array:
    """Forward seconds of one score product over ``queries`` query positions."""
    rate = machine.attention_flops * np.where(sparse > 0, GATHER_RATE, 1.0)
    narrow = 1.0 + 24.0 / np.maximum(qk, 1.0)
    # Masked and ragged tiles, prologue and epilogue: the rate rises with the length of a row.
    seen = keys + machine.attention_half
    fused = 2.0 * queries * heads * (qk + v) * seen * narrow / rate
    products = 2.0 * queries * heads * (qk + v) * span / machine.matmul16_flops
    depth = (1.0 + machine.depth / np.maximum(qk, 1.0)) * np.where(qk % 8 > 0, UNALIGNED, 1.0)
    scores = queries * heads * span * machine.unfused_bytes / machine.memory_bytes_per_s
    return np.where(machine.unfused_attention > 0, products * depth + scores, fused)
