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
from krzem.model.architecture import (
    Architecture,
    Attention,
    FeedForward,
    Layer,
    Recurrence,
    RecurrenceKind,
)
from krzem.model.keys import check_sequence, mean_keys, mean_scored
from krzem.model.weights import (
    attention_weights,
    expert_weights,
    further,
    hyper_weights,
    indexer_weights,
    recurrence_weights,
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
    head = 2.0 * arch.embedded * arch.vocab if logits else 0.0
    linear = sum(linear_flops(layer, arch) * times for layer, times in kinds) + collapse
    linear += 2.0 * arch.outside_matrices
    scores = sum(mixing_flops(layer, sequence, attention) * n for layer, n in kinds)
    extra = 0.0
    if mtp and arch.mtp_layer is not None:
        join = 4.0 * arch.hidden * arch.hidden
        layer_flops = linear_flops(arch.mtp_layer, arch) + mixing_flops(
            arch.mtp_layer, sequence, attention
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
    experts = computed_experts(mlp) if mlp.is_moe else 1.0
    used = (
        attention_weights(layer.attention, hidden)
        + indexer_weights(layer.attention, hidden)
        + shared_weights(mlp, hidden)
        + recurrence_weights(layer.recurrence)
        + further((*layer.matrices, *mlp.matrices), 0)
        + router_weights(mlp, hidden)
        + hyper_weights(streams, hidden, arch.streams_mix) * 2
    )
    mixing = 2 * streams * streams * hidden if streams > 1 and arch.streams_mix else 0
    return 2.0 * (used.matrices + expert_weights(mlp, hidden).matrices * experts + mixing)


def computed_experts(mlp: FeedForward) -> float:
    """Experts that compute for a token: those it is routed to, less the zero experts among them.

    With balanced routing every expert, of either kind, is as likely as any other.
    """
    return mlp.experts_per_token * mlp.experts / (mlp.experts + mlp.zero_experts)


def mixing_flops(layer: Layer, sequence: int, rule: AttentionFlops = "causal") -> float:
    """Forward FLOPs per token of scores and of the states of one layer's mixers."""
    scores = score_flops(layer.attention, sequence, rule)
    if layer.recurrence is None or rule == "none":
        return scores
    return scores + state_flops(layer.recurrence)


def state_flops(recurrence: Recurrence) -> float:
    """Forward FLOPs per token of a recurrence, run token by token.

    Per state of key width ``k`` and value width ``v``: ``2 k v`` to read it and ``2 k v`` to add
    to it; the delta rule reads it once more before it writes (``2 k v``). A chunked kernel
    computes more (:mod:`krzem.model.branches`); the difference is no model FLOPs.
    """
    passes = 3 if recurrence.kind in (RecurrenceKind.DELTA, RecurrenceKind.KEY_DELTA) else 2
    return 2.0 * passes * recurrence.heads * recurrence.key_dim * recurrence.value_dim


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
