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


def place(
    expert: Tensor, experts: int, align: int = ALIGN, *, filled: bool = False
) -> tuple[Tensor, Groups]:
    """Where each choice goes when rows are grouped by expert.

    ``expert [A]`` holds the expert of each choice.  Returns ``position [A]``, distinct rows of a
    grouped array in which each group starts at a multiple of ``align``, and the groups.  Choices
    of one expert keep their order.  No group is empty where they are to be ``filled``.
    """
    counts = count_choices(expert, experts)
    padded = _padded(counts, align, filled)
    ends = padded.cumsum(0)
    position = _positions(expert, counts, ends - padded)
    sizes = tuple(host_counts(padded, len(expert), align=align))
    return position, Groups(ends=ends.to(torch.int32), sizes=sizes)


def _padded(counts: Tensor, align: int, filled: bool) -> Tensor:
    padded = (counts + align - 1) // align * align
    return padded.clamp(min=align) if filled else padded


def place_unread(
    expert: Tensor, experts: int, align: int, *, filled: bool = False
) -> tuple[Tensor, Groups]:
    """As :func:`place`, in an array that has room for every outcome: the host reads nothing.

    ``expert`` may be ``experts``, of a row that nobody reads: those come behind all groups.
    """
    counts = count_choices(expert, experts + 1)
    padded = torch.cat((_padded(counts[:-1], align, filled), counts[-1:]))
    ends = padded.cumsum(0)
    position = _positions(expert, counts, ends - padded)
    room = len(expert) + (experts * align if filled else min(experts, len(expert)) * (align - 1))
    room = -(-room // align) * align
    return position, Groups(ends=ends[:-1].to(torch.int32), sizes=None, room=room)


def _positions(expert: Tensor, counts: Tensor, starts: Tensor) -> Tensor:
    """``[A]`` where choices of ``expert [A]`` go whose groups begin at ``starts``, in order."""
    order = torch.argsort(expert, stable=True)
    gap = starts - (counts.cumsum(0) - counts)
    position = torch.empty_like(order)
    rank = torch.arange(len(order), device=order.device)
    position[order] = rank + gap.gather(0, expert.gather(0, order))
    return position


def with_sizes(groups: Groups) -> Groups:
    """``groups`` with sizes that the host knows, and waits for where it has to."""
    if groups.sizes is not None:
        return groups
    counts = torch.diff(groups.ends, prepend=groups.ends.new_zeros(1))
    return Groups(ends=groups.ends, sizes=tuple(host_counts(counts, groups.room)))


def slots(expert: Tensor, experts: int, ranks: int, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each choice goes when every rank is sent ``room`` rows, filled or not.

    ``expert [A]`` as in :func:`place`, ``experts / ranks`` of them on each rank.  Returns
    ``position [A]``, rows of an array of ``ranks * room``; ``filled [ranks, experts / ranks]``, how
    many of them each expert gets; and how many choices a rank would have to be sent at most.  Where
    these are more than ``room``, positions are no longer distinct: the outcome is of no use.
    """
    counts = count_choices(expert, experts)
    own = counts.view(ranks, -1)
    sent = own.sum(1)
    rank = expert // own.shape[1]
    within = _positions(expert, counts, counts.cumsum(0) - counts)
    within = within - (sent.cumsum(0) - sent).gather(0, rank)
    filled = torch.diff(own.cumsum(1).clamp(max=room), dim=1, prepend=own.new_zeros(ranks, 1))
    return rank * room + within.clamp(max=room - 1), filled, sent.max()


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
