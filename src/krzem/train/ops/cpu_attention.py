"""Attention on processors: queries and keys written once, head by head; blocks of queries.

A block is held against what it may read.  A compiler gets the same as operators of a library, which
it leaves as they are.

Shape letters: B batch, H heads, G key-value heads, S sequence; N query-key width (unrotated width
where R is the rotated one), V value width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from krzem.train.ops.attention import attention, whole_mask
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


_SHORT = 1024
"""Sequences up to which keeping the weights of all pairs pays off."""
_BLOCK = {torch.float32: 64, torch.bfloat16: 128}
"""Queries of a block."""


@attention.version("cpu")
def attention_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None = None,
    documents: Tensor | None = None,
    spans: Tensor | None = None,
) -> Tensor:
    """Short sequences in blocks, everything else portably."""
    length = q.shape[2]
    if q.dtype not in _BLOCK or length > _SHORT or k.shape[2] != length:
        return attention.portable(q, k, v, scale=scale, window=window, documents=documents)
    if k.shape[1] != q.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    mask = whole_mask(length, q.device, window, documents)
    blocked = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -torch.inf)
    blocks: Tensor = _Blocks.apply(q, k, v, scale, blocked)
    return blocks


def _spans(length: int, dtype: torch.dtype) -> list[tuple[slice, slice]]:
    """The queries of each block and the keys before its end, the last block first."""
    starts = range(0, length, _BLOCK[dtype])
    stops = [min(length, start + _BLOCK[dtype]) for start in starts]
    spans = [(slice(a, b), slice(0, b)) for a, b in zip(starts, stops, strict=True)]
    return spans[::-1]


class _Blocks(torch.autograd.Function):
    """``blocked [B or 1, 1, S, S]`` is added to the scores: 0, or minus infinity."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, blocked: Tensor) -> Tensor:
        B, H, S, _ = q.shape
        ctx.scale, ctx.shape = scale, (B, H, S)
        q, k, v = (t.flatten(0, 1).contiguous() for t in (q, k, v))
        out, weights = v.new_empty(B, S, H, v.shape[-1]), []
        for rows, keys in _spans(S, q.dtype):
            scores = torch.bmm(q[:, rows], k[:, keys].mT)
            # Not in place: selective recomputation keeps what a product gave.
            scores = scores.view(B, H, *scores.shape[1:])
            masked = torch.add(blocked[:, :, rows, keys], scores, alpha=scale)
            weights.append(masked.softmax(-1).flatten(0, 1))
            part = torch.bmm(weights[-1], v[:, keys])
            out[:, rows].copy_(part.view(B, H, *part.shape[1:]).transpose(1, 2))
        ctx.save_for_backward(q, k, v, *weights)
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        B, H, S = ctx.shape
        g = g.flatten(0, 1).contiguous()
        dq, dk, dv = torch.empty_like(q), torch.empty(0), torch.empty(0)
        for (rows, keys), w in zip(_spans(S, v.dtype), weights, strict=True):
            d_weights = torch.bmm(g[:, rows], v[:, keys].mT)
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, w, -1, w.dtype)
            torch.mul(torch.bmm(d_scores, k[:, keys]), ctx.scale, out=dq[:, rows])
            d_keys, d_values = torch.bmm(d_scores.mT, q[:, rows]), torch.bmm(w.mT, g[:, rows])
            if keys.stop == S:  # The first: it reads all keys.
                dk, dv = d_keys, d_values
            else:
                dk[:, keys] += d_keys
                dv[:, keys] += d_values
        dk *= ctx.scale
        return dq.view(B, H, S, -1), dk.view(B, H, S, -1), dv.view(B, H, S, -1), None, None
