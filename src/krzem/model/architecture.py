"""The shape of a language model, as far as time, memory and parameters depend on it.

An :class:`Architecture` is what the reader of Hugging Face configs produces and what everything
else consumes.  It is a value: two models with equal shapes compare equal.  Dimensions are counts
of elements; nothing here knows about devices, precision or layout.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from numbers import Integral

from krzem.errors import GoalError


class AttentionKind(enum.StrEnum):
    """Families of attention that differ in their projections, not only in their widths."""

    GROUPED = "grouped"
    """Multi-head, multi-query and grouped-query attention: q, k, v and output projections."""
    LATENT = "latent"
    """Multi-head latent attention (DeepSeek V2, V3): low-rank q, compressed kv, rope part apart."""
    SHARED_KV = "shared-kv"
    """One key-value head shared by all queries, low-rank q, grouped output projection (V4)."""
    NONE = "none"
    """The layer holds no attention: it is a recurrence, or a feed-forward network alone."""


class Cut(enum.IntEnum):
    """How tensor parallelism cuts a matrix: not at all, by its outputs, by its inputs."""

    WHOLE = 0
    OUTPUTS = 1
    INPUTS = 2


class RecurrenceKind(enum.StrEnum):
    """Token mixers whose state does not grow with the sequence."""

    DELTA = "gated-delta"
    """Gated delta net: a decay per head, and the delta rule (arXiv 2412.06464)."""
    KEY_DELTA = "key-gated-delta"
    """Kimi delta attention: a decay per key channel, and the delta rule (arXiv 2510.26692)."""
    LIGHTNING = "lightning"
    """Lightning attention: linear attention with a fixed decay per head (arXiv 2401.04658)."""
    MAMBA = "mamba"
    """Selective scan over a diagonal state per channel (arXiv 2312.00752)."""
    MAMBA2 = "mamba-2"
    """State space duality: a decay per head (arXiv 2405.21060)."""
    MLSTM = "mlstm"
    """Matrix memory with exponential gates (xLSTM, arXiv 2405.04517)."""
    RGLRU = "rg-lru"
    """Gated linear recurrence with one state per channel (Griffin, arXiv 2402.19427)."""
    WKV = "wkv"
    """RWKV's decayed average over the past, per channel (arXiv 2305.13048)."""
    CONVOLUTION = "convolution"
    """A short gated causal convolution (LFM2, arXiv 2511.23404): no state beyond its taps."""


class RouterKind(enum.StrEnum):
    """How tokens find their experts."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    SQRT_SOFTPLUS = "sqrt-softplus"
    HASH = "hash"
    """A fixed table from token id to expert; the gate that weighs them is still computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A weight matrix that every token is multiplied with, ``count`` of them."""

    inputs: int
    outputs: int
    cut: Cut = Cut.WHOLE
    count: int = 1

    @property
    def elements(self) -> int:
        """Weights in all of them."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrence:
    """A token mixer with a state of fixed size: ``heads`` states of ``key_dim`` x ``value_dim``."""

    kind: RecurrenceKind
    heads: int
    """States of a token: value heads, or channels where the state is diagonal."""
    key_heads: int
    """Heads (groups) of keys and queries; every ``heads / key_heads`` states share one."""
    key_dim: int
    value_dim: int
    matrices: tuple[Matrix, ...] = ()
    """Projections in, of gates and out."""
    conv_channels: int = 0
    conv_taps: int = 0
    """Short depthwise convolution before the mixing: channels and taps."""
    vectors: int = 0
    """Biases, decays, time steps and norms."""
    chunk: int = 64
    """Tokens that the chunked kernel multiplies as one block."""

    @property
    def state(self) -> int:
        """Elements of the state of one sequence."""
        taps = self.conv_channels * max(self.conv_taps - 1, 0)
        return self.heads * self.key_dim * self.value_dim + taps


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
    chunk: int | None = None
    """Tokens of a block that a query does not look out of (Llama 4); None: no blocks."""
    shares_kv: bool = False
    """True where keys and values are those of an earlier layer: no projections of its own."""
    values_are_keys: bool = False
    """True where one projection gives keys and values."""
    input_width: int | None = None
    """What q, k and v read where it is not the hidden width (Zamba joins two streams)."""
    matrices: tuple[Matrix, ...] = ()
    """Further matrices: output gates, low-rank convolutions, projections of positions."""
    vectors: int = 0
    """Further trained elements that are no matrices."""


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
    zero_experts: int = 0
    """Experts that pass a token on unchanged: the router scores them, nothing is computed."""
    input_width: int | None = None
    """What a routed expert reads and writes where it is not the hidden width (Nemotron 3)."""
    router_width: int | None = None
    """What the router's last matrix reads where it is not the hidden width (Zaya)."""
    matrices: tuple[Matrix, ...] = ()
    """Further matrices beside the experts or the dense network."""
    vectors: int = 0
    """Further trained elements that are no matrices."""

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
    recurrence: Recurrence | None = None
    """A recurrent mixer, instead of attention or (Falcon-H1) beside it."""
    matrices: tuple[Matrix, ...] = ()
    """Matrices of the layer outside attention, recurrence and feed-forward network."""
    vectors: int = 0
    reuses: bool = False
    """True where attention and network are those of an earlier layer: computed, not held again."""


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
    final_norms: int = 1
    """Norms of the hidden width outside the layers."""
    embedding_width: int | None = None
    """Width of the embedding and the head where it is not the hidden width (OPT-350M)."""
    outside_matrices: int = 0
    """Elements of matrices outside the layers that every token is multiplied with."""
    outside_tables: int = 0
    """Elements of further embedding tables, which a token only reads a row of."""
    outside_vectors: int = 0
    """Biases of the head, scales and other elements outside the layers."""
    hyper_connections: int = 1
    """Residual streams; more than one for manifold-constrained hyper-connections (V4: 4)."""
    streams_mix: bool = True
    """False where streams are only collapsed and fed, and not mixed with each other (Hunyuan 4)."""
    particular: bool = False
    """Whether layers compute something that these shapes do not say, so that an engine has to know
    the family: places of norms, multipliers, activations, layers side by side."""
    source: str = ""
    """Where the config comes from."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What the reader took for granted, left out or did not read, in sentences."""

    @property
    def layers(self) -> int:
        """Transformer layers, without multi-token-prediction modules."""
        return sum(run.count for run in self.runs)

    @property
    def embedded(self) -> int:
        """Width of the embedding and the head."""
        return self.embedding_width or self.hidden

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

    @property
    def recurrences(self) -> tuple[Recurrence, ...]:
        """The distinct recurrent mixers."""
        found = (run.layer.recurrence for run in self.runs)
        return tuple(dict.fromkeys(r for r in found if r is not None))

    def expanded(self) -> tuple[Layer, ...]:
        """Every layer in order (``layers`` entries)."""
        return tuple(run.layer for run in self.runs for _ in range(run.count))


