"""The gated activation of feed-forward networks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from krzem.train.ops.registry import operator


@operator
def swiglu(gate: Tensor, up: Tensor, limit: float | None = None) -> Tensor:
    """``silu(gate) * up``; with ``limit`` gate is cut above and up on both sides (DeepSeek V4)."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return F.silu(gate) * up
