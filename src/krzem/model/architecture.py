"""The shape of a language model, as far as time, memory and parameters depend on it.

An :class:`Architecture` is what the reader of Hugging Face configs produces and what everything
else consumes.  It is a value: two models with equal shapes compare equal.  Dimensions are counts
of elements; nothing here knows about devices, precision or layout.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class AttentionKind(enum.StrEnum):
    """Families of attention that differ in their projections, not only in their widths."""

    GROUPED = "grouped"
    """Multi-head, multi-query and grouped-query attention: q, k, v and output projections."""
    LATENT = "latent"
    """Multi-head latent attention (DeepSeek V2, V3): low-rank q, compressed kv, rope part apart."""
    SHARED_KV = "shared-kv"
    """One key-value head shared by all queries, low-rank q, grouped output projection (V4)."""


class RouterKind(enum.StrEnum):
    """How tokens find their experts."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    SQRT_SOFTPLUS = "sqrt-softplus"
    HASH = "hash"
    """A fixed table from token id to expert; the gate that weighs them is still computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """The lightning indexer that picks which keys a sparse attention reads."""

    heads: int
    head_dim: int
    topk: int
    """Keys (or compressed entries) kept per query."""
    shared: bool = False
    """True where the layer reuses the choice of an earlier layer and holds no indexer weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One attention module. ``head_dim`` is the query-key width (for LATENT: nope + rope)."""

    kind: AttentionKind
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    """Width of a value head (equals ``head_dim`` except in latent attention)."""
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    rope_dim: int | None = None
    """Rotary part of a head where it is projected apart (latent attention)."""
    window: int | None = None
    """Sliding window in tokens; None: all earlier tokens (or all that ``indexer`` keeps)."""
    compression: int | None = None
    """Tokens per compressed key-value entry (4 in CSA, 128 in HCA); None: not compressed."""
    indexer: Indexer | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    output_groups: int | None = None
    output_lora_rank: int | None = None
    """Rank *per group* of the grouped output projection (V4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForward:
    """A dense feed-forward network, or a mixture of experts where ``experts`` > 0."""

    width: int
    """Inner width of the dense network, or of one routed expert."""
    gated: bool = True
    """True for SwiGLU-like networks (three matrices), False for two matrices."""
    bias: bool = False
    experts: int = 0
    experts_per_token: int = 0
    shared_width: int = 0
    """Total inner width of the shared experts (number of them times their width)."""
    shared_gate: bool = False
    """True where a learned scalar gate weighs the shared expert (Qwen2-MoE)."""
    router: RouterKind | None = None
    router_bias: bool = False
    """True for the balancing bias (one value per expert, not trained by gradient)."""
    expert_groups: int = 1
    """Groups of experts for group-limited routing."""
    groups_per_token: int = 1
    """Groups one token may reach; 1 of 1 means no limit."""

    @property
    def is_moe(self) -> bool:
        """Whether tokens are routed to experts."""
        return self.experts > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One transformer layer."""

    attention: Attention
    feed_forward: FeedForward
    norms: int = 2
    """Weight vectors of width ``hidden`` in the layer's norms (4 with sandwich norms)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRun:
    """``count`` consecutive equal layers."""

    layer: Layer
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A decoder-only language model."""

    name: str
    model_type: str
    """The ``model_type`` of the config it was read from."""
    hidden: int
    vocab: int
    runs: tuple[LayerRun, ...]
    """The layers in order, run-length encoded."""
    max_positions: int
    tied_embeddings: bool = False
    learned_positions: int = 0
    """Rows of a learned position table (GPT-2, GPT-3); 0 for rotary positions."""
    norm_bias: bool = False
    """True for LayerNorm (weight and bias), False for RMSNorm."""
    mtp_layers: int = 0
    """Multi-token-prediction modules, each a layer like the last plus a 2h x h projection."""
    mtp_layer: Layer | None = None
    hyper_connections: int = 1
    """Residual streams; more than one for manifold-constrained hyper-connections (V4: 4)."""
    source: str = ""
    """Where the config comes from."""

    @property
    def layers(self) -> int:
        """Transformer layers, without multi-token-prediction modules."""
        return sum(run.count for run in self.runs)

    @property
    def is_moe(self) -> bool:
        """Whether any layer routes tokens to experts."""
        return any(run.layer.feed_forward.is_moe for run in self.runs)

    def kinds(self) -> tuple[tuple[Layer, int], ...]:
        """The distinct layers with how often each occurs, in order of first appearance."""
        counts: dict[Layer, int] = {}
        for run in self.runs:
            counts[run.layer] = counts.get(run.layer, 0) + run.count
        return tuple(counts.items())

    def expanded(self) -> tuple[Layer, ...]:
        """Every layer in order (``layers`` entries)."""
        return tuple(run.layer for run in self.runs for _ in range(run.count))
