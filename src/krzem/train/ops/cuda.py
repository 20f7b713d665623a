"""Versions for NVIDIA and AMD devices (torch calls both ``cuda``).

Attention and norms need none: the portable versions reach fused kernels through torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from krzem.train.ops.grouped import Groups, grouped_linear


def _has_grouped_matmul() -> bool:
    return hasattr(F, "grouped_mm")


@grouped_linear.version("cuda", _has_grouped_matmul)
def grouped_linear_cuda(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """All groups in one kernel; it takes bfloat16, other types go group by group."""
    if x.dtype is not torch.bfloat16:
        return grouped_linear.portable(x, weight, groups)
    return F.grouped_mm(x, weight.transpose(-2, -1), offs=groups.ends)
