"""Counts parameters and model FLOPs from shapes, module by module.

Conventions of parameters, the same for every model:

* Only trained weights count: balancing biases of routers, hash tables and rotary caches do not.
* ``total`` and ``active`` leave the multi-token-prediction modules out; ``mtp`` holds them.
* ``active`` is what one token uses: everything but the experts it is not routed to.  The input
  embedding is in it, whole, although a token reads one row; ``active_of`` takes it out for
  sources that count otherwise (DeepSeek, GPT-OSS).
* A tied head has no weights of its own: ``head`` is 0 and the matrix counts as ``embedding``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Literal, get_args

from krzem.errors import GoalError
from krzem.model.architecture import (
    Architecture,
    Attention,
    FeedForward,
    Layer,
    Recurrence,
    RecurrenceKind,
    check_sequence,
    mean_keys,
    mean_scored,
)
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

# Model FLOPs per token, under one convention for every model
# -----------------------------------------------------------

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
    computes more (:mod:`krzem.model.config_file`); the difference is no model FLOPs.
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


# Counts parameters from shapes, module by module
# -----------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParameters:
    """Trained weights of one layer, by module; ``hyper`` is its two hyper-connections."""

    attention: int
    """Projections, their biases and inner norms, sinks, compressor and indexer."""
    indexer: int
    """The part of ``attention`` that picks keys."""
    recurrence: int
    """Projections, convolution, decays and norms of a recurrent mixer."""
    dense: int
    routed_experts: int
    shared_experts: int
    router: int
    norms: int
    hyper: int
    idle_experts: int
    """The part of ``routed_experts`` that one token does not use."""

    @property
    def total(self) -> int:
        """All weights of the layer."""
        return (
            self.attention
            + self.recurrence
            + self.dense
            + self.routed_experts
            + self.shared_experts
            + self.router
            + self.norms
            + self.hyper
        )

    @property
    def active(self) -> int:
        """The weights that one token uses."""
        return self.total - self.idle_experts


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Trained weights of a model by module; all but ``mtp`` and ``mtp_active`` add to ``total``."""

    embedding: int
    """Token table, and position table where positions are learned."""
    attention: int
    """All attention weights but the indexers."""
    indexer: int
    recurrence: int
    """Recurrent mixers: state space layers, linear attention, short convolutions."""
    dense_mlp: int
    routed_experts: int
    shared_experts: int
    router: int
    norms: int
    hyper: int
    head: int
    """The output matrix; 0 where it is the embedding (tied)."""
    mtp: int
    """Multi-token-prediction modules, without the embedding and head they share."""
    total: int
    active: int
    mtp_active: int

    def total_of(self, parts: Collection[str]) -> int:
        """``total`` under another convention: ``parts`` of {"embedding", "head", "mtp"} count."""
        return self._of(self.total, self.mtp, parts)

    def active_of(self, parts: Collection[str]) -> int:
        """``active`` under another convention: ``parts`` of {"embedding", "head", "mtp"} count."""
        return self._of(self.active, self.mtp_active, parts)

    def by_module(self) -> dict[str, int]:
        """The modules that add to ``total``, in the order of a forward pass."""
        sums = {"mtp", "total", "active", "mtp_active"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in sums}

    def _of(self, all_in: int, mtp: int, parts: Collection[str]) -> int:
        shared = "head" in parts and not self.head
        embedding = 0 if "embedding" in parts or shared else self.embedding
        return (
            all_in
            - embedding
            - (0 if "head" in parts else self.head)
            + (mtp if "mtp" in parts else 0)
        )


def count(arch: Architecture) -> ParameterCount:
    """The trained weights of ``arch``, by module."""
    kinds = [(layer_parameters(layer, arch), times) for layer, times in arch.kinds()]
    layers = {
        name: sum(getattr(layer, name) * times for layer, times in kinds)
        for name in (f.name for f in fields(LayerParameters))
    }
    embedding = arch.vocab * arch.embedded + arch.learned_positions * arch.hidden
    embedding += arch.outside_tables
    head = 0 if arch.tied_embeddings else arch.vocab * arch.embedded
    streams = stream_head_weights(arch.hyper_connections, arch.hidden).total
    norm = arch.final_norms * norm_parameters(arch) + arch.outside_matrices + arch.outside_vectors
    total = embedding + head + sum(layer.total * times for layer, times in kinds) + norm + streams
    mtp, idle = _mtp(arch)
    return ParameterCount(
        embedding=embedding,
        attention=layers["attention"] - layers["indexer"],
        indexer=layers["indexer"],
        recurrence=layers["recurrence"],
        dense_mlp=layers["dense"],
        routed_experts=layers["routed_experts"],
        shared_experts=layers["shared_experts"],
        router=layers["router"],
        norms=layers["norms"] + norm,
        hyper=layers["hyper"] + streams,
        head=head,
        mtp=mtp,
        total=total,
        active=total - layers["idle_experts"],
        mtp_active=mtp - idle,
    )


def layer_parameters(layer: Layer, arch: Architecture) -> LayerParameters:
    """The trained weights of one layer of ``arch``; what it reuses of another counts nothing."""
    hidden, mlp, held = arch.hidden, layer.feed_forward, 0 if layer.reuses else 1
    indexer = indexer_weights(layer.attention, hidden).total
    expert = expert_weights(mlp, hidden).total * held
    beside = further(mlp.matrices, mlp.vectors).total * held
    own = further(layer.matrices, layer.vectors).total
    return LayerParameters(
        attention=attention_weights(layer.attention, hidden).total * held + indexer,
        indexer=indexer,
        recurrence=recurrence_weights(layer.recurrence).total,
        dense=(0 if mlp.is_moe else expert + beside) + own,
        routed_experts=mlp.experts * expert,
        shared_experts=shared_weights(mlp, hidden).total * held + (beside if mlp.is_moe else 0),
        router=router_weights(mlp, hidden).total * held,
        norms=layer.norms * norm_parameters(arch),
        hyper=2 * hyper_weights(arch.hyper_connections, hidden, arch.streams_mix).total,
        idle_experts=round((mlp.experts - computed_experts(mlp)) * expert) if mlp.is_moe else 0,
    )


def norm_parameters(arch: Architecture) -> int:
    """One norm of the residual width."""
    return arch.hidden * (2 if arch.norm_bias else 1)


def _mtp(arch: Architecture) -> tuple[int, int]:
    """Weights of the MTP modules, and how many of them one token does not use.

    A module is a layer, the projection of the joined hidden state and embedding (2h x h), a norm
    for each of the two and one before the shared head, and a collapse of its own with streams.
    """
    if arch.mtp_layer is None:
        return 0, 0
    layer = layer_parameters(arch.mtp_layer, arch)
    join = 2 * arch.hidden * arch.hidden + 3 * norm_parameters(arch)
    module = layer.total + join + stream_head_weights(arch.hyper_connections, arch.hidden).total
    return arch.mtp_layers * module, arch.mtp_layers * layer.idle_experts
