"""Experts on processors: one group after the other, while it is in the caches; rows there and back.

Each array of rows is read and written once.

Shape letters: M tokens, K choices per token, P rows after grouping (padding included), E groups, n
rows of a group, D hidden (the width of a row), W width of a network.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from krzem.train.ops.grouped import Groups, group_spans, grouped_network, read_sizes
from krzem.train.ops.permute import combine, permute
from krzem.train.ops.portable import swiglu
from krzem.train.ops.products import product, product_into, transposed_product_into


@grouped_network.version("cpu")
def grouped_network_cpu(
    x: Tensor, up: Tensor, down: Tensor, groups: Groups, limit: float | None = None
) -> Tensor:
    """Both products of a group and what lies between them, before the next group."""
    y, _ = _forward(x, up, down, groups.ends, groups.known, limit)
    return y


# A library operator is one unit for torch: selective recomputation can keep its results.
@torch.library.custom_op("krzem::grouped_network", mutates_args=())
def _forward(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    ends: Tensor,
    sizes: list[int] | None,
    limit: float | None,
) -> tuple[Tensor, Tensor]:
    """The result ``[P, D]``, and gate and value ``[P, 2W]``, which the backward needs."""
    y, inner = torch.empty_like(x), x.new_empty(len(x), up.shape[1])
    for e, rows in group_spans(read_sizes(ends, sizes)):
        product_into(inner[rows], x[rows], up[e])
        gate, value = inner[rows].chunk(2, dim=-1)
        product_into(y[rows], swiglu.portable(gate, value, limit), down[e])
    return y, inner


@torch.library.custom_op("krzem::grouped_network_backward", mutates_args=())
def _backward(
    g: Tensor,
    x: Tensor,
    inner: Tensor,
    up: Tensor,
    down: Tensor,
    ends: Tensor,
    sizes: list[int] | None,
    limit: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    g = g.contiguous()
    dx, d_up, d_down = torch.empty_like(x), torch.empty_like(up), torch.empty_like(down)
    sizes = read_sizes(ends, sizes)
    for e, size in enumerate(sizes):
        if not size:
            d_up[e].zero_()
            d_down[e].zero_()
    for e, rows in group_spans(sizes):
        gate, value = inner[rows].chunk(2, dim=-1)
        d_hidden = product(g[rows], down[e].t())
        d_inner, hidden = _activated_backward(d_hidden, gate, value, limit)
        transposed_product_into(d_down[e], g[rows], hidden)
        product_into(dx[rows], d_inner, up[e].t())
        transposed_product_into(d_up[e], d_inner, x[rows])
    return dx, d_up, d_down


@_forward.register_fake
def _(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    ends: Tensor,
    sizes: list[int] | None,
    limit: float | None,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0], up.shape[1])


@_backward.register_fake
def _(
    g: Tensor,
    x: Tensor,
    inner: Tensor,
    up: Tensor,
    down: Tensor,
    ends: Tensor,
    sizes: list[int] | None,
    limit: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(up), torch.empty_like(down)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, up, down, ends, ctx.sizes, ctx.limit = inputs
    ctx.save_for_backward(x, output[1], up, down, ends)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, g: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*_backward(g, *ctx.saved_tensors, ctx.sizes, ctx.limit), None, None, None)


_forward.register_autograd(_gradients, setup_context=_keep)


def _activated_backward(
    g: Tensor, gate: Tensor, value: Tensor, limit: float | None
) -> tuple[Tensor, Tensor]:
    """Gradients of gate beside those of value ``[n, 2W]``, and the activation ``[n, W]`` again."""
    cut_gate = gate if limit is None else gate.clamp(max=limit)
    cut_value = value if limit is None else value.clamp(-limit, limit)
    active = F.silu(cut_gate)
    out = active * cut_value
    d_value = active.mul_(g)
    d_gate = torch.ops.aten.silu_backward(g * cut_value, cut_gate)
    if limit is not None:
        d_gate.masked_fill_(gate > limit, 0.0)
        d_value.masked_fill_(value.abs() > limit, 0.0)
    return torch.cat((d_gate, d_value), dim=-1), out


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
