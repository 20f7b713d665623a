"""Model FLOPs per token, under one convention for every model.

* Forward and backward are three times forward; recomputation is not model FLOPs.
* Products of matrices count, two FLOPs per multiply-add; norms, softmax, rotary positions and
  lookups (the input embedding, hash routing) do not.
* Attention counts the keys a query really reads, a causal mask once (half the square): windows,
  chosen keys and compressed entries as they are, and the indexer's scores beside them.
  Latent attention counts as it is trained, with keys and values expanded per head.
* Logits count; so do multi-token-prediction modules, each with a pass through the shared head.
* A token counts the experts it is routed to, not their capacity.

``attention="full"`` drops the mask, as some sources do; ``"none"`` drops scores altogether and
leaves the projections (the 6 N D rule with N the weights in matrices).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from krzem.errors import GoalError
from krzem.model.architecture import Architecture, Attention, Layer
from krzem.model.keys import check_sequence, mean_keys, mean_scored
from krzem.model.weights import (
    attention_weights,
    expert_weights,
    hyper_weights,
    indexer_weights,
    router_weights,
    shared_weights,
    stream_head_weights,
)

AttentionFlops = Literal["causal", "full", "none"]

FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFlops:
    """Model FLOPs of one token, forward and backward."""

    linear: float
    """Projections, networks, routers and residual streams of the layers."""
    attention: float
    """Scores and weighted sums, and the indexer's scores."""
    logits: float
    mtp: float
    """Multi-token-prediction modules with their logits."""

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return self.linear + self.attention + self.logits + self.mtp


def flops_per_token(
    arch: Architecture,
    sequence: int,
    *,
    attention: AttentionFlops = "causal",
    logits: bool = True,
    mtp: bool = True,
) -> float:
    """Model FLOPs per token of training ``arch`` on sequences of ``sequence`` tokens.

    Raises:
        GoalError: ``sequence`` is not a positive whole number, or ``attention`` no known rule.
    """
    return flops_by_part(arch, sequence, attention=attention, logits=logits, mtp=mtp).total


def flops_by_part(
    arch: Architecture,
    sequence: int,
    *,
    attention: AttentionFlops = "causal",
    logits: bool = True,
    mtp: bool = True,
) -> ModelFlops:
    """As ``flops_per_token``, part by part."""
    check_sequence(sequence)
    if attention not in get_args(AttentionFlops):
        raise GoalError(f"unknown attention FLOPs {attention!r}; choose causal, full or none")
    kinds = arch.kinds()
    collapse = 2.0 * stream_head_weights(arch.hyper_connections, arch.hidden).matrices
    head = 2.0 * arch.hidden * arch.vocab if logits else 0.0
    linear = sum(linear_flops(layer, arch) * times for layer, times in kinds) + collapse
    scores = sum(score_flops(layer.attention, sequence, attention) * n for layer, n in kinds)
    extra = 0.0
    if mtp and arch.mtp_layer is not None:
        join = 4.0 * arch.hidden * arch.hidden
        layer_flops = linear_flops(arch.mtp_layer, arch) + score_flops(
            arch.mtp_layer.attention, sequence, attention
        )
        extra = arch.mtp_layers * (layer_flops + join + collapse + head)
    return ModelFlops(
        linear=FORWARD_AND_BACKWARD * linear,
        attention=FORWARD_AND_BACKWARD * scores,
        logits=FORWARD_AND_BACKWARD * head,
        mtp=FORWARD_AND_BACKWARD * extra,
    )


def linear_flops(layer: Layer, arch: Architecture) -> float:
    """Forward FLOPs per token in the weights of one layer."""
    hidden, mlp, streams = arch.hidden, layer.feed_forward, arch.hyper_connections
    experts = mlp.experts_per_token if mlp.is_moe else 1
    used = (
        attention_weights(layer.attention, hidden)
        + indexer_weights(layer.attention, hidden)
        + expert_weights(mlp, hidden) * experts
        + shared_weights(mlp, hidden)
        + router_weights(mlp, hidden)
        + hyper_weights(streams, hidden) * 2
    )
    mixing = 2 * streams * streams * hidden if streams > 1 else 0
    return 2.0 * (used.matrices + mixing)


def score_flops(attention: Attention, sequence: int, rule: AttentionFlops = "causal") -> float:
    """Forward FLOPs per token of scores, weighted sums and indexer scores of one layer."""
    if rule == "none":
        return 0.0
    causal = rule == "causal"
    per_key = attention.heads * (attention.head_dim + attention.value_dim)
    flops = 2.0 * per_key * mean_keys(attention, sequence, causal)
    if attention.indexer is None:
        return flops
    per_score = attention.indexer.heads * attention.indexer.head_dim
    return flops + 2.0 * per_score * mean_scored(attention, sequence, causal)
