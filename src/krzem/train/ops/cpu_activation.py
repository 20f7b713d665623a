"""The gated activation on processors, forward and backward.

Shape letters: n rows, W width of a network.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from krzem.train.ops import native
from krzem.train.ops.registry import interpreted
from krzem.train.ops.swiglu import swiglu


@swiglu.version("cpu", interpreted)
def swiglu_cpu(gate: Tensor, up: Tensor, limit: float | None = None) -> Tensor:
    """In one pass forward and one backward, where the kernels are."""
    if not native.usable(gate, up):
        return swiglu.portable(gate, up, limit)
    y: Tensor = _Gated.apply(gate, up, limit)
    return y


def activated(gate: Tensor, value: Tensor, limit: float | None) -> Tensor:
    """``silu(gate) * value``, both cut at ``limit``, of ``[n, W]``: ``[n, W]``."""
    if not native.usable(gate, value):
        return swiglu.portable(gate, value, limit)
    out = torch.empty(gate.shape, dtype=gate.dtype)
    native.call("gated", *_rows(gate, value), out, *gate.shape, *_kind(gate, limit))
    return out


def activated_backward(
    g: Tensor, gate: Tensor, value: Tensor, limit: float | None
) -> tuple[Tensor, Tensor]:
    """Gradients of gate beside those of value ``[n, 2W]``, and :func:`activated` again."""
    g, width = g.contiguous(), gate.shape[1]
    if not native.usable(g, gate, value):
        return _backward_in_torch(g, gate, value, limit)
    d_inner, out = g.new_empty(len(g), 2 * width), torch.empty_like(g)
    to = d_inner.split(width, dim=-1)
    rest = (2 * width, out, *gate.shape, *_kind(gate, limit))
    native.call("gated_gradient", g, *_rows(gate, value), *to, *rest)
    return d_inner, out


def _backward_in_torch(
    g: Tensor, gate: Tensor, value: Tensor, limit: float | None
) -> tuple[Tensor, Tensor]:
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


def _rows(gate: Tensor, value: Tensor) -> tuple[Tensor, int, Tensor, int]:
    """Both with the distance of their rows, for kernels that want the last axis contiguous."""
    gate, value = native.with_rows(gate), native.with_rows(value)
    return gate, gate.stride(0), value, value.stride(0)


def _kind(x: Tensor, limit: float | None) -> tuple[float, int]:
    return math.inf if limit is None else limit, native.narrow(x)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, value: Tensor, limit: float | None) -> Tensor:
        ctx.save_for_backward(gate, value)
        ctx.limit = limit
        width = gate.shape[-1]
        out = activated(gate.reshape(-1, width), value.reshape(-1, width), limit)
        return out.view(gate.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        g, (gate, value) = g.contiguous(), (t.reshape(-1, t.shape[-1]) for t in ctx.saved_tensors)
        d_gate, d_value = torch.empty_like(g), torch.empty_like(g)
        rest = (gate.shape[1], None, *gate.shape, *_kind(gate, ctx.limit))
        native.call("gated_gradient", g, *_rows(gate, value), d_gate, d_value, *rest)
        return d_gate, d_value, None
