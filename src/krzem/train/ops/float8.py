"""Linear layers in float8 with a scale for every block (DeepSeek-V3, section 3.3).

Each operand is e4m3 (largest value 448) with float32 scales: activations and gradients one for 128
channels of a row, weights one for 128 x 128.  The product for a weight's gradient contracts tokens,
so its operands are scaled along tokens.  Sums are float32.

Experts may have coarser scales, one for a whole row and one for all tokens of an expert: for these
torch has products that take all experts at once and do not ask the host how many rows each has.

Shape letters: M tokens, P rows grouped by expert, E experts, I inputs, O outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from krzem.train.ops.grouped import Groups, group_spans, grouped_linear, read_sizes
from krzem.train.ops.permute import with_sizes
from krzem.train.ops.registry import operator

BLOCK = 128
LARGEST = 448.0
"""Of e4m3."""


class Quantised(NamedTuple):
    """A matrix ``[R, C]`` as e4m3, and the float32 scale of each block of it."""

    packed: Tensor
    scale: Tensor


Operand = Tensor | Quantised


def quantised(x: Tensor, rows: int, columns: int) -> Quantised:
    """``x [R, C]`` as e4m3, with a scale for each block of ``rows`` by ``columns``.

    Blocks at the ends may be smaller.  A block of zeros has scale one.
    """
    R, C = x.shape
    wide = F.pad(x.float(), (0, -C % columns, 0, -R % rows))
    blocks = wide.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))
    peak = blocks.abs().amax(dim=(1, 3))
    scale = torch.where(peak > 0, peak / LARGEST, 1.0)
    packed = (blocks / scale[:, None, :, None]).clamp(-LARGEST, LARGEST).flatten(2).flatten(0, 1)
    return Quantised(packed[:R, :C].to(torch.float8_e4m3fn), scale)


def of_operand(x: Operand, rows: int) -> Quantised:
    """``x`` in blocks of ``rows`` by 128, where it is not quantised already."""
    return quantised(x, rows, BLOCK) if isinstance(x, Tensor) else x


def restored(packed: Tensor, scale: Tensor, rows: int, columns: int) -> Tensor:
    """The float32 values that :func:`quantised` stands for."""
    R, C = packed.shape
    wide = scale.repeat_interleave(rows, 0)[:R].repeat_interleave(columns, 1)[:, :C]
    return packed.float() * wide


@operator
def float8_product(
    a: Operand, b: Operand, whole_blocks: bool, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """``a [M, K]`` times the transpose of ``b [N, K]`` in scaled e4m3: ``[M, N]`` of ``dtype``.

    ``a`` has a scale for 128 of a row's entries; ``b`` too, or, where ``whole_blocks``, for
    128 x 128.  What is not quantised yet is rounded so first.  This version restores the rounded
    values and multiplies in float32: exact, on any device, and no faster.
    """
    rows = BLOCK if whole_blocks else 1
    wide_a = restored(*of_operand(a, 1), 1, BLOCK)
    wide_b = restored(*of_operand(b, rows), rows, BLOCK)
    return (wide_a @ wide_b.t()).to(dtype)


def float8_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [..., I]`` times the transpose of ``weight [O, I]``, plus ``bias``, all three products
    (result and both gradients) in float8."""
    y: Tensor = _Linear.apply(x.flatten(0, -2), weight)
    y = y.unflatten(0, x.shape[:-1])
    return y if bias is None else y + bias