NO_ATTENTION = Attention(kind=AttentionKind.NONE, heads=0, kv_heads=0, head_dim=0, value_dim=0)
"""What a layer without attention holds in its place."""
NO_NETWORK = FeedForward(width=0)
"""What a layer without a feed-forward network holds in its place."""

# How many keys a query reads, as exact means over the positions of a sequence
# ----------------------------------------------------------------------------


def mean_keys(attention: Attention, sequence: int, causal: bool = True) -> float:
    """Mean keys that core attention reads per query, window and compressed entries together.

    Without ``causal`` every query reads as many keys as the last one does under the mask.
    """
    return sum(keys_by_branch(attention, sequence, causal))


def keys_by_branch(attention: Attention, sequence: int, causal: bool = True) -> tuple[float, float]:
    """Mean keys per query of single tokens, and of compressed entries (0 where there are none)."""
    check_sequence(sequence)
    if attention.chunk:
        return mean_in_chunks(sequence, attention.chunk, causal), 0.0
    window = attention.window or sequence
    topk = attention.indexer.topk if attention.indexer else sequence
    if attention.kind is not AttentionKind.SHARED_KV:
        return mean_visible(sequence, limit=min(window, topk), causal=causal), 0.0
    near = mean_visible(sequence, limit=window, causal=causal)
    if not attention.compression:
        return near, 0.0
    return near, mean_visible(sequence, limit=topk, stride=attention.compression, causal=causal)


def mean_scored(attention: Attention, sequence: int, causal: bool = True) -> float:
    """Mean keys (or compressed entries) per query that the indexer of this layer scores."""
    check_sequence(sequence)
    if attention.indexer is None or attention.indexer.shared:
        return 0.0
    stride = attention.compression or 1
    return mean_visible(sequence, limit=sequence, stride=stride, causal=causal)


def mean_visible(sequence: int, *, limit: int, stride: int = 1, causal: bool = True) -> float:
    """Mean over ``i = 1 … sequence`` of ``min(floor(i / stride), limit)``.

    Entry ``e`` (from 1, up to the limit) is seen from position ``e * stride`` to the end, that is
    by ``sequence + 1 - e * stride`` queries; summing over entries gives the closed form.
    """
    entries = min(sequence // stride, limit)
    if not causal:
        return float(entries)
    return entries * (2 * (sequence + 1) - stride * (entries + 1)) / (2 * sequence)


def mean_in_chunks(sequence: int, chunk: int, causal: bool = True) -> float:
    """As ``mean_visible`` where no query looks out of its block of ``chunk`` tokens."""
    whole, rest = divmod(sequence, chunk)
    parts = [(whole * chunk, chunk)] + ([(rest, rest)] if rest else [])
    if not causal:
        return float(min(sequence, chunk))
    return sum(share * (length + 1) / 2 for share, length in parts) / sequence


def check_sequence(sequence: int) -> None:
    """Refuse a sequence length that is not a whole number above zero."""
    if isinstance(sequence, bool) or not isinstance(sequence, Integral) or sequence < 1:
        raise GoalError(f"the sequence length is {sequence!r}; it has to be a whole number >= 1")
