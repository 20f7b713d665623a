"""Attention as three parts, so that what lies around its core can be compiled."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from krzem.train.model.context import Context


class InParts(nn.Module):
    """What the core reads, the core, and what follows it."""

    def inputs(self, x: Tensor, context: Context) -> Any:
        """What the core reads, of ``x [B, S/tp, D]``."""
        raise NotImplementedError

    def core(self, inputs: Any, context: Context) -> Tensor:
        """Attention over the whole sequence with this rank's share of heads."""
        raise NotImplementedError

    def output(self, out: Tensor, inputs: Any, context: Context) -> Tensor:
        """``[B, S/tp, D]`` of what the core gave."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """``[B, S/tp, D] -> [B, S/tp, D]``."""
        inputs = self.inputs(x, context)
        return self.output(self.core(inputs, context), inputs, context)