def float8_grouped_linear(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """As :func:`krzem.train.ops.grouped_linear`, group by group in float8.

    Groups begin at multiples of 128 rows, so that no block of tokens lies in two of them.
    """
    y: Tensor = _GroupedLinear.apply(x, weight, with_sizes(groups).known)
    return y


class _GroupedLinear(torch.autograd.Function):
    """Each operand is rounded once, for all groups together; torch has no grouped product with
    block scales, so products are taken group by group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sizes: list[int]) -> Tensor:
        blocks = _quantised_stack(weight)
        rows, along = quantised(x, 1, BLOCK), quantised(x.t(), 1, BLOCK)
        ctx.save_for_backward(*blocks, *along)
        ctx.sizes, ctx.dtypes = sizes, (x.dtype, weight.dtype)
        out = x.new_zeros(len(x), weight.shape[1])
        for e, span in group_spans(sizes):
            part = Quantised(rows.packed[span], rows.scale[span])
            matrix = Quantised(blocks.packed[e], blocks.scale[e])
            out[span] = float8_product(part, matrix, True, x.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        packed, scale, packed_x, scale_x = ctx.saved_tensors
        dtype, weight_dtype = ctx.dtypes
        dx = g.new_zeros(len(g), packed.shape[2], dtype=dtype)
        dw = g.new_zeros(packed.shape, dtype=weight_dtype)
        rows, along = quantised(g, 1, BLOCK), quantised(g.t(), 1, BLOCK)
        for e, span in group_spans(ctx.sizes):
            turned = Quantised(packed[e].t(), scale[e].t())
            dx[span] = float8_product(
                Quantised(rows.packed[span], rows.scale[span]), turned, True, dtype
            )
            tokens = slice(span.start // BLOCK, -(-span.stop // BLOCK))
            left = Quantised(along.packed[:, span], along.scale[:, tokens])
            right = Quantised(packed_x[:, span], scale_x[:, tokens])
            dw[e] = float8_product(left, right, False, weight_dtype)
        return dx, dw, None


def rows_quantised(x: Tensor) -> Quantised:
    """``x [..., C]`` as e4m3, contiguous, with a scale ``[...]`` for each row."""
    scale = _scale_of(x.abs().amax(-1).float())
    return Quantised(_narrow(x.float() / scale.unsqueeze(-1)), scale)


def tokens_quantised(x: Tensor, ends: Tensor) -> Quantised:
    """The transpose of ``x [P, C]`` as e4m3 ``[C, P]``, with a scale ``[E, C]`` for all rows of a
    group that ends at ``ends [E]``, a multiple of 128; rows behind all groups have their own."""
    blocks = x.unflatten(0, (-1, BLOCK))
    first = torch.arange(len(blocks), device=x.device, dtype=ends.dtype) * BLOCK
    group = torch.searchsorted(ends, first, right=True)
    peaks, own = x.new_zeros(len(ends) + 1, x.shape[1]), blocks.abs().amax(1)
    peaks.scatter_reduce_(0, group.unsqueeze(1).expand_as(own), own, "amax")
    scale = _scale_of(peaks.float())
    values = blocks.float() / scale.index_select(0, group).unsqueeze(1)
    return Quantised(_narrow(values.flatten(0, 1).t()), scale[:-1])


def _scale_of(peak: Tensor) -> Tensor:
    return torch.where(peak > 0, peak / LARGEST, 1.0)


def _narrow(values: Tensor) -> Tensor:
    packed = values.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return packed.view(torch.uint8).contiguous().view(packed.dtype)


@operator
def float8_rows_product(a: Quantised, b: Quantised, groups: Groups, dtype: torch.dtype) -> Tensor:
    """``a [P, K]`` times the transpose of its group's ``b [E, N, K]``: ``[P, N]`` of ``dtype``.

    Each row has a scale: ``[P]`` and ``[E, N]``.
    """
    wide_a, wide_b = (t.packed.float() * t.scale.unsqueeze(-1) for t in (a, b))
    return grouped_linear.portable(wide_a, wide_b, groups).to(dtype)


@operator
def float8_tokens_product(a: Quantised, b: Quantised, groups: Groups, dtype: torch.dtype) -> Tensor:
    """For each group its columns of ``a [O, P]`` times those of ``b [I, P]``: ``[E, O, I]``.

    Scales ``[E, O]`` and ``[E, I]`` are of all columns of a group; a group has at least one block.
    """
    out = a.scale.new_zeros(len(groups.ends), len(a.packed), len(b.packed))
    for e, span in group_spans(read_sizes(groups.ends, groups.known)):
        left, right = (t.packed[:, span].float() * t.scale[e].unsqueeze(-1) for t in (a, b))
        torch.mm(left, right.t(), out=out[e])
    return out.to(dtype)


def float8_rows_linear(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """As :func:`float8_grouped_linear`, with a scale for each row and for each group's tokens."""
    y: Tensor = _RowsLinear.apply(x, weight, groups)
    return y


class _RowsLinear(torch.autograd.Function):
    """Each operand is rounded once for each product that it is in, for all groups together; of the
    input and the weight a byte an entry is kept, as the gradients need them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
        turned, along = rows_quantised(weight.mT), tokens_quantised(x, groups.ends)
        ctx.save_for_backward(*turned, *along)
        ctx.groups, ctx.dtypes = groups, (x.dtype, weight.dtype)
        return float8_rows_product(rows_quantised(x), rows_quantised(weight), groups, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        packed, scale, *along = ctx.saved_tensors
        dtype, weight_dtype = ctx.dtypes
        dx = float8_rows_product(rows_quantised(g), Quantised(packed, scale), ctx.groups, dtype)
        left = tokens_quantised(g, ctx.groups.ends)
        dw = float8_tokens_product(left, Quantised(*along), ctx.groups, weight_dtype)
        return dx, dw, None


def _quantised_stack(weight: Tensor) -> Quantised:
    """``weight [E, O, I]`` in blocks of 128 x 128 of each matrix."""
    experts, outputs, _ = weight.shape
    tall = F.pad(weight, (0, 0, 0, -outputs % BLOCK))
    packed, scale = quantised(tall.flatten(0, 1), BLOCK, BLOCK)
    packed, scale = (t.unflatten(0, (experts, -1)) for t in (packed, scale))
    return Quantised(packed[:, :outputs], scale)


class _Linear(torch.autograd.Function):
    """Keeps a byte for each entry of its operands: the weight's blocks serve both products that
    they are in, the input is kept as the weight's gradient needs it, scaled along tokens."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        blocks = quantised(weight, BLOCK, BLOCK)
        along = (
            quantised(x.t(), 1, BLOCK) if ctx.needs_input_grad[1] else quantised(x[:0].t(), 1, 1)
        )
        ctx.save_for_backward(*blocks, *along)
        ctx.dtypes = x.dtype, weight.dtype
        if not x.numel():
            return x.new_zeros(len(x), len(weight))
        return float8_product(x, blocks, True, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        packed, scale, *along = ctx.saved_tensors
        dtype, weight_dtype = ctx.dtypes
        needs_x, needs_weight = ctx.needs_input_grad
        if not g.numel():
            return g.new_zeros(len(g), packed.shape[1]), g.new_zeros(packed.shape)
        turned = Quantised(packed.t(), scale.t())
        dx = float8_product(g, turned, True, dtype) if needs_x else None
        if not needs_weight:
            return dx, None
        return dx, float8_product(g.t(), Quantised(*along), False, weight_dtype)
