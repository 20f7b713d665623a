"""Versions for NVIDIA and AMD devices (torch calls both ``cuda``).

Attention and norms need none: the portable versions reach fused kernels through torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from krzem.train.device import has_float8
from krzem.train.ops.float8 import BLOCK, float8_product, quantised
from krzem.train.ops.grouped import Groups, grouped_linear


def _has_grouped_matmul() -> bool:
    return hasattr(F, "grouped_mm")


@grouped_linear.version("cuda", _has_grouped_matmul, traceable=True)
def grouped_linear_cuda(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """All groups in one kernel; it takes bfloat16, other types go group by group."""
    if x.dtype is not torch.bfloat16:
        return grouped_linear.portable(x, weight, groups)
    return F.grouped_mm(x, weight.transpose(-2, -1), offs=groups.ends)


def _has_block_scales() -> bool:
    return hasattr(F, "scaled_mm") and has_float8(torch.device("cuda"))


@float8_product.version("cuda", _has_block_scales, traceable=True)
def float8_product_cuda(a: Tensor, b: Tensor, whole_blocks: bool) -> Tensor:
    """The scaled product of Hopper and later; shapes that it does not take go portably."""
    if a.shape[1] % BLOCK or b.shape[0] % BLOCK or a.shape[0] % 16:
        return float8_product.portable(a, b, whole_blocks)
    packed_a, scale_a = quantised(a, 1, BLOCK)
    packed_b, scale_b = quantised(b, BLOCK if whole_blocks else 1, BLOCK)
    narrow = F.ScalingType.BlockWise1x128
    out: Tensor = F.scaled_mm(
        packed_a,
        packed_b.t(),
        # The library reads scales of rows with the row index fastest.
        scale_a.t().contiguous().t(),
        narrow,
        scale_b if whole_blocks else scale_b.t().contiguous().t(),
        F.ScalingType.BlockWise128x128 if whole_blocks else narrow,
        output_dtype=a.dtype,
    )
    return out
