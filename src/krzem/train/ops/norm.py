"""Root-mean-square normalisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from krzem.train.ops.registry import operator


@operator
def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis ``[..., D]``, in float32 inside."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)
