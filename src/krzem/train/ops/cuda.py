"""Versions for NVIDIA and AMD devices (torch calls both ``cuda``).

Norms need none: the portable version reaches a fused kernel through torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from krzem.train.device import has_flash, has_float8
from krzem.train.ops.attention import attention
from krzem.train.ops.float8 import (
    BLOCK,
    Operand,
    Quantised,
    float8_product,
    float8_rows_product,
    float8_tokens_product,
    of_operand,
)
from krzem.train.ops.grouped import Groups, grouped_linear
from krzem.train.ops.permute import with_sizes

_FLASH_WIDTH = 256
"""Widest head of FlashAttention-2."""
_FLASH_TYPES = (torch.float16, torch.bfloat16)


@attention.version("cuda", lambda: has_flash(torch.device("cuda")))
def attention_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None = None,
    documents: Tensor | None = None,
    spans: Tensor | None = None,
) -> Tensor:
    """Documents and windows without an ``S x S`` mask, where FlashAttention takes the heads."""
    length = q.shape[2]
    near = window if window is not None and window < length else None
    masked = near is not None or documents is not None
    fits = q.shape[-1] <= _FLASH_WIDTH and q.shape[-1] % 8 == 0 and q.dtype in _FLASH_TYPES
    known = k.shape[2] == length and (documents is None or spans is not None)
    if not (masked and fits and known):
        return attention.portable(q, k, v, scale=scale, window=window, documents=documents)
    return packed_attention(q, k, v, spans, scale=scale, window=near)


def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Tensor | None,
    *,
    scale: float,
    window: int | None,
    kernel: Callable[..., Any] = varlen_attn,
) -> Tensor:
    """As :func:`attention`, of all sequences in one row cut at ``spans`` (or at their ends).

    The kernel takes sixteen-bit queries, keys and values of one width, a multiple of eight up to
    256; its window counts the keys before the query (``torch.nn.attention.varlen`` of 2.13).
    """
    B, H, S, N = q.shape
    width = v.shape[-1]
    v = F.pad(v, (0, N - width))
    rows = [t.transpose(1, 2).reshape(B * S, -1, N) for t in (q, k, v)]
    if spans is None:
        spans = torch.arange(0, B * S + 1, S, dtype=torch.int32, device=q.device)
    back = -1 if window is None else window - 1
    out: Tensor = kernel(
        *rows,
        spans,
        spans,
        S,
        S,
        scale=scale,
        window_size=(back, 0),
        enable_gqa=k.shape[1] != H,
    )
    return out.view(B, S, H, N).transpose(1, 2)[..., :width]


def _has_grouped_matmul() -> bool:
    return hasattr(F, "grouped_mm")


@grouped_linear.version("cuda", _has_grouped_matmul, traceable=True)
def grouped_linear_cuda(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """All groups in one kernel; it takes bfloat16, other types go group by group.

    The kernel reads ends on Hopper and Blackwell; on devices before them torch's own way is group
    by group, and waits for the ends (``_grouped_mm_cuda`` in ATen/native/cuda/GroupedBlas.cpp).
    """
    if x.dtype is not torch.bfloat16:
        return grouped_linear.portable(x, weight, with_sizes(groups))
    return F.grouped_mm(x, weight.transpose(-2, -1), offs=groups.ends)


def _has_block_scales() -> bool:
    return hasattr(F, "scaled_mm") and has_float8(torch.device("cuda"))


@float8_product.version("cuda", _has_block_scales, traceable=True)
def float8_product_cuda(
    a: Operand, b: Operand, whole_blocks: bool, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """The scaled product of Hopper and later; sizes that it does not take are padded by zeros."""
    packed_a, scale_a = of_operand(a, 1)
    packed_b, scale_b = of_operand(b, BLOCK if whole_blocks else 1)
    rows, columns = len(packed_a), len(packed_b)
    packed_a, packed_b = _padded(packed_a, 16), _padded(packed_b, BLOCK if whole_blocks else 16)
    narrow = F.ScalingType.BlockWise1x128
    out: Tensor = F.scaled_mm(
        packed_a,
        packed_b.t(),
        _scales_of_rows(scale_a, len(packed_a)),
        narrow,
        _scales_of_blocks(scale_b) if whole_blocks else _scales_of_rows(scale_b, len(packed_b)),
        F.ScalingType.BlockWise128x128 if whole_blocks else narrow,
        output_dtype=dtype,
    )
    return out[:rows, :columns]


@float8_rows_product.version("cuda", _has_block_scales, traceable=True)
def float8_rows_product_cuda(
    a: Quantised, b: Quantised, groups: Groups, dtype: torch.dtype
) -> Tensor:
    """All groups in one kernel, which reads their ends; rows and columns in sixteens."""
    if a.packed.shape[1] % 16 or b.packed.shape[1] % 16:
        return float8_rows_product.portable(a, b, with_sizes(groups), dtype)
    return _scaled_grouped(a, b, groups.ends).to(dtype)


@float8_tokens_product.version("cuda", _has_block_scales, traceable=True)
def float8_tokens_product_cuda(
    a: Quantised, b: Quantised, groups: Groups, dtype: torch.dtype
) -> Tensor:
    """The same for the gradient of weights: scales of one group lie behind those of another."""
    if len(a.packed) % 16 or len(b.packed) % 16:
        return float8_tokens_product.portable(a, b, with_sizes(groups), dtype)
    left, right = (Quantised(t.packed, t.scale.contiguous().view(-1)) for t in (a, b))
    return _scaled_grouped(left, right, groups.ends).to(dtype)


def _scaled_grouped(a: Quantised, b: Quantised, ends: Tensor) -> Tensor:
    # Of this form torch 2.13 checks shapes and strides without a device too, of F's it does not.
    out: Tensor = torch._scaled_grouped_mm(
        a.packed, b.packed.mT, a.scale, b.scale, offs=ends, out_dtype=torch.bfloat16
    )
    return out


def _padded(packed: Tensor, rows: int) -> Tensor:
    """``packed [R, K]``, contiguous, with whole multiples of ``rows`` rows and of a block of K."""
    short = (-packed.shape[1] % BLOCK, -packed.shape[0] % rows)
    if not any(short):
        return packed.contiguous()
    raw = F.pad(packed.view(torch.uint8), (0, short[0], 0, short[1]))
    return raw.view(packed.dtype)


def _scales_of_rows(scale: Tensor, rows: int) -> Tensor:
    """``[rows, K / 128]`` with the row index fastest, as the library reads it."""
    return F.pad(scale, (0, 0, 0, rows - len(scale)), value=1.0).t().contiguous().t()


def _scales_of_blocks(scale: Tensor) -> Tensor:
    """``[N / 128, K / 128]`` as the library reads it: ``[K / 128 rounded up to 4, N / 128]``,
    with the first index fastest."""
    return F.pad(scale, (0, -scale.shape[1] % 4), value=1.0).contiguous().t()
