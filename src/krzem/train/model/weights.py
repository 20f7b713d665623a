"""Parameters that know how they may be cut, the plain layers made of them, their initial values.

A parameter carries a ``Cut`` until the model is placed on its ranks; afterwards it may be a
``DTensor``, and :func:`local` gives the part that this rank computes with.

Initial values depend on a parameter's name and the seed alone, not on the layout: it is filled row
by row in blocks, each with a generator of its own, and a rank that holds a part draws only the
blocks that touch it.
"""

from __future__ import annotations

import enum
import hashlib
import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate

from krzem.train.model.recompute import not_kept
from krzem.train.ops import float8_linear, linear, rms_norm
from krzem.train.parallel.collectives import Axes, Axis, reduce_scatter, sum_forward


class Cut(enum.Enum):
    """How tensor or expert parallelism cuts a parameter."""

    WHOLE = "whole"
    """Held whole: its gradient is summed over the ranks that hold different tokens."""
    ROWS = "rows"
    """Output features (dim 0) over tensor-parallel ranks."""
    COLUMNS = "columns"
    """Input features (dim 1) over tensor-parallel ranks."""
    EXPERT_ROWS = "expert-rows"
    """Experts (dim 0) over expert-parallel ranks, width (dim 2) over expert-tensor ranks."""
    EXPERT_COLUMNS = "expert-columns"
    """The same for the down projection."""


def weight(*shape: int, cut: Cut = Cut.WHOLE) -> nn.Parameter:
    """An uninitialised float32 parameter (the model is built on the meta device)."""
    parameter = nn.Parameter(torch.empty(*shape, dtype=torch.float32))
    parameter.cut = cut  # type: ignore[attr-defined]
    return parameter


