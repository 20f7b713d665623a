"""Rows of tokens to rows of experts and back, on processors: each array is read and written once.

Shape letters: M tokens, K choices per token, P rows after grouping (padding included), D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from krzem.train.ops.permute import combine, permute

_TYPES = (torch.float32, torch.bfloat16)
_ROWS = 512
"""Rows of a piece whose products stay in the caches."""


@permute.version("cpu")
def permute_cpu(x: Tensor, position: Tensor, rows: int) -> Tensor:
    """Rows are fetched by where they come from; their gradients are summed while being read."""
    if x.dtype not in _TYPES or not position.numel():
        return permute.portable(x, position, rows)
    y: Tensor = _Permute.apply(x, position, rows)
    return y


@combine.version("cpu")
def combine_cpu(y: Tensor, position: Tensor, weights: Tensor) -> Tensor:
    """Rows are weighted and summed while being read, in float32."""
    if y.dtype not in _TYPES or not position.numel():
        return combine.portable(y, position, weights)
    out: Tensor = _Combine.apply(y, position, weights)
    return out


def _sources(position: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """``[P]`` the choice ``m * K + k`` of each row, 0 where it has none; and whether it has one."""
    source = torch.full((rows,), -1, dtype=torch.int64)
    flat = position.reshape(-1)
    source[flat] = torch.arange(len(flat))
    return source.clamp(min=0), source >= 0


def _along(a: Tensor, b: Tensor) -> Tensor:
    """``[P]`` the products of the rows of ``a`` with those of ``b``, in float32, some at a time."""
    parts = zip(a.split(_ROWS), b.split(_ROWS), strict=True)
    return torch.cat([(x.float() * y).sum(-1) for x, y in parts])


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, position: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(position)
        source, used = _sources(position, rows)
        out = x.index_select(0, source // position.shape[1])
        return out.index_fill_(0, (~used).nonzero().squeeze(1), 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (position,) = ctx.saved_tensors
        return F.embedding_bag(position, g.contiguous(), mode="sum"), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, position: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(y, position, weights)
        factors = weights.to(y.dtype)
        return F.embedding_bag(position, y.contiguous(), mode="sum", per_sample_weights=factors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, Tensor]:
        y, position, weights = ctx.saved_tensors
        source, used = _sources(position, len(y))
        # Per row of an expert: the gradient of its token, along y and times its weight.
        dy = g.index_select(0, source // position.shape[1])
        along = _along(dy, y)
        d_weights = along.index_select(0, position.reshape(-1)).view_as(weights)
        dy *= (weights.reshape(-1)[source] * used).to(y.dtype).unsqueeze(-1)
        return dy, None, d_weights.to(weights.dtype)
