"""Queries and keys made of a plain and a rotated part.

Shape letters: B batch, S sequence, H heads, N unrotated, R rotated and V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from krzem.train.ops.registry import operator
from krzem.train.ops.rope import rotate


@operator
def rotate_tail(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """:func:`rotate` of the last ``R`` channels of ``x [B, S, H, N + R]``; the others stay."""
    plain, rotated = x.split([x.shape[-1] - 2 * cos.shape[-1], 2 * cos.shape[-1]], dim=-1)
    return torch.cat((plain, rotate(rotated, cos, sin, interleaved)), dim=-1)


def rotate_first(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """:func:`rotate` of the first ``R`` channels of ``x [B, S, H, R + N]``; the others stay."""
    width = 2 * cos.shape[-1]
    if width == x.shape[-1]:
        return rotate(x, cos, sin, interleaved)
    rotated, plain = x.split([width, x.shape[-1] - width], dim=-1)
    return torch.cat((rotate(rotated, cos, sin, interleaved), plain), dim=-1)


@operator
def keys_values(kv: Tensor, rotated: Tensor, plain: int) -> tuple[Tensor, Tensor]:
    """Keys ``[B, S, H, N + R]`` and values ``[B, S, H, V]`` of ``kv [B, S, H, N + V]``.

    All heads share the rotated part ``[B, S, R]`` of the keys; ``plain`` is N.
    """
    own, v = kv.split([plain, kv.shape[-1] - plain], dim=-1)
    return torch.cat((own, rotated.unsqueeze(2).expand(-1, -1, kv.shape[2], -1)), dim=-1), v