def local(parameter: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """This rank's part of ``parameter``, in ``dtype``.

    The gradient of a part that other ranks hold too is partial: those ranks see other tokens.
    """
    if isinstance(parameter, DTensor):
        grads = [Partial() if isinstance(p, Replicate) else p for p in parameter.placements]
        parameter = parameter.to_local(grad_placements=grads)
    return parameter if dtype is None else parameter.to(dtype)


def own_heads(sinks: Tensor, heads: int, axes: Axes) -> Tensor:
    """``[heads]``: the sinks of this rank's share of query heads, of ``sinks [H]``."""
    first = (axes.tp.rank * axes.cp.size + axes.cp.rank) * heads
    return local(sinks)[first : first + heads]


class Linear(nn.Module):
    """``y = x W^T + b`` with a weight of ``[outputs, inputs]``, cast to the type of ``x``."""

    def __init__(
        self, inputs: int, outputs: int, cut: Cut = Cut.WHOLE, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.float8 = False
        """Whether products are rounded to float8 with block scales."""
        self.weight = weight(outputs, inputs, cut=cut)
        self.bias = None
        if bias:
            self.bias = weight(outputs, cut=Cut.ROWS if cut is Cut.ROWS else Cut.WHOLE)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., inputs] -> [..., outputs]``."""
        bias = None if self.bias is None else local(self.bias, x.dtype)
        return self._product(x, bias)

    def _product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        multiply = float8_linear if self.float8 else linear
        return multiply(x, local(self.weight, x.dtype), bias)


class RowLinear(Linear):
    """A linear layer whose inputs are cut over tensor-parallel ranks.

    The ranks' partial results are summed, and each rank keeps its part of the sequence (dim 1).
    Partial results are as long as all parts: ``recompute=modules`` forms them again.
    """

    def __init__(self, inputs: int, outputs: int, axis: Axis, *, bias: bool = False) -> None:
        super().__init__(inputs, outputs, Cut.COLUMNS, bias=bias)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, inputs/tp] -> [B, S/tp, outputs]``."""
        with nullcontext() if self.axis.size == 1 else not_kept():
            y = self._product(x)
        y = reduce_scatter(y, self.axis, 1)
        return y if self.bias is None else y + local(self.bias, x.dtype)


class Norm(nn.Module):
    """RMSNorm with a gain: the weight, plus ``offset``."""

    def __init__(self, width: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = weight(width)
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        gain = local(self.weight, x.dtype)
        return rms_norm(x, gain + self.offset if self.offset else gain, self.eps)


class CutNorm(nn.Module):
    """RMSNorm over an axis of ``width`` that may be cut over the ranks of ``axis``."""

    def __init__(self, width: int, eps: float, axis: Axis) -> None:
        super().__init__()
        self.weight = weight(width, cut=Cut.ROWS if axis.size > 1 else Cut.WHOLE)
        self.width, self.eps, self.axis = width, eps, axis

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis ``[..., width / n]`` by its mean square over all ranks."""
        gain = local(self.weight, x.dtype)
        if self.axis.size == 1:
            return rms_norm(x, gain, self.eps)
        wide = x.float()
        squares = sum_forward(wide.square().sum(-1, keepdim=True), self.axis)
        return (wide * torch.rsqrt(squares / self.width + self.eps)).to(x.dtype) * gain


class LayerNorm(nn.Module):
    """Norm that subtracts the mean, with weight and bias (indexers)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias = weight(width), weight(width)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        gain, bias = local(self.weight, x.dtype), local(self.bias, x.dtype)
        return F.layer_norm(x, gain.shape, gain, bias, self.eps)


Region = tuple[slice, ...]
"""The part of a parameter that a rank holds: one slice for each dimension."""


XIELU = {"alpha_p": math.log(math.expm1(0.8)), "alpha_n": math.log(math.expm1(0.8 - 0.5))}
"""Before softplus, which gives slopes of 0.8 on both sides (arXiv 2411.13010)."""


_BLOCK = 2**20
"""Elements drawn with one generator, rounded up to whole rows."""


def initial_values(
    name: str, shape: torch.Size, region: Region, std: float, seed: int, *, offset: float = 0.0
) -> Tensor:
    """The initial values of ``region`` of the parameter ``name``, float32 on the CPU.

    Matrices are normal with ``std``; gains (their weights plus ``offset``) and scales one; biases,
    sinks and offsets zero.  Decays of a recurrence (``A_log``) are logarithms of numbers between
    0.01 and 16, its time steps one, as ``transformers`` begins.
    """
    part = [len(range(*cut.indices(size))) for cut, size in zip(region, shape, strict=True)]
    constant = constant_of(name, offset)
    if constant is not None:
        return torch.full(part, constant)
    out = torch.empty(part)
    rows_per_block = max(1, _BLOCK // max(1, math.prod(shape[1:])))
    start, stop, _ = region[0].indices(shape[0])
    for block in range(start // rows_per_block, -(-stop // rows_per_block)):
        first = block * rows_per_block
        values = _draw(name, seed, block, (min(rows_per_block, shape[0] - first), *shape[1:]))
        low, high = max(start, first), min(stop, first + len(values))
        out[low - start : high - start] = values[(slice(low - first, high - first), *region[1:])]
    if name.endswith("A_log"):
        return (0.01 + (16 - 0.01) * torch.special.ndtr(out)).log()
    return out * std


def constant_of(name: str, offset: float = 0.0) -> float | None:
    """The value of parameters that start constant, None for those drawn at random."""
    last = name.split(".")[-1]
    parent = name.split(".")[-2] if "." in name else ""
    if last in ("gain", "dt_bias"):
        return 1.0
    if last.endswith("bias") or last in ("sinks", "base", "hc_base"):
        return 0.0
    if parent.endswith("norm"):
        return 1.0 - offset
    return {"scale": 1.0, "hc_scale": 1.0, **XIELU}.get(last)


def _draw(name: str, seed: int, block: int, shape: tuple[int, ...]) -> Tensor:
    digest = hashlib.blake2b(f"{seed}/{name}/{block}".encode(), digest_size=8).digest()
    generator = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(shape, generator=generator)
