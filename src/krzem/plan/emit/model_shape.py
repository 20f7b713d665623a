"""What Megatron-like engines need to know of a model; DeepSeek V4, and MindSpeed-LLM's of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from krzem.errors import ModelError
from krzem.model.architecture import Architecture, Attention, AttentionKind, FeedForward, RouterKind
from krzem.plan.emit.launch import Flag, Request, ask, filled, norm_epsilon, number, rotary_base


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model with one kind of attention, at most one dense network and one mixture of experts."""

    arch: Architecture
    attention: Attention
    """Of every layer, windows apart."""
    dense: FeedForward | None
    experts: FeedForward | None
    moe_layers: tuple[bool, ...]
    """Per layer, whether it routes tokens."""
    windows: tuple[bool, ...]
    """Per layer, whether its attention looks at a window only."""


def shape_of(arch: Architecture, engine: str, sandwich: bool = False) -> Shape:
    """The shape, as far as Megatron-like arguments can say it; some have words for sandwich norms.

    Raises ModelError that lists everything ``engine`` has no argument for.
    """
    layers = arch.expanded()
    attentions = {replace(layer.attention, window=None) for layer in layers}
    dense = {layer.feed_forward for layer in layers if not layer.feed_forward.is_moe}
    experts = {layer.feed_forward for layer in layers if layer.feed_forward.is_moe}
    windows = {layer.attention.window for layer in layers} - {None}
    faults = [
        text
        for bad, text in (
            (any(a.kind is AttentionKind.SHARED_KV for a in attentions),
             "attention with one shared key-value head and a grouped output projection"),
            (any(a.compression for a in attentions), "compressed key-value entries"),
            (any(a.indexer and a.indexer.shared for a in attentions),
             "layers that reuse the key choice of another layer"),
            (len(attentions) > 1, "layers whose attentions have different shapes"),
            (len(dense) > 1 or len(experts) > 1, "layers whose networks have different widths"),
            (any(f.router is RouterKind.HASH for f in experts), "experts chosen by a hash table"),
            (not sandwich and any(layer.norms != 2 for layer in layers),
             "norms after a sublayer (sandwich norms)"),
            (arch.hyper_connections > 1, "several residual streams (hyper-connections)"),
            (any(f.bias for f in dense | experts) != any(a.out_bias for a in attentions),
             "bias in the networks but not in attention's output, or the other way round"),
            (len(windows) > 1, "sliding windows of different widths"),
            (arch.particular, "layers whose code is the family's own"),
            (any(f.zero_experts for f in experts), "experts that pass tokens on (zero experts)"),
            (any(f.input_width for f in experts), "experts that read a narrower latent"),
        )
        if bad
    ]  # fmt: skip
    if faults:
        raise ModelError(
            f"{engine} has no arguments for {arch.name}: {'; '.join(faults)}."
            " Emit for another engine, or write the model in this one yourself"
        )
    return Shape(
        arch=arch,
        attention=layers[-1].attention if not windows else _windowed(arch),
        dense=next(iter(dense), None),
        experts=next(iter(experts), None),
        moe_layers=tuple(layer.feed_forward.is_moe for layer in layers),
        windows=tuple(layer.attention.window is not None for layer in layers),
    )


def _windowed(arch: Architecture) -> Attention:
    """The attention with its window, where some layers have one."""
    return next(k.attention for k, _ in arch.kinds() if k.attention.window is not None)


def pattern(flags: tuple[bool, ...]) -> str:
    """``([0]*3+[1]*58)``: a 0 or 1 per layer, run-length encoded, as Megatron-LM reads it."""
    runs: list[tuple[bool, int]] = []
    for flag in flags:
        if runs and runs[-1][0] is flag:
            runs[-1] = (flag, runs[-1][1] + 1)
        else:
            runs.append((flag, 1))
    return f"({'+'.join(f'[{int(flag)}]*{count}' for flag, count in runs)})"


# DeepSeek V4 as launch files say it: one shared key-value head, compressed entries, streams
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class V4Shape:
    """What the layers of such a model have in common, and the list in which they differ."""

    arch: Architecture
    attention: Attention
    """Of a layer with an indexer, so that its widths are there."""
    experts: FeedForward
    """Of a layer that is routed by scores."""
    ratios: tuple[int, ...]
    """Tokens per compressed entry: of every layer, then of the prediction modules; 0 for none."""
    hash_layers: int
    """Leading layers whose experts a table of token ids chooses."""


