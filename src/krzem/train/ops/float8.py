"""Linear layers in float8 with a scale for every block (DeepSeek-V3, section 3.3).

Each operand is e4m3 (largest value 448) with float32 scales: activations and gradients one for 128
channels of a row, weights one for 128 x 128.  The product for a weight's gradient contracts tokens,
so its operands are scaled along tokens.  Sums are float32.

Shape letters: M tokens, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from krzem.train.ops.grouped import Groups
from krzem.train.ops.registry import operator

BLOCK = 128
LARGEST = 448.0
"""Of e4m3."""


def quantised(x: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """``x [R, C]`` as e4m3, and the scale of each block of ``rows`` by ``columns``.

    Blocks at the ends may be smaller.  A block of zeros has scale one.
    """
    R, C = x.shape
    wide = F.pad(x.float(), (0, -C % columns, 0, -R % rows))
    blocks = wide.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    peak = blocks.abs().amax(dim=(1, 3))
    scale = torch.where(peak > 0, peak / LARGEST, 1.0)
    packed = (blocks / scale[:, None, :, None]).clamp(-LARGEST, LARGEST).flatten(2).flatten(0, 1)
    return packed[:R, :C].to(torch.float8_e4m3fn), scale


def restored(packed: Tensor, scale: Tensor, rows: int, columns: int) -> Tensor:
    """The float32 values that :func:`quantised` stands for."""
    R, C = packed.shape
    wide = scale.repeat_interleave(rows, 0)[:R].repeat_interleave(columns, 1)[:, :C]
    return packed.float() * wide


@operator
def float8_product(a: Tensor, b: Tensor, whole_blocks: bool) -> Tensor:
    """``a [M, K]`` times the transpose of ``b [N, K]``, both rounded to scaled e4m3: ``[M, N]``.

    ``a`` has a scale for 128 values along K; ``b`` the same, or one for 128 x 128 where
    ``whole_blocks``.  This version restores the values and multiplies in float32: right on every
    device, and no faster.
    """
    rows = BLOCK if whole_blocks else 1
    wide_a = restored(*quantised(a, 1, BLOCK), 1, BLOCK)
    wide_b = restored(*quantised(b, rows, BLOCK), rows, BLOCK)
    return (wide_a @ wide_b.t()).to(a.dtype)


def float8_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [..., I]`` times the transpose of ``weight [O, I]``, plus ``bias``, all three products
    (result and both gradients) in float8."""
    y: Tensor = _Linear.apply(x.flatten(0, -2), weight)
    y = y.unflatten(0, x.shape[:-1])
    return y if bias is None else y + bias


def float8_grouped_linear(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """As :func:`krzem.train.ops.grouped_linear`, group by group in float8."""
    parts = zip(x.split(list(groups.sizes)), weight.unbind(0), strict=True)
    return torch.cat([_Linear.apply(rows, matrix) for rows, matrix in parts])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        if not x.numel():
            return x.new_zeros(len(x), len(weight))
        return float8_product(x, weight, True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        if not x.numel():
            return torch.zeros_like(x), torch.zeros_like(weight)
        dx = float8_product(g, weight.t(), True)
        return dx, float8_product(g.t(), x.t(), False)
