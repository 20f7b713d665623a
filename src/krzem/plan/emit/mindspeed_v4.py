"""DeepSeek V4 in MindSpeed-LLM 26.1: hyper-connections, compressed entries, hash-routed layers.

Names are those of its features and of ``examples/mcore/deepseek4_flash``; it has a start program
of its own, ``pretrain_deepseek4.py``.
"""

from __future__ import annotations

from collections.abc import Iterator

from krzem.plan.emit.fill import filled, norm_epsilon, number, rotary_base
from krzem.plan.emit.launch import Flag, Request, ask
from krzem.plan.emit.v4_shape import V4Shape, v4_shape

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
