"""Sums and gradients of logits on processors, by kernels in C where they are."""

from __future__ import annotations

import torch
from torch import Tensor

from krzem.train.ops import native
from krzem.train.ops.logits import logit_gradient, logit_sums


@logit_sums.version("cpu")
def logit_sums_cpu(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Reads the logits twice, in their type."""
    if not native.usable(logits):
        return logit_sums.portable(logits, own)
    logits, own = logits.contiguous(), own.contiguous()
    part, chosen = torch.empty(len(logits)), torch.empty(len(logits))
    native.call("logits", logits, own, part, chosen, *_sizes(logits))
    return part, chosen


@logit_gradient.version("cpu")
def logit_gradient_cpu(logits: Tensor, own: Tensor, partition: Tensor, factor: Tensor) -> Tensor:
    """In place, where the logits are contiguous."""
    if not native.usable(logits):
        return logit_gradient.portable(logits, own, partition, factor)
    logits, own = logits.contiguous(), own.contiguous()
    rows = (partition.contiguous(), factor.contiguous())
    native.call("logits_gradient", logits, own, *rows, *_sizes(logits))
    return logits


def _sizes(logits: Tensor) -> tuple[int, int, int]:
    rows, width = logits.shape
    return rows, width, native.narrow(logits)
