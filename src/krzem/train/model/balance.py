"""Losses that act on routers, attached where they arise.

They cannot travel to the last pipeline stage, so each is tied to the layer's output: the forward
value passes unchanged, the backward starts the loss's own gradient with one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from krzem.train.model.router import Routing
from krzem.train.parallel.axis import Axis
from krzem.train.parallel.collectives import sum_over


def sequence_balance(routing: Routing, sequences: int, length: int, axis: Axis) -> Tensor:
    """This rank's part of ``sum over sequences of sum_i f_i P_i`` (DeepSeek-V3, equation 17-20).

    ``f_i`` is the share of choices that expert i got, times the number of experts; ``P_i`` its
    mean share of the normalised scores.  ``sequences`` are those of the micro-batch, ``length``
    the whole sequence, which is cut over ``axis``.
    """
    index, scores = routing.index, routing.scores
    experts, choices = scores.shape[1], index.shape[1]
    share = scores / (scores.sum(-1, keepdim=True) + 1e-20)
    chosen = torch.zeros_like(scores).scatter_(1, index, 1.0).detach()
    counts = sum_over(chosen.view(sequences, -1, experts).sum(1), axis)
    f = counts * (experts / (choices * length))
    p = share.view(sequences, -1, experts).sum(1) / length
    return (f * p).sum()


def router_z(routing: Routing) -> Tensor:
    """``sum over tokens of logsumexp(logits)^2``: keeps router logits small."""
    return routing.logits.logsumexp(-1).square().sum()


def attach(x: Tensor, loss: Tensor) -> Tensor:
    """``x`` unchanged; its backward also back-propagates ``loss`` with weight one."""
    return _Attach.apply(x, loss)


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        (loss,) = ctx.saved_tensors
        return g, torch.ones_like(loss)
