"""Queries and keys on processors: written once, head by head, as attention reads them.

A compiler gets the same as operators of a library, which it leaves as they are.

Shape letters: B batch, S sequence, H heads, N unrotated, R rotated and V value width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from krzem.train.ops.portable import keys_values, rotate, rotate_tail

_TYPES = (torch.float32, torch.bfloat16)


@rotate.version("cpu", traceable=True)
def rotate_cpu(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The same without a rest that stays."""
    return rotate_tail_cpu(x, cos, sin, interleaved)


@rotate_tail.version("cpu", traceable=True)
def rotate_tail_cpu(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Neighbouring channels are complex numbers: one product turns them."""
    if not interleaved or x.dtype not in _TYPES or x.shape[-1] % 2:
        with_rest = x.shape[-1] > 2 * cos.shape[-1]
        portable = rotate_tail.portable if with_rest else rotate.portable
        return portable(x, cos, sin, interleaved)
    y: Tensor = _turned(x, cos.float(), sin.float())
    return y


@keys_values.version("cpu", traceable=True)
def keys_values_cpu(kv: Tensor, rotated: Tensor, plain: int) -> tuple[Tensor, Tensor]:
    """Each part is copied once to its place."""
    k, v = _joined(kv, rotated, plain)
    return k, v


def _by_head(x: Tensor, width: int) -> Tensor:
    """An uninitialised ``[B, S, H, width]`` for ``x [B, S, H, D]``, laid head by head."""
    B, S, H, _ = x.shape
    return x.new_empty(B, H, S, width).transpose(1, 2)


def _turn(tail: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn ``tail [B, S, H, R]`` in place by ``cos, sin [S, R/2]``."""
    turns = torch.complex(cos, sin).unsqueeze(1)
    wide = tail.float() if tail.dtype is torch.bfloat16 else tail
    torch.view_as_complex(wide.unflatten(-1, (-1, 2))).mul_(turns)
    if wide is not tail:
        tail.copy_(wide)


@torch.library.custom_op("krzem::rotate_tail", mutates_args=())
def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = _by_head(x, x.shape[-1]).copy_(x)
    _turn(out[..., -2 * cos.shape[-1] :], cos, sin)
    return out


@torch.library.custom_op("krzem::rotate_tail_backward", mutates_args=())
def _turned_back(g: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    dx = torch.empty(g.shape, dtype=g.dtype).copy_(g)
    _turn(dx[..., -2 * cos.shape[-1] :], cos, -sin)
    return dx


@torch.library.custom_op("krzem::keys_values", mutates_args=())
def _joined(kv: Tensor, rotated: Tensor, plain: int) -> tuple[Tensor, Tensor]:
    k, v = _by_head(kv, plain + rotated.shape[-1]), _by_head(kv, kv.shape[-1] - plain)
    k[..., :plain] = kv[..., :plain]
    k[..., plain:] = rotated.unsqueeze(2)
    return k, v.copy_(kv[..., plain:])


@torch.library.custom_op("krzem::keys_values_backward", mutates_args=())
def _divided(gk: Tensor, gv: Tensor, plain: int) -> tuple[Tensor, Tensor]:
    d_kv = gv.new_empty(*gv.shape[:3], plain + gv.shape[-1])
    d_kv[..., :plain] = gk[..., :plain]
    d_kv[..., plain:] = gv
    return d_kv, gk[..., plain:].sum(2)


@_turned.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _by_head(x, x.shape[-1])


@_turned_back.register_fake
def _(g: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.empty(g.shape, dtype=g.dtype, device=g.device)


@_joined.register_fake
def _(kv: Tensor, rotated: Tensor, plain: int) -> tuple[Tensor, Tensor]:
    return _by_head(kv, plain + rotated.shape[-1]), _by_head(kv, kv.shape[-1] - plain)


@_divided.register_fake
def _(gk: Tensor, gv: Tensor, plain: int) -> tuple[Tensor, Tensor]:
    d_kv = gv.new_empty(*gv.shape[:3], plain + gv.shape[-1])
    return d_kv, gk.new_empty(*gk.shape[:2], gk.shape[-1] - plain)


def _keep_angles(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _keep_plain(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Any) -> None:
    ctx.plain = inputs[2]


_turned.register_autograd(
    lambda ctx, g: (_turned_back(g, *ctx.saved_tensors), None, None), setup_context=_keep_angles
)
_joined.register_autograd(
    lambda ctx, gk, gv: (*_divided(gk, gv, ctx.plain), None), setup_context=_keep_plain
)
