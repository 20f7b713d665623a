"""Seconds of single kernels on one device: matrix products, attention cores, memory passes.

Shapes enter through three effects that every tiled kernel shows: tiles at the border are computed
whole (tile quantisation), the last round of tiles leaves units idle (wave quantisation, smoothed
because split-K and stream-K kernels soften it), and a short inner dimension leaves the pipeline
half empty.  No fallback to a flat efficiency exists.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from krzem.cost.machine import Machine

Array = Any

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
