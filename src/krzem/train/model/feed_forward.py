"""The dense gated network, also used as shared expert."""

from __future__ import annotations

from torch import Tensor, nn

from krzem.train.model.weights import Cut, Linear, RowLinear
from krzem.train.ops import swiglu
from krzem.train.parallel.axis import Axes
from krzem.train.parallel.collectives import gather


class FeedForwardNetwork(nn.Module):
    """``down(silu(gate(x)) * up(x))``, its width cut over tensor-parallel ranks."""

    def __init__(
        self, hidden: int, width: int, axes: Axes, *, bias: bool = False, limit: float | None = None
    ) -> None:
        super().__init__()
        self.axes, self.limit = axes, limit
        self.gate_proj = Linear(hidden, width, Cut.ROWS, bias=bias)
        self.up_proj = Linear(hidden, width, Cut.ROWS, bias=bias)
        self.down_proj = RowLinear(width, hidden, axes.tp, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S/tp, D] -> [B, S/tp, D]``."""
        x = gather(x, self.axes.tp, 1)
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x), self.limit))
