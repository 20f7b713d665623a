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
from krzem.train.model.weights import local, weight
from krzem.train.ops import linear
from krzem.train.parallel.axis import Axes


class ScalarGate(nn.Module):
    """A number between 0 and 1 for each token, which weighs the shared expert (Qwen2-MoE)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = weight(1, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, D] -> [B, S, 1]``."""
        return linear(x, local(self.weight, x.dtype)).sigmoid()


class Mixture(nn.Module):
    """Routed plus shared experts on ``[B, S, D]``, each rank with its own tokens."""

    def __init__(self, spec: ModelSpec, shape: FeedForward, axes: Axes) -> None:
        super().__init__()
        self.axes = axes
        self.gate = Router(spec, shape)
        self.experts = Experts(spec, shape, axes)
        self.shared_experts = None
        if shape.shared_width:
            self.shared_experts = FeedForwardNetwork(spec, shape.shared_width, axes)
        self.shared_expert_gate = ScalarGate(spec.hidden) if shape.shared_gate else None

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
            shared = self.shared_experts(x)
            y = y + (
                shared if self.shared_expert_gate is None else self.shared_expert_gate(x) * shared
            )
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
