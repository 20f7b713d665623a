"""Collectives with gradients; each is the identity on an axis of size one.

Shapes use ``n`` for the size of the axis.  Gradients follow from one convention: the loss is the
*sum* of what the ranks hold, so the backward of a gather is a reduce-scatter with sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

# Process groups by role, as the modules of a model see them
# ----------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One kind of parallelism: its group, how many ranks it has and which one this is."""

    group: dist.ProcessGroup | None = None
    size: int = 1
    rank: int = 0


ALONE = Axis()


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """The axes that a model computes over."""

    tp: Axis = ALONE
    cp: Axis = ALONE
    sequence: Axis = ALONE
    """``cp`` and ``tp`` together: the ranks that share one sequence."""
    ep: Axis = ALONE
    etp: Axis = ALONE


SINGLE = Axes()
"""Everything on one rank."""

# Collectives with gradients; each is the identity on an axis of size one
# -----------------------------------------------------------------------


def gather(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """All ranks' ``x`` concatenated along ``dim``; the gradient is summed over ranks."""
    return x if axis.size == 1 else _Gather.apply(x, axis, dim)


def reduce_scatter(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """The sum of all ranks' ``x``, of which each keeps its 1/n along ``dim``."""
    return x if axis.size == 1 else _ReduceScatter.apply(x, axis, dim)


def exchange(x: Tensor, axis: Axis, *, split: int, join: int) -> Tensor:
    """All-to-all of equal parts: ``x`` is cut along ``split``, received parts join along ``join``.

    With ``split`` the heads and ``join`` the sequence this is the context-parallel exchange before
    attention, and with the two swapped the one after it.
    """
    return x if axis.size == 1 else _Exchange.apply(x, axis, split, join)


def exchange_rows(x: Tensor, axis: Axis, send: list[int], receive: list[int]) -> Tensor:
    """All-to-all of unequal parts along dim 0: ``send[i]`` rows go to rank i of the axis."""
    return x if axis.size == 1 else _ExchangeRows.apply(x, axis, send, receive)


class Exchange:
    """:func:`exchange_rows` that is under way while the caller computes something else.

    The library runs a group's collectives on a stream of its own, which waits for what the caller's
    stream has been given so far; :meth:`arrived` makes the caller's stream wait for it, and the
    host for nothing.  Until then the library keeps the tensors (c10d's handles).  Backward it is
    the other way round: the gradient sets out where the rows arrived and is awaited where they set
    out, so that what was computed between has its backward pass beside it too.
    """

    def __init__(self, x: Tensor, axis: Axis, send: list[int], receive: list[int]) -> None:
        self._axis, self._send, self._receive = axis, send, receive
        self._under_way: dist.Work | None = None
        self._out: Tensor | None = None
        self._rows: Tensor = _SetOut.apply(x, self)

    def arrived(self) -> Tensor:
        """The rows from all ranks ``[sum(receive), ...]``; asked for once."""
        rows: Tensor = _Arrive.apply(self._rows, self)
        del self._rows
        return rows

    def begin(self, x: Tensor, *, back: bool = False) -> Tensor:
        """Set ``x`` out, or a gradient ``back``: where it will be."""
        send, receive = (self._receive, self._send) if back else (self._send, self._receive)
        out = x.new_empty((sum(receive), *x.shape[1:]))
        self._under_way = dist.all_to_all_single(
            out, x.contiguous(), receive, send, group=self._axis.group, async_op=True
        )
        self._out = out
        return out

    def wait(self) -> Tensor:
        """What set out last; work that this stream is given from now on comes after it."""
        assert self._under_way is not None
        assert self._out is not None
        self._under_way.wait()
        out, self._under_way, self._out = self._out, None, None
        return out


def exchange_counts(counts: Tensor, axis: Axis) -> Tensor:
    """``counts[i]`` of each rank sent to rank i: ``[n, ...] -> [n, ...]``, without gradient."""
    if axis.size == 1:
        return counts
    out = torch.empty_like(counts)
    dist.all_to_all_single(out, counts.contiguous(), group=axis.group)
    return out


def sum_over(x: Tensor, axis: Axis) -> Tensor:
    """The sum of all ranks' ``x``, without gradient."""
    if axis.size == 1:
        return x
    out = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out, group=axis.group)
    return out


def max_over(x: Tensor, axis: Axis) -> Tensor:
    """The largest of all ranks' ``x``, element by element, without gradient."""
    if axis.size == 1:
        return x
    out = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out, op=dist.ReduceOp.MAX, group=axis.group)
    return out


def sum_forward(x: Tensor, axis: Axis) -> Tensor:
    """The sum of all ranks' ``x`` where each rank then uses it for its own part of the loss.

    The gradient is summed over ranks as well.
    """
    return x if axis.size == 1 else _Sum.apply(x, axis)


def gather_no_grad(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """As :func:`gather`, for indices and masks."""
    return x if axis.size == 1 else _all_gather(x, axis, dim)


def _all_gather(x: Tensor, axis: Axis, dim: int) -> Tensor:
    x = x.contiguous()
    out = x.new_empty((axis.size * x.shape[0], *x.shape[1:]))
    dist.all_gather_into_tensor(out, x, group=axis.group)
    return out if dim == 0 else torch.cat(out.chunk(axis.size), dim)


def _sum_scatter(x: Tensor, axis: Axis, dim: int) -> Tensor:
    x = torch.cat(x.chunk(axis.size, dim)) if dim else x.contiguous()
    out = x.new_empty((x.shape[0] // axis.size, *x.shape[1:]))
    dist.reduce_scatter_tensor(out, x, group=axis.group)
    return out


def _swap(x: Tensor, axis: Axis, split: int, join: int) -> Tensor:
    parts = torch.stack(x.chunk(axis.size, split)).contiguous()
    out = torch.empty_like(parts)
    dist.all_to_all_single(out, parts, group=axis.group)
    return torch.cat(out.unbind(0), join)


def _swap_rows(x: Tensor, axis: Axis, send: list[int], receive: list[int]) -> Tensor:
    out = x.new_empty((sum(receive), *x.shape[1:]))
    dist.all_to_all_single(out, x.contiguous(), receive, send, group=axis.group)
    return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return _all_gather(x, axis, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _sum_scatter(g, ctx.axis, ctx.dim), None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return _sum_scatter(x, axis, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _all_gather(g, ctx.axis, ctx.dim), None, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, split: int, join: int) -> Tensor:
        ctx.axis, ctx.split, ctx.join = axis, split, join
        return _swap(x, axis, split, join)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _swap(g, ctx.axis, ctx.join, ctx.split), None, None, None


class _ExchangeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, send: list[int], receive: list[int]) -> Tensor:
        ctx.axis, ctx.send, ctx.receive = axis, send, receive
        return _swap_rows(x, axis, send, receive)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return _swap_rows(g, ctx.axis, ctx.receive, ctx.send), None, None, None


class _SetOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.begin(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.wait(), None


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        exchange.wait()
        return rows.view_as(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        ctx.exchange.begin(g, back=True)
        # Autograd asks for a gradient of the rows: the exchange holds the one that counts.
        return g.new_empty(()).expand_as(g), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return sum_over(x, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return sum_over(g, ctx.axis), None
