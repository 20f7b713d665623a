"""DeepSeek V4 in Primus: its own model type, with keys for streams, compression and hash layers."""

from __future__ import annotations

from collections.abc import Iterator

from krzem.plan.emit.fill import filled, norm_epsilon, number, rotary_base
from krzem.plan.emit.launch import Flag, Request, ask
from krzem.plan.emit.v4_shape import v4_shape


def v4_model(request: Request) -> Iterator[Flag]:
    """The model's keys as options; the preset holds its constants."""
    shape, config = v4_shape(request.arch, "Primus"), request.config
    arch, a, moe = shape.arch, shape.attention, shape.experts
    yield Flag("--num-layers", str(arch.layers), "transformer layers")
    yield Flag("--hidden-size", str(arch.hidden), "width of a residual stream")
    yield Flag("--ffn-hidden-size", str(moe.width), "no dense layer uses it")
    yield Flag("--num-attention-heads", str(a.heads), "query heads")
    yield Flag("--num-query-groups", str(a.kv_heads), "one key-value head, shared")
    yield Flag("--kv-channels", str(a.head_dim), "width of a head")
    yield Flag("--qk-pos-emb-head-dim", str(a.rope_dim), "rotary part of a head")
    yield Flag("--q-lora-rank", str(a.q_lora_rank), "rank of the queries")
    yield Flag("--o-lora-rank", str(a.output_lora_rank), "rank of an output group")
    yield Flag("--o-groups", str(a.output_groups), "groups of the output projection")
    yield Flag("--attn-sink", "true" if a.sinks else "false", "a learned sink in each head")
    yield Flag("--attn-sliding-window", str(a.window or 0), "tokens seen uncompressed")
    if a.indexer is not None:
        yield Flag("--index-topk", str(a.indexer.topk), "compressed entries kept per query")
        yield Flag("--index-head-dim", str(a.indexer.head_dim), "width of an indexer head")
        yield Flag("--index-n-heads", str(a.indexer.heads), "heads of the indexer")
    yield Flag("--compress-ratios", str(list(shape.ratios)),
               "tokens per entry, by layer, the prediction modules last")  # fmt: skip
    yield Flag("--hc-mult", str(arch.hyper_connections), "residual streams")
    yield Flag("--num-experts", str(moe.experts), "routed experts of a layer")
    yield Flag("--moe-ffn-hidden-size", str(moe.width), "inner width of one expert")
    yield Flag("--moe-shared-expert-intermediate-size", str(moe.shared_width), "shared experts")
    yield Flag("--moe-router-topk", str(moe.experts_per_token), "experts per token")
    yield filled("--moe-router-topk-scaling-factor", number(config, "routed_scaling_factor"),
                 "ROUTER_SCALE", "routed_scaling_factor of config.json", "of gates")  # fmt: skip
    yield Flag("--moe-router-dtype", "fp32", "the gate is computed in fp32")
    yield Flag("--moe-token-dispatcher-type", "alltoall", "tokens travel by all-to-all")
    yield Flag("--moe-aux-loss-coeff", ask("AUX_LOSS", "weight of the balancing loss"),
               "its weight belongs to the recipe, not to the plan")  # fmt: skip
    yield Flag("--num-hash-layers", str(shape.hash_layers), "experts by a table of token ids")
    yield Flag("--mtp-num-layers", str(arch.mtp_layers), "multi-token prediction modules")
    yield filled("--norm-epsilon", norm_epsilon(config), "NORM_EPSILON",
                 "rms_norm_eps of config.json", "added under the root of a norm")  # fmt: skip
    yield filled("--rotary-base", rotary_base(config), "ROTARY_BASE",
                 "rope_theta of config.json", "base of the rotary frequencies")  # fmt: skip
    yield filled("--compress-rope-theta", number(config, "compress_rope_theta"), "COMPRESS_ROPE",
                 "compress_rope_theta of config.json", "base for compressed entries")  # fmt: skip
    limit = number(config, "swiglu_limit")
    if limit is not None:
        yield Flag("--swiglu-limit", f"{limit:g}", "inputs of the activation are clamped")
        yield Flag("--activation-func-clamp-value", f"{limit:g}", "the same for the fused path")
    yield Flag("--swiglu", "", "gated network: three matrices")
    yield Flag("--untie-embeddings-and-output-weights", "", "output matrix of its own")
    yield Flag("--disable-bias-linear", "", "matrices without bias")
    yield Flag("--max-position-embeddings", str(max(arch.max_positions, request.goal.sequence)),
               "at least the sequence length")  # fmt: skip
