"""Causal attention on processors: blocks of queries against the keys they may read.

Shape letters: B batch, H heads, G key-value heads, S sequence, N query-key width, V value width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from krzem.train.ops.attention import attention, causal_mask

_SHORT = 1024
"""Sequences up to which keeping the weights of all pairs pays off."""
_BLOCK = {torch.float32: 64, torch.bfloat16: 128}
"""Queries of a block.  Forward and backward of 32 heads of width 96 over 256 tokens took 21.7 ms
in float32 where torch's flash kernel took 34.4, and 8.7 against 30.8 ms in bfloat16; of 8 heads
over 1024 tokens 62 against 92 and 23 against 68 ms (one thread, AVX512, torch 2.13)."""


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
    """Short sequences in blocks, everything else portably."""
    length = q.shape[2]
    if q.dtype not in _BLOCK or length > _SHORT:
        return attention.portable(q, k, v, scale=scale, window=window, documents=documents)
    if k.shape[1] != q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    mask = causal_mask(length, q.device, window, documents)
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()[None, None]
    blocked = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    out: Tensor = _Blocks.apply(q, k, v, scale, blocked)
    return out


def _spans(length: int, dtype: torch.dtype) -> list[tuple[slice, slice]]:
    """The queries of each block and the keys before its end."""
    starts = range(0, length, _BLOCK[dtype])
    stops = [min(length, start + _BLOCK[dtype]) for start in starts]
    return [(slice(a, b), slice(0, b)) for a, b in zip(starts, stops, strict=True)]


class _Blocks(torch.autograd.Function):
    """``blocked [B or 1, 1, S, S]`` is added to the scores: 0, or minus infinity."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, blocked: Tensor) -> Tensor:
        B, H, S, _ = q.shape
        ctx.scale, ctx.shape = scale, (B, H, S)
        scaled = (q * scale).flatten(0, 1).contiguous()
        k, v = (t.flatten(0, 1).contiguous() for t in (k, v))
        out, weights = v.new_empty(B, S, H, v.shape[-1]), []
        for rows, keys in _spans(S, q.dtype):
            scores = torch.bmm(scaled[:, rows], k[:, keys].mT)
            # Not in place: selective recomputation keeps what a product gave.
            masked = scores.view(B, H, *scores.shape[1:]) + blocked[:, :, rows, keys]
            weights.append(masked.softmax(-1).flatten(0, 1))
            part = torch.bmm(weights[-1], v[:, keys])
            out[:, rows].copy_(part.view(B, H, *part.shape[1:]).transpose(1, 2))
        ctx.save_for_backward(scaled, k, v, *weights)
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        scaled, k, v, *weights = ctx.saved_tensors
        B, H, S = ctx.shape
        g = g.flatten(0, 1).contiguous()
        dq, dk, dv = torch.empty_like(scaled), torch.zeros_like(k), torch.zeros_like(v)
        for (rows, keys), w in zip(_spans(S, v.dtype), weights, strict=True):
            d_weights = torch.bmm(g[:, rows], v[:, keys].mT)
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, w, -1, w.dtype)
            dq[:, rows] = torch.bmm(d_scores, k[:, keys])
            dk[:, keys] += torch.bmm(d_scores.mT, scaled[:, rows])
            dv[:, keys] += torch.bmm(w.mT, g[:, rows])
        dq *= ctx.scale
        return dq.view(B, H, S, -1), dk.view(B, H, S, -1), dv.view(B, H, S, -1), None, None
