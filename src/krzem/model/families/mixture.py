"""Mixtures of experts with grouped-query attention: Mixtral, Qwen, GLM-4.5, GPT-OSS."""

from __future__ import annotations

from dataclasses import replace

from krzem.model.architecture import Architecture, FeedForward, Layer, RouterKind
from krzem.model.families.common import (
    FULL,
    SLIDING,
    assemble,
    grouped_attention,
    layer_count,
    mixture,
    mtp_count,
)
from krzem.model.families.llama import dense, qwen_window, windowed
from krzem.model.fields import MAX_LAYERS, Fields


def mixtral(fields: Fields) -> Architecture:
    """``MixtralConfig``: every layer routes, experts as wide as ``intermediate_size``."""
    attention = replace(
        grouped_attention(fields), window=fields.optional_count("sliding_window", default=None)
    )
    experts = mixture(
        fields,
        width=fields.count("intermediate_size"),
        experts=("num_local_experts", "num_experts"),
        router=RouterKind.SOFTMAX,
    )
    layer = Layer(attention=attention, feed_forward=experts)
    return assemble(fields, [layer] * layer_count(fields))


def qwen2_moe(fields: Fields) -> Architecture:
    """``Qwen2MoeConfig``: a gated shared expert beside the routed ones."""
    attention = grouped_attention(fields, qkv_bias=fields.flag("qkv_bias", default=True))
    experts = mixture(
        fields,
        width=fields.count("moe_intermediate_size"),
        experts=("num_experts",),
        router=RouterKind.SOFTMAX,
        shared_width=fields.count("shared_expert_intermediate_size"),
        shared_gate=True,
    )
    layers = layer_count(fields)
    window = qwen_window(fields)
    types = fields.per_layer("layer_types", layers, (FULL, SLIDING))
    if types is None:
        last = fields.count("max_window_layers", default=28, low=0, high=MAX_LAYERS)
        types = tuple(
            SLIDING if window and i % 2 == 0 and i < last else FULL for i in range(layers)
        )
    attentions = windowed(fields, attention, types, window)
    mlps = _sparse_steps(fields, experts, layers)
    pairs = zip(attentions, mlps, strict=True)
    return assemble(fields, [Layer(attention=a, feed_forward=f) for a, f in pairs])


def qwen3_moe(fields: Fields) -> Architecture:
    """``Qwen3MoeConfig``: norms on q and k, no shared expert."""
    bias = fields.flag("attention_bias", default=False)
    attention = replace(
        grouped_attention(fields, qkv_bias=bias, out_bias=bias, qk_norm=True),
        window=qwen_window(fields),
    )
    experts = mixture(
        fields,
        width=fields.count("moe_intermediate_size"),
        experts=("num_experts",),
        router=RouterKind.SOFTMAX,
    )
    mlps = _sparse_steps(fields, experts, layer_count(fields))
    return assemble(fields, [Layer(attention=attention, feed_forward=f) for f in mlps])


def glm4_moe(fields: Fields) -> Architecture:
    """``Glm4MoeConfig`` (GLM-4.5): leading dense layers, sigmoid router, MTP."""
    attention = grouped_attention(
        fields,
        qkv_bias=fields.flag("attention_bias", default=False),
        qk_norm=fields.flag("use_qk_norm", default=False),
    )
    width = fields.count("moe_intermediate_size")
    experts = mixture(
        fields,
        width=width,
        experts=("n_routed_experts", "num_experts"),
        router=RouterKind.SIGMOID,
        shared_width=width * fields.count("n_shared_experts", low=0, high=1000),
        router_bias=True,
        groups=(1, 1),
    )
    layers = layer_count(fields)
    leading = fields.count("first_k_dense_replace", low=0, high=MAX_LAYERS)
    plain = Layer(attention=attention, feed_forward=dense(fields))
    routed = Layer(attention=attention, feed_forward=experts)
    return assemble(
        fields,
        [plain if i < leading else routed for i in range(layers)],
        mtp=(mtp_count(fields, 1), routed),
    )


def gpt_oss(fields: Fields) -> Architecture:
    """``GptOssConfig``: windows on every other layer, attention sinks, biases everywhere."""
    bias = fields.flag("attention_bias", default=True)
    attention = grouped_attention(fields, qkv_bias=bias, out_bias=bias, sinks=True, head_dim=64)
    experts = mixture(
        fields,
        width=fields.count("intermediate_size"),
        experts=("num_local_experts", "num_experts"),
        router=RouterKind.SOFTMAX,
        bias=True,
    )
    layers = layer_count(fields)
    types = fields.per_layer("layer_types", layers, (FULL, SLIDING))
    types = types or tuple(FULL if i % 2 else SLIDING for i in range(layers))
    window = fields.optional_count("sliding_window", default=128)
    attentions = windowed(fields, attention, types, window)
    return assemble(fields, [Layer(attention=a, feed_forward=experts) for a in attentions])


def _sparse_steps(fields: Fields, experts: FeedForward, layers: int) -> list[FeedForward]:
    """Qwen's pattern: every ``decoder_sparse_step``-th layer routes, save ``mlp_only_layers``."""
    step = fields.count("decoder_sparse_step", default=1, high=MAX_LAYERS)
    plain = set(fields.counts("mlp_only_layers") or ())
    if any(i >= layers for i in plain):
        fields.fail(f"'mlp_only_layers' names layer {max(plain)}; the last one is {layers - 1}")
    routed = [i not in plain and (i + 1) % step == 0 for i in range(layers)]
    if all(routed):
        return [experts] * layers
    mlp = dense(fields)
    return [experts if sparse else mlp for sparse in routed]
