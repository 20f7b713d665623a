"""Rows of tokens to rows of experts and back.

Shape letters: M tokens, K choices per token, P rows after grouping (padding included), D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from krzem.train.ops.grouped import ALIGN, Groups
from krzem.train.ops.registry import operator
from krzem.train.ops.routes import host_counts


def place(expert: Tensor, experts: int, align: int = ALIGN) -> tuple[Tensor, Groups]:
    """Where each choice goes when rows are grouped by expert.

    ``expert [A]`` holds the expert of each choice.  Returns ``position [A]``, distinct rows of a
    grouped array in which each group starts at a multiple of ``align``, and the groups.  Choices
    of one expert keep their order.
    """
    counts = count_choices(expert, experts)
    padded = (counts + align - 1) // align * align
    ends = padded.cumsum(0)
    order = torch.argsort(expert, stable=True)
    gap = (ends - padded) - (counts.cumsum(0) - counts)
    position = torch.empty_like(order)
    rank = torch.arange(len(order), device=order.device)
    position[order] = rank + gap.gather(0, expert.gather(0, order))
    sizes = tuple(host_counts(padded, len(expert), align=align))
    return position, Groups(ends=ends.to(torch.int32), sizes=sizes)


def count_choices(expert: Tensor, experts: int) -> Tensor:
    """``[experts]`` int64: how often each number below ``experts`` occurs in ``expert [A]``.

    Unlike ``bincount`` it never asks the host for the largest number.
    """
    counts = torch.zeros(experts, dtype=torch.int64, device=expert.device)
    return counts.index_add_(0, expert, torch.ones_like(expert))


@operator
def permute(x: Tensor, position: Tensor, rows: int) -> Tensor:
    """Copy row ``m`` of ``x [M, D]`` to rows ``position[m]``, ``position [M, K]``: ``[rows, D]``.

    Rows that no choice goes to are zero.
    """
    return _Permute.apply(x, position, rows)


@operator
def combine(y: Tensor, position: Tensor, weights: Tensor) -> Tensor:
    """``sum_k weights[m, k] * y[position[m, k]]``: ``[P, D], [M, K], [M, K] -> [M, D]``."""
    return _Combine.apply(y, position, weights)


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, position: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(position)
        out = x.new_zeros(rows, x.shape[1])
        for k in range(position.shape[1]):
            out.index_copy_(0, position[:, k], x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (position,) = ctx.saved_tensors
        picked = g.index_select(0, position.reshape(-1))
        return picked.view(*position.shape, g.shape[1]).sum(1), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, position: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(y, position, weights)
        picked = y.index_select(0, position.reshape(-1)).view(*position.shape, y.shape[1])
        out = y.new_empty(len(position), y.shape[1])
        torch.bmm(weights.to(y.dtype).unsqueeze(1), picked, out=out.unsqueeze(1))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, Tensor]:
        y, position, weights = ctx.saved_tensors
        picked = y.index_select(0, position.reshape(-1)).view(*position.shape, y.shape[1])
        d_weights = torch.bmm(picked, g.unsqueeze(-1)).squeeze(-1).to(weights.dtype)
        del picked  # As large as the gradient that is made now.
        dy = torch.zeros_like(y)
        for k in range(position.shape[1]):
            dy.index_copy_(0, position[:, k], g * weights[:, k, None].to(g.dtype))
        return dy, None, d_weights
