"""Versions for processors, where measurement favours another way than the portable one."""

from __future__ import annotations

import torch
from torch import Tensor

from krzem.train.ops.attention import attention, causal_mask

_SHORT = 1024
"""Sequences up to which forming the scores is faster: in bfloat16 torch's flash kernel for CPUs
took 39 ms at 256 and 86 ms at 1024 tokens where this took 18 and 64 ms (32 and 8 heads of width
96, forward and backward, one thread, AVX512-BF16, torch 2.13)."""


@attention.version("cpu")
def attention_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None = None,
    documents: Tensor | None = None,
) -> Tensor:
    """Short bfloat16 sequences through matrix products, everything else portably."""
    length = q.shape[2]
    if q.dtype is not torch.bfloat16 or length > _SHORT:
        return attention.portable(q, k, v, scale=scale, window=window, documents=documents)
    mask = causal_mask(length, q.device, window, documents)
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool).tril()
    if k.shape[1] != q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    blocked = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    scores = torch.matmul(q * scale, k.transpose(-1, -2)) + blocked
    return torch.matmul(scores.softmax(-1), v)
