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
