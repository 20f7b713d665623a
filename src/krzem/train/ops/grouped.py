"""One matrix per group of rows: the experts' linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from krzem.train.ops.registry import operator

ALIGN = 64
"""Rows of a group are rounded up to this: shapes repeat, and kernels need no ragged edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """How rows are divided: group ``e`` holds rows ``ends[e-1]`` to ``ends[e]``."""

    ends: Tensor
    """[E] int32, on the device."""
    sizes: tuple[int, ...]
    """The same on the host, as sizes; each a multiple of ``ALIGN``."""


@operator
def grouped_linear(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """``x [P, I]`` times the transpose of its group's matrix ``weight [E, O, I]``: ``[P, O]``."""
    return _Grouped.apply(x, weight, groups.sizes)


class _Grouped(torch.autograd.Function):
    """Writes each group's product into its place: no concatenation, no per-group autograd nodes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sizes = sizes
        out = x.new_empty(x.shape[0], weight.shape[1])
        for e, rows in _spans(sizes):
            torch.mm(x[rows], weight[e].t(), out=out[rows])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        g = g.contiguous()
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        dw = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for e, rows in _spans(ctx.sizes):
            if dx is not None:
                torch.mm(g[rows], weight[e], out=dx[rows])
            if dw is not None:
                torch.mm(g[rows].t(), x[rows], out=dw[e])
        return dx, dw, None


def _spans(sizes: tuple[int, ...]) -> list[tuple[int, slice]]:
    spans, start = [], 0
    for e, size in enumerate(sizes):
        if size:
            spans.append((e, slice(start, start + size)))
        start += size
    return spans