def is_v4(arch: Architecture) -> bool:
    """Whether all attention has one shared key-value head and a grouped output projection."""
    return all(
        layer.attention.kind is AttentionKind.SHARED_KV and layer.feed_forward.is_moe
        for layer, _ in arch.kinds()
    )


def v4_shape(arch: Architecture, engine: str) -> V4Shape:
    """The shape of a model for which :func:`is_v4` holds; raises ModelError for any other."""
    layers = arch.expanded()
    hashed = [layer.feed_forward.router is RouterKind.HASH for layer in layers]
    leading = hashed.index(False) if False in hashed else len(hashed)
    widths = {
        replace(layer.attention, indexer=None, compression=None, window=None) for layer in layers
    }
    nets = {replace(x.feed_forward, router=None, router_bias=False) for x in layers}
    windows = {layer.attention.window for layer in layers}
    if any(hashed[leading:]) or len(widths) > 1 or len(nets) > 1 or len(windows) > 1:
        raise ModelError(
            f"{engine} has arguments for a model like DeepSeek V4 whose layers differ in their"
            f" compression only and whose hash-routed layers come first; {arch.name} differs"
        )
    with_indexer = (x.attention for x in layers if x.attention.indexer is not None)
    mtp = [arch.mtp_layer] * arch.mtp_layers if arch.mtp_layer is not None else []
    return V4Shape(
        arch=arch,
        attention=next(with_indexer, layers[-1].attention),
        experts=layers[min(leading, len(layers) - 1)].feed_forward,
        ratios=tuple(layer.attention.compression or 0 for layer in (*layers, *mtp)),
        hash_layers=leading,
    )


def stand_in(arch: Architecture, engine: str) -> Shape:
    """What Megatron-like sections of a run need to know of it; ModelError for a variant."""
    shape = v4_shape(arch, engine)
    return Shape(
        arch=arch,
        attention=shape.attention,
        dense=None,
        experts=shape.experts,
        moe_layers=(True,) * arch.layers,
        windows=(True,) * arch.layers,
    )


# DeepSeek V4 as arguments of MindSpeed-LLM 26.1
# ----------------------------------------------

ENGINE = "MindSpeed-LLM"
_SPEC = "mindspeed_llm.tasks.models.spec.deepseek4_spec"


def size(request: Request, layers: int) -> Iterator[Flag]:
    """Widths, depth with empty layers, norms, positions."""
    shape = v4_shape(request.arch, ENGINE)
    arch, config = shape.arch, request.config
    longest = max(arch.max_positions, request.goal.sequence)
    yield Flag("--spec", f"{_SPEC} layer_spec", "layers of DeepSeek V4")
    yield Flag("--mtp-spec", f"{_SPEC} mtp_spec", "its prediction modules")
    yield Flag("--num-layers", str(layers), "transformer layers")
    yield Flag("--hidden-size", str(arch.hidden), "width of a residual stream")
    yield Flag("--ffn-hidden-size", str(shape.experts.width), "no dense layer uses it")
    yield Flag("--normalization", "RMSNorm", "kind of norm")
    yield filled("--norm-epsilon", norm_epsilon(config), "NORM_EPSILON",
                 "rms_norm_eps of config.json", "added under the root of a norm")  # fmt: skip
    yield Flag("--swiglu", "", "gated network: three matrices, SiLU")
    limit = number(config, "swiglu_limit")
    if limit is not None:
        yield Flag("--swiglu-limit", f"{limit:g}", "inputs of the activation are clamped")
    yield Flag("--disable-bias-linear", "", "matrices without bias")
    yield Flag("--untie-embeddings-and-output-weights", "", "output matrix of its own")
    yield Flag("--position-embedding-type", "deepseek4", "rotary positions of part of a head")
    yield filled("--rotary-base", rotary_base(config), "ROTARY_BASE",
                 "rope_theta of config.json", "base of the rotary frequencies")  # fmt: skip
    yield Flag("--max-position-embeddings", str(longest), "at least the sequence length")
    yield Flag("--rope-scaling-original-max-position-embeddings", str(request.goal.sequence),
               "tokens for which rotary tables are made")  # fmt: skip
    yield Flag("--original-seq-len", "0", "no scaling: pre-training at the original length")
    yield Flag("--attention-dropout", "0.0", "the default is 0.1; the plan assumes none")
    yield Flag("--hidden-dropout", "0.0", "the default is 0.1; the plan assumes none")
    yield Flag("--enable-mhc", "", "several residual streams (hyper-connections)")
    yield Flag("--hc-mult", str(arch.hyper_connections), "streams")


