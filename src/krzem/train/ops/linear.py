"""A linear layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from krzem.train.ops.registry import operator


@operator
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [..., I]`` times the transpose of ``weight [O, I]``, plus ``bias [O]``: ``[..., O]``."""
    return F.linear(x, weight, bias)
