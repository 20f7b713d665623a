"""The experts' gated networks on processors: one group after the other, while it is in the caches.

Shape letters: P rows, E groups, n rows of a group, D hidden, W width of a network.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from krzem.train.ops.grouped import Groups, group_spans, grouped_network, read_sizes
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
