"""One matrix per group of rows: the experts' linear layers, and their gated networks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from krzem.train.ops.portable import swiglu
from krzem.train.ops.products import product_into, transposed_product_into
from krzem.train.ops.registry import operator

ALIGN = 64
"""Rows of a group are rounded up to this: shapes repeat, and kernels need no ragged edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """How rows are divided: group ``e`` holds rows ``ends[e-1]`` to ``ends[e]``."""

    ends: Tensor
    """[E] int32, on the device."""
    sizes: tuple[int, ...] | None
    """The same on the host, as sizes; None where the host does not know them."""
    room: int = 0
    """Rows that there is room for, where it does not: those behind the last group hold nothing."""

    @property
    def rows(self) -> int:
        """Of the grouped array."""
        return self.room if self.sizes is None else sum(self.sizes)

    @property
    def known(self) -> list[int] | None:
        """The sizes as an operator takes them."""
        return None if self.sizes is None else list(self.sizes)


@operator
def grouped_linear(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """``x [P, I]`` times the transpose of its group's matrix ``weight [E, O, I]``: ``[P, O]``."""
    out: Tensor = _forward(x, weight, groups.ends, groups.known)
    return out


# A library operator is one unit for torch: selective recomputation can keep its result, and each
# group's product is written into its place without a concatenation.
@torch.library.custom_op("krzem::grouped_linear", mutates_args=())
def _forward(x: Tensor, weight: Tensor, ends: Tensor, sizes: list[int] | None) -> Tensor:
    out = x.new_empty(x.shape[0], weight.shape[1])
    for e, rows in group_spans(read_sizes(ends, sizes)):
        product_into(out[rows], x[rows], weight[e])
    return out


@torch.library.custom_op("krzem::grouped_linear_backward", mutates_args=())
def _backward(
    g: Tensor, x: Tensor, weight: Tensor, ends: Tensor, sizes: list[int] | None
) -> tuple[Tensor, Tensor]:
    g = g.contiguous()
    dx, dw = torch.empty_like(x), torch.empty_like(weight)
    sizes = read_sizes(ends, sizes)
    for e, size in enumerate(sizes):
        if not size:
            dw[e].zero_()
    for e, rows in group_spans(sizes):
        product_into(dx[rows], g[rows], weight[e].t())
        transposed_product_into(dw[e], g[rows], x[rows])
    return dx, dw


@_forward.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor, sizes: list[int] | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_backward.register_fake
def _(
    g: Tensor, x: Tensor, weight: Tensor, ends: Tensor, sizes: list[int] | None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ends, ctx.sizes = inputs
    ctx.save_for_backward(x, weight, ends)


def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None]:
    return (*_backward(g, *ctx.saved_tensors, ctx.sizes), None, None)


_forward.register_autograd(_gradients, setup_context=_keep)


def read_sizes(ends: Tensor, sizes: list[int] | None) -> list[int]:
    """Sizes of groups: on a processor, which is the host, the ends tell them at no cost."""
    if sizes is not None:
        return sizes
    return [stop - start for start, stop in itertools.pairwise([0, *ends.tolist()])]


def group_spans(sizes: list[int]) -> list[tuple[int, slice]]:
    """Each group that has rows, and where they are."""
    spans, start = [], 0
    for e, size in enumerate(sizes):
        if size:
            spans.append((e, slice(start, start + size)))
        start += size
    return spans


@operator
def grouped_network(
    x: Tensor, up: Tensor, down: Tensor, groups: Groups, limit: float | None = None
) -> Tensor:
    """Rows ``x [P, D]`` through their group's network: ``[P, D]``.

    ``up [E, 2W, D]`` holds the gate's rows before those of the value, ``down [E, D, W]``; ``limit``
    is that of :func:`swiglu`.
    """
    gate, value = grouped_linear(x, up, groups).chunk(2, dim=-1)
    return grouped_linear(swiglu(gate, value, limit), down, groups)
