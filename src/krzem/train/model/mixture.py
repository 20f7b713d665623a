"""A mixture of experts: router, routed experts and shared expert."""

from __future__ import annotations

from torch import Tensor, nn

from krzem.model import FeedForward
from krzem.train.config import ModelSpec
from krzem.train.model.balance import attach, router_z, sequence_balance
from krzem.train.model.context import Context
from krzem.train.model.experts import Experts
from krzem.train.model.feed_forward import FeedForwardNetwork
from krzem.train.model.router import Router, Routing
from krzem.train.parallel.axis import Axes


class Mixture(nn.Module):
    """Routed plus shared experts on ``[B, S, D]``, each rank with its own tokens."""

    def __init__(self, spec: ModelSpec, shape: FeedForward, axes: Axes) -> None:
        super().__init__()
        self.axes = axes
        self.gate = Router(spec, shape)
        self.experts = Experts(spec, shape, axes)
        self.shared_experts = None
        if shape.shared_width:
            self.shared_experts = FeedForwardNetwork(
                spec.hidden, shape.shared_width, axes, limit=spec.swiglu_limit
            )

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """``[B, S, D] -> [B, S, D]``."""
        routing: Routing = self.gate(x.flatten(0, 1), context)
        return self.join(x, self.routed(x, routing), routing, context)

    def routed(self, x: Tensor, routing: Routing) -> Tensor:
        """The routed experts' output ``[B, S, D]`` for ``x [B, S, D]``, whose choices count."""
        self.gate.count(routing.index)
        y: Tensor = self.experts(x.flatten(0, 1), routing.index, routing.weights)
        return y.view_as(x)

    def join(self, x: Tensor, y: Tensor, routing: Routing, context: Context) -> Tensor:
        """``y`` of the routed experts with the shared expert and the losses on routers."""
        if self.shared_experts is not None:
            y = y + self.shared_experts(x)
        weights = context.weights
        if not self.training or self.gate.hashed:
            return y
        if weights.balance:
            loss = sequence_balance(routing, len(y), context.length, self.axes.sequence)
            y = attach(y, loss * (weights.balance / context.sequences))
        if weights.router_z:
            tokens = context.sequences * context.length
            y = attach(y, router_z(routing) * (weights.router_z / tokens))
        return y
