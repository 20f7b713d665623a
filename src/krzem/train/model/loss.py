"""Next-token loss over a vocabulary that may be cut over tensor-parallel ranks.

Shape letters: M tokens, m tokens of a piece, V this rank's vocabulary, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from krzem.train.ops.logits import logit_gradient, logit_sums
from krzem.train.ops.products import add_transposed_product, product
from krzem.train.parallel.axis import Axis
from krzem.train.parallel.collectives import max_over, sum_over

IGNORE = -100
"""Target of tokens that have none."""
_LOGITS = {"cpu": 2**20}
"""Float32 logits of a piece: on a processor as many as its caches hold, elsewhere 128 MiB."""
_ROWS = 256
"""Tokens of a piece at least, so that reading the output matrix is worth it."""


def token_losses(
    x: Tensor, matrix: Tensor, target: Tensor, axis: Axis, z_weight: float, share: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy of ``x [M, D]``, and ``share`` of it with ``z_weight *
    logsumexp^2`` added.

    ``matrix [V, D]`` holds this rank's rows of the output matrix.  Every rank of ``axis`` gets the
    same values, and the gradient of its own rows.  The first value has no gradient.

    Logits exist for a piece of the tokens at a time: their gradient is known once they are, so
    that of ``x`` and ``matrix`` is computed on the way and no logits are kept or computed twice.
    It waits for the backward pass in the type of ``matrix``, ``share`` included: where the loss is
    not scaled further, it is rounded once.
    """
    plain, full = _TokenLosses.apply(x, matrix, target, axis, z_weight, share)
    return plain, full


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        matrix: Tensor,
        target: Tensor,
        axis: Axis,
        z_weight: float,
        share: float,
    ) -> tuple[Tensor, Tensor]:
        needed = any(ctx.needs_input_grad)
        plain, full = x.new_zeros(2, dtype=torch.float32).unbind()
        dx, dm = torch.empty_like(x) if needed else None, None
        for rows in _pieces(len(x), matrix):
            piece = _Piece.of(x[rows], matrix, target[rows], axis)
            own = piece.losses(z_weight)
            plain, full = plain + own[0], full + own[1]
            if dx is not None:
                g = piece.gradient(z_weight)
                dx[rows] = product(g, matrix.t())
                dm = add_transposed_product(dm, g, x[rows])
        if dx is not None and dm is not None:
            ctx.save_for_backward(dx, dm.mul_(share).to(matrix.dtype))
            ctx.share = share
        ctx.mark_non_differentiable(plain)
        return plain, full * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor, g: Tensor) -> tuple[Tensor | None, ...]:
        dx, dm = ctx.saved_tensors
        # A number without axes does not widen the type, but is not rounded to it either.
        return dx * (g * ctx.share), dm * g, None, None, None, None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Some tokens: what their loss and its gradient are made of."""

    logits: Tensor
    """[m, V] of this rank's vocabulary."""
    own: Tensor
    """[m] the target's place among them, -1 where it is not here."""
    chosen: Tensor
    """[m] logit of the target."""
    partition: Tensor
    """[m] the logarithm of the sum of exponentials over all ranks' vocabulary."""
    kept: Tensor
    """[m] whether the token has a target."""

    @classmethod
    def of(cls, x: Tensor, matrix: Tensor, target: Tensor, axis: Axis) -> _Piece:
        """Logits of ``x [m, D]``, and what the ranks of ``axis`` have to know of each other's."""
        logits, kept = product(x, matrix), target != IGNORE
        own = target - axis.rank * len(matrix)
        own = own.masked_fill(~kept | (own < 0) | (own >= len(matrix)), -1)
        part, chosen = logit_sums(logits, own)
        return cls(
            logits=logits,
            own=own,
            chosen=sum_over(chosen, axis),
            partition=_log_sum(part, axis),
            kept=kept,
        )

    def losses(self, z_weight: float) -> tuple[Tensor, Tensor]:
        """The summed cross-entropy, without and with z-loss."""
        plain = ((self.partition - self.chosen) * self.kept).sum()
        if not z_weight:
            return plain, plain
        return plain, plain + z_weight * (self.partition.square() * self.kept).sum()

    def gradient(self, z_weight: float) -> Tensor:
        """[m, V] of the loss with z-loss, with respect to the logits, whose place it may take."""
        factor = self.kept * (1 + 2 * z_weight * self.partition)
        return logit_gradient(self.logits, self.own, self.partition, factor)


def _log_sum(part: Tensor, axis: Axis) -> Tensor:
    """The logarithm of the ranks' summed ``exp(part)``."""
    if axis.size == 1:
        return part
    peak = max_over(part, axis)
    return sum_over((part - peak).exp(), axis).log() + peak


def _pieces(tokens: int, matrix: Tensor) -> list[slice]:
    rows = max(_ROWS, _LOGITS.get(matrix.device.type, 2**25) // len(matrix))
    return [slice(start, start + rows) for start in range(0, tokens, rows)]
