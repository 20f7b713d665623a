"""Next-token loss over a vocabulary that may be cut over tensor-parallel ranks.

Shape letters: M tokens, V this rank's vocabulary, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from krzem.train.parallel.axis import Axis
from krzem.train.parallel.collectives import max_over, sum_over

IGNORE = -100
"""Target of tokens that have none."""
_CHUNK = 2**25
"""Logits kept at a time; above this they are computed again in the backward pass."""


def token_losses(
    x: Tensor, matrix: Tensor, target: Tensor, axis: Axis, z_weight: float
) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy of ``x [M, D]`` and the same plus ``z_weight * logsumexp^2``.

    ``matrix [V, D]`` holds this rank's rows of the output matrix.  Every rank of ``axis`` gets the
    same values, and the gradient of its own rows.
    """
    count = max(1, -(-x.shape[0] * matrix.shape[0] // _CHUNK))
    if count == 1:
        return _losses(x, matrix, target, axis, z_weight)
    parts = [
        checkpoint(_losses, a, matrix, b, axis, z_weight, use_reentrant=False)
        for a, b in zip(x.chunk(count), target.chunk(count), strict=True)
    ]
    return sum(p[0] for p in parts), sum(p[1] for p in parts)


def _losses(
    x: Tensor, matrix: Tensor, target: Tensor, axis: Axis, z_weight: float
) -> tuple[Tensor, Tensor]:
    logits = F.linear(x, matrix).float()
    if axis.size == 1 and not z_weight:
        loss = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
        return loss, loss
    partition = _logsumexp(logits, axis)
    kept = target != IGNORE
    own = target - axis.rank * matrix.shape[0]
    here = kept & (own >= 0) & (own < matrix.shape[0])
    picked = logits.gather(1, own.clamp(0, matrix.shape[0] - 1)[:, None]).squeeze(1)
    chosen = _sum(picked * here, axis)
    loss = ((partition - chosen) * kept).sum()
    return loss, loss + z_weight * (partition.square() * kept).sum()


def _logsumexp(logits: Tensor, axis: Axis) -> Tensor:
    if axis.size == 1:
        return logits.logsumexp(-1)
    peak = max_over(logits.detach().amax(-1), axis)
    return _sum((logits - peak[:, None]).exp().sum(-1), axis).log() + peak


def _sum(x: Tensor, axis: Axis) -> Tensor:
    return x if axis.size == 1 else _SumSame.apply(x, axis)


class _SumSame(torch.autograd.Function):
    """A sum that every rank uses in the same way: the gradient passes without a collective."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return sum_over(x, axis)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g, None
