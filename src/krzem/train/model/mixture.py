"""A mixture of experts: router, routed experts and shared expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krzem.model import FeedForward, RouterKind
from krzem.train.config import ModelSpec
from krzem.train.model.context import Context
from krzem.train.model.experts import Experts, Meanwhile
from krzem.train.model.feed_forward import FeedForwardNetwork
from krzem.train.model.recompute import recomputing
from krzem.train.model.weights import local, weight
from krzem.train.ops import count_choices, linear
from krzem.train.parallel.collectives import Axes, Axis, sum_over

# Routers: which experts a token goes to, and with what weight
# ------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """The decision of a router."""

    index: Tensor
    """[M, K] chosen experts."""
    weights: Tensor
    """[M, K] float32, differentiable."""
    scores: Tensor
    """[M, E] float32 scores of all experts."""
    logits: Tensor
    """[M, E] float32."""


class Router(nn.Module):
    """Scores by a matrix and a function; chooses by score plus balancing bias, or by a table.

    ``load`` counts choices per expert since it was last read; the balancing update and the
    metrics use it.  It is no part of a checkpoint.
    """

    e_score_correction_bias: Tensor
    tid2eid: Tensor
    load: Tensor

    def __init__(self, spec: ModelSpec, shape: FeedForward) -> None:
        super().__init__()
        self.spec, self.shape = spec, shape
        self.weight = weight(shape.experts, spec.hidden)
        self.bias = weight(shape.experts) if shape.bias else None
        self.hashed = shape.router is RouterKind.HASH
        self.kind = spec.hash_score if self.hashed else shape.router
        if shape.router_bias:
            self.register_buffer("e_score_correction_bias", torch.zeros(shape.experts))
        if self.hashed:
            table = torch.zeros(spec.vocab, shape.experts_per_token, dtype=torch.int64)
            self.register_buffer("tid2eid", table)
        self.register_buffer("load", torch.zeros(shape.experts), persistent=False)

    def forward(self, x: Tensor, context: Context) -> Routing:
        """Route ``x [M, D]``."""
        bias = None if self.bias is None else local(self.bias, x.dtype).float()
        logits = linear(x.float(), local(self.weight, x.dtype).float(), bias)
        scores = _score(self.kind, logits)
        if self.hashed:
            index = self.tid2eid[context.own_tokens().reshape(-1)]
        else:
            index = self._choose(scores.detach())
        return Routing(
            index=index, weights=self._weigh(scores, index), scores=scores, logits=logits
        )

    def _choose(self, scores: Tensor) -> Tensor:
        """The K best experts, from the best groups where groups are limited."""
        shape = self.shape
        if shape.router_bias:
            scores = scores + self.e_score_correction_bias
        if shape.groups_per_token < shape.expert_groups:
            grouped = scores.view(len(scores), shape.expert_groups, -1)
            best = grouped.topk(self.spec.group_best, dim=-1).values.sum(-1)
            chosen = best.topk(shape.groups_per_token, dim=-1).indices
            mask = torch.zeros_like(best).scatter_(1, chosen, 1.0).bool()
            scores = grouped.masked_fill(~mask.unsqueeze(-1), -torch.inf).flatten(1)
        return scores.topk(shape.experts_per_token, dim=-1).indices

    def _weigh(self, scores: Tensor, index: Tensor) -> Tensor:
        chosen = scores.gather(1, index)
        if self.spec.normalise_weights:
            chosen = chosen / (chosen.sum(-1, keepdim=True) + 1e-20)
        return chosen * self.spec.routed_scale

    def count(self, index: Tensor) -> None:
        """Add the choices ``[M, K]`` to the load, once for a step."""
        if self.training and torch.is_grad_enabled() and not recomputing():
            with torch.no_grad():
                self.load += count_choices(index.reshape(-1), self.shape.experts)


def _score(kind: RouterKind | None, logits: Tensor) -> Tensor:
    if kind is RouterKind.SIGMOID:
        return logits.sigmoid()
    if kind is RouterKind.SQRT_SOFTPLUS:
        return F.softplus(logits).sqrt()
    return logits.softmax(-1)


def hash_table(vocab: int, experts: int, choices: int, seed: int) -> Tensor:
    """``[vocab, choices]``: distinct experts for each token id, spread evenly."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    rows = [
        torch.rand(min(4096, vocab - start), experts, generator=generator).topk(choices).indices
        for start in range(0, vocab, 4096)
    ]
    return torch.cat(rows)


# Losses that act on routers, attached where they arise
# -----------------------------------------------------


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


# A mixture of experts: router, routed experts and shared expert
# --------------------------------------------------------------


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
        if self.shared_experts is None or not self.experts.dispatch.beside:
            return self.join(x, self.routed(x, routing), routing, context)
        found: list[Tensor] = []
        shared = self.shared_experts
        y = self.routed(
            x,
            routing,
            lambda: found.append(shared.inner(x)),
            lambda: found.append(shared.outer(found.pop())),
        )
        return self.join(x, y, routing, context, *found)

    def routed(self, x: Tensor, routing: Routing, *beside: Meanwhile) -> Tensor:
        """The routed experts' output ``[B, S, D]`` for ``x [B, S, D]``, whose choices count."""
        self.gate.count(routing.index)
        y: Tensor = self.experts(x.flatten(0, 1), routing.index, routing.weights, beside)
        return y.view_as(x)

    def join(
        self,
        x: Tensor,
        y: Tensor,
        routing: Routing,
        context: Context,
        shared: Tensor | None = None,
    ) -> Tensor:
        """``y`` of the routed experts with the shared expert and the losses on routers."""
        if self.shared_experts is not None:
            shared = self.shared_experts(x) if shared is None else shared
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
