"""Routers: which experts a token goes to, and with what weight.

Shape letters: M tokens, E experts, K choices per token, B sequences, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krzem.model import FeedForward, RouterKind
from krzem.train.config import ModelSpec
from krzem.train.model.context import Context
from krzem.train.model.recompute import recomputing
from krzem.train.model.weights import local, weight
from krzem.train.ops import count_choices, linear


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