def attention(request: Request, noops: tuple[int, ...]) -> Iterator[Flag]:
    """Heads, ranks, compression by layer, the indexer."""
    shape = v4_shape(request.arch, ENGINE)
    a = shape.attention
    yield Flag("--num-attention-heads", str(a.heads), "query heads")
    yield Flag("--multi-latent-attention", "", "the family it belongs to")
    yield Flag("--qk-head-dim", str(a.head_dim), "width of a head")
    yield Flag("--qk-pos-emb-head-dim", str(a.rope_dim), "rotary part of a head")
    yield Flag("--kv-lora-rank", str(a.head_dim), "width of the shared key-value head")
    yield Flag("--q-lora-rank", str(a.q_lora_rank), "rank of the queries")
    yield Flag("--o-lora-rank", str(a.output_lora_rank), "rank of an output group")
    yield Flag("--o-groups", str(a.output_groups), "groups of the output projection")
    yield Flag("--qk-layernorm", "", "the latents are normed")
    yield Flag("--sliding-window-size", str(a.window or 0), "tokens seen uncompressed")
    yield Flag("--kv-compress", "", "compressed key-value entries")
    yield Flag("--compress-ratios", " ".join(map(str, ratios(shape, noops))),
               "tokens per compressed entry, by layer, empty layers included")  # fmt: skip
    yield filled("--compress-rope-theta", number(request.config, "compress_rope_theta"),
                 "COMPRESS_ROPE", "compress_rope_theta of config.json", "their base")  # fmt: skip
    if a.indexer is not None:
        yield Flag("--enable-dsa-indexer", "", "an indexer picks compressed entries")
        yield Flag("--index-n-heads", str(a.indexer.heads), "heads of the indexer")
        yield Flag("--index-head-dim", str(a.indexer.head_dim), "width of an indexer head")
        yield Flag("--index-topk", str(a.indexer.topk), "entries kept per query")


def ratios(shape: V4Shape, noops: tuple[int, ...]) -> tuple[int, ...]:
    """The ratio of every place of the padded stack; an empty layer has none."""
    real = iter(shape.ratios[: shape.arch.layers])
    total = shape.arch.layers + len(noops)
    return tuple(0 if place in noops else next(real) for place in range(total))


def experts(request: Request) -> Iterator[Flag]:
    """Sizes, the gate, the hash-routed layers."""
    shape = v4_shape(request.arch, ENGINE)
    moe = shape.experts
    yield Flag("--num-experts", str(moe.experts), "routed experts of a layer")
    yield Flag("--moe-ffn-hidden-size", str(moe.width), "inner width of one expert")
    yield Flag("--moe-layer-freq", "1", "experts in every layer")
    yield Flag("--first-k-dense-replace", "-1", "no dense layers")
    yield Flag("--moe-shared-expert-intermediate-size", str(moe.shared_width), "shared experts")
    yield Flag("--moe-router-topk", str(moe.experts_per_token), "experts per token")
    yield Flag("--moe-router-score-function", "sqrtsoftplus", "scores of the gate")
    yield Flag("--moe-router-dtype", "fp32", "the gate is computed in fp32")
    yield Flag("--moe-router-enable-expert-bias", "", "balancing bias, not trained by gradient")
    yield filled("--moe-router-topk-scaling-factor", number(request.config,
                 "routed_scaling_factor"), "ROUTER_SCALE",
                 "routed_scaling_factor of config.json", "scales the gates")  # fmt: skip
    yield Flag("--moe-router-load-balancing-type", "none", "balance by the bias")
    yield Flag("--seq-aux", "", "and by a loss of each sequence")
    yield Flag("--moe-aux-loss-coeff", ask("AUX_LOSS", "weight of the balancing loss"),
               "its weight belongs to the recipe, not to the plan")  # fmt: skip
    yield Flag("--n-hash-layers", str(shape.hash_layers), "experts by a table of token ids")
    yield Flag("--moe-token-dispatcher-type", "alltoall", "tokens travel by all-to-all")
    yield Flag("--moe-grouped-gemm", "", "all local experts in one grouped matrix product")
    yield Flag("--moe-permute-fusion", "", "one kernel sorts tokens by expert")
