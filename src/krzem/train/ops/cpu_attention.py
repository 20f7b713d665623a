"""Causal attention on processors: blocks of queries against what they may read.

Shape letters: B batch, H heads, G key-value heads, S sequence, N query-key width, V value width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from krzem.train.ops.attention import attention, whole_mask

_SHORT = 1024
"""Sequences up to which keeping the weights of all pairs pays off."""
_BLOCK = {torch.float32: 64, torch.bfloat16: 128}
"""Queries of a block."""


@attention.version("cpu")
def attention_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None = None,
    documents: Tensor | None = None,
    spans: Tensor | None = None,
) -> Tensor:
    """Short sequences in blocks, everything else portably."""
    length = q.shape[2]
    if q.dtype not in _BLOCK or length > _SHORT or k.shape[2] != length:
        return attention.portable(q, k, v, scale=scale, window=window, documents=documents)
    if k.shape[1] != q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    mask = whole_mask(length, q.device, window, documents)
    blocked = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    blocks: Tensor = _Blocks.apply(q, k, v, scale, blocked)
    return blocks


def _spans(length: int, dtype: torch.dtype) -> list[tuple[slice, slice]]:
    """The queries of each block and the keys before its end, the last block first."""
    starts = range(0, length, _BLOCK[dtype])
    stops = [min(length, start + _BLOCK[dtype]) for start in starts]
    spans = [(slice(a, b), slice(0, b)) for a, b in zip(starts, stops, strict=True)]
    return spans[::-1]


class _Blocks(torch.autograd.Function):
    """``blocked [B or 1, 1, S, S]`` is added to the scores: 0, or minus infinity."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, blocked: Tensor) -> Tensor:
        B, H, S, _ = q.shape
        ctx.scale, ctx.shape = scale, (B, H, S)
        q, k, v = (t.flatten(0, 1).contiguous() for t in (q, k, v))
        out, weights = v.new_empty(B, S, H, v.shape[-1]), []
        for rows, keys in _spans(S, q.dtype):
            scores = torch.bmm(q[:, rows], k[:, keys].mT)
            # Not in place: selective recomputation keeps what a product gave.
            scores = scores.view(B, H, *scores.shape[1:])
            masked = torch.add(blocked[:, :, rows, keys], scores, alpha=scale)
            weights.append(masked.softmax(-1).flatten(0, 1))
            part = torch.bmm(weights[-1], v[:, keys])
            out[:, rows].copy_(part.view(B, H, *part.shape[1:]).transpose(1, 2))
        ctx.save_for_backward(q, k, v, *weights)
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        B, H, S = ctx.shape
        g = g.flatten(0, 1).contiguous()
        dq, dk, dv = torch.empty_like(q), torch.empty(0), torch.empty(0)
        for (rows, keys), w in zip(_spans(S, v.dtype), weights, strict=True):
            d_weights = torch.bmm(g[:, rows], v[:, keys].mT)
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, w, -1, w.dtype)
            torch.mul(torch.bmm(d_scores, k[:, keys]), ctx.scale, out=dq[:, rows])
            d_keys, d_values = torch.bmm(d_scores.mT, q[:, rows]), torch.bmm(w.mT, g[:, rows])
            if keys.stop == S:  # The first: it reads all keys.
                dk, dv = d_keys, d_values
            else:
                dk[:, keys] += d_keys
                dv[:, keys] += d_values
        dk *= ctx.scale
        return dq.view(B, H, S, -1), dk.view(B, H, S, -1), dv.view(B, H, S, -1), None, None
