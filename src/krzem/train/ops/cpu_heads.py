"""Queries and keys on processors: written once, head by head, as attention reads them.

Shape letters: B batch, S sequence, H heads, N unrotated, R rotated and V value width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from krzem.train.ops.heads import keys_values, rotate_tail
from krzem.train.ops.registry import interpreted
from krzem.train.ops.rope import rotate

_TYPES = (torch.float32, torch.bfloat16)


@rotate.version("cpu", interpreted)
def rotate_cpu(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The same without a rest that stays."""
    return rotate_tail_cpu(x, cos, sin, interleaved)


@rotate_tail.version("cpu", interpreted)
def rotate_tail_cpu(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Neighbouring channels are complex numbers: one product turns them."""
    if not interleaved or x.dtype not in _TYPES or x.shape[-1] % 2:
        with_rest = x.shape[-1] > 2 * cos.shape[-1]
        portable = rotate_tail.portable if with_rest else rotate.portable
        return portable(x, cos, sin, interleaved)
    y: Tensor = _RotateTail.apply(x, torch.complex(cos.float(), sin.float()).unsqueeze(1))
    return y


@keys_values.version("cpu", interpreted)
def keys_values_cpu(kv: Tensor, rotated: Tensor, plain: int) -> tuple[Tensor, Tensor]:
    """Each part is copied once to its place."""
    k, v = _KeysValues.apply(kv, rotated, plain)
    return k, v


def _turn(tail: Tensor, turns: Tensor) -> None:
    """Turn ``tail [B, S, H, R]`` in place by ``turns [S, 1, R/2]``."""
    wide = tail.float() if tail.dtype is torch.bfloat16 else tail
    torch.view_as_complex(wide.unflatten(-1, (-1, 2))).mul_(turns)
    if wide is not tail:
        tail.copy_(wide)


class _RotateTail(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, turns: Tensor) -> Tensor:
        ctx.save_for_backward(turns)
        B, S, H, D = x.shape
        out = x.new_empty(B, H, S, D).transpose(1, 2).copy_(x)
        _turn(out[..., -2 * turns.shape[-1] :], turns)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (turns,) = ctx.saved_tensors
        dx = torch.empty(g.shape, dtype=g.dtype).copy_(g)
        _turn(dx[..., -2 * turns.shape[-1] :], turns.conj())
        return dx, None


class _KeysValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kv: Tensor, rotated: Tensor, plain: int) -> tuple[Tensor, Tensor]:
        ctx.plain = plain
        B, S, H, width = kv.shape
        k = kv.new_empty(B, H, S, plain + rotated.shape[-1]).transpose(1, 2)
        v = kv.new_empty(B, H, S, width - plain).transpose(1, 2)
        k[..., :plain] = kv[..., :plain]
        k[..., plain:] = rotated.unsqueeze(2)
        return k, v.copy_(kv[..., plain:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gk: Tensor, gv: Tensor) -> tuple[Tensor, Tensor, None]:
        plain = ctx.plain
        d_kv = gv.new_empty(*gv.shape[:3], plain + gv.shape[-1])
        d_kv[..., :plain] = gk[..., :plain]
        d_kv[..., plain:] = gv
        return d_kv, gk[..., plain:].sum(2), None
