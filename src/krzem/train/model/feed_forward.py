"""The dense network, also used as shared expert, and what lies between its matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krzem.train.config import Activation, ModelSpec
from krzem.train.model.recompute import not_kept
from krzem.train.model.weights import Cut, Linear, RowLinear, local, weight
from krzem.train.ops import swiglu
from krzem.train.parallel.collectives import Axes, gather


def activated(gate: Tensor, value: Tensor, act: Activation) -> Tensor:
    """The activated ``gate`` times ``value``, both ``[..., W]``."""
    if act.is_swiglu:
        return swiglu(gate, value, act.limit)
    if act.limit is not None:
        gate, value = gate.clamp(max=act.limit), value.clamp(-act.limit, act.limit)
    if act.kind == "swish-up-one":
        return gate * torch.sigmoid(act.slope * gate) * (value + 1)
    return F.gelu(gate, approximate="tanh") * value


class Xielu(nn.Module):
    """Quadratic above zero, exponential below, with a learned slope each (arXiv 2411.13010)."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p, self.alpha_n = weight(1), weight(1)

    def forward(self, x: Tensor) -> Tensor:
        """Element by element."""
        above = F.softplus(local(self.alpha_p, x.dtype))
        below = F.softplus(local(self.alpha_n, x.dtype)) + 0.5
        negative = (torch.expm1(x.clamp(max=-1e-6)) - x) * below
        return torch.where(x > 0, above * x * x, negative) + 0.5 * x


class FeedForwardNetwork(nn.Module):
    """``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` where it is not ``gated``.

    Its width is cut over tensor-parallel ranks.
    """

    def __init__(
        self, spec: ModelSpec, width: int, axes: Axes, *, bias: bool = False, gated: bool = True
    ) -> None:
        super().__init__()
        self.axes, self.act, self.gated = axes, spec.activation, gated
        if gated:
            self.gate_proj = Linear(spec.hidden, width, Cut.ROWS, bias=bias)
        self.up_proj = Linear(spec.hidden, width, Cut.ROWS, bias=bias)
        self.down_proj = RowLinear(width, spec.hidden, axes.tp, bias=bias)
        if self.act.kind == "xielu":
            self.act_fn = Xielu()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S/tp, D] -> [B, S/tp, D]``."""
        return self.outer(self.inner(x))

    def outer(self, inner: Tensor) -> Tensor:
        """``[B, S/tp, D]`` of what :meth:`inner` gave."""
        with not_kept():  # No backward pass reads what the network gives.
            out: Tensor = self.down_proj(inner)
        return out

    def inner(self, x: Tensor) -> Tensor:
        """``[B, S, W/tp]``: what the last matrix reads, of ``x [B, S/tp, D]``."""
        x = gather(x, self.axes.tp, 1)
        value = self.up_proj(x)
        if self.gated:
            return activated(self.gate_proj(x), value, self.act)
        if self.act.kind == "xielu":
            out: Tensor = self.act_fn(value)
            return out
        return F.silu(value) if self.act.is_swiglu else F.gelu(value, approximate="tanh")
