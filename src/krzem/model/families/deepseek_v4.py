"""DeepSeek V4: compressed attention with one shared key-value head, hash routing, streams.

Every layer has a sliding window.  Compressed sparse attention (CSA) adds entries of 4 tokens,
of which an indexer keeps the best; heavily compressed attention (HCA) adds all entries of 128.
"""

from __future__ import annotations

from dataclasses import replace

from krzem.model.architecture import (
    Architecture,
    Attention,
    AttentionKind,
    FeedForward,
    Indexer,
    Layer,
    RouterKind,
)
from krzem.model.families.common import SLIDING, assemble, layer_count, mixture, mtp_count
from krzem.model.fields import MAX_LAYERS, Fields

CSA = "compressed_sparse_attention"
HCA = "heavily_compressed_attention"
RATES = {CSA: 4, HCA: 128}
"""Tokens per compressed entry, where the config does not say otherwise."""


def deepseek_v4(fields: Fields) -> Architecture:
    """``DeepseekV4Config``, in the published (compress_ratios) or the transformers spelling."""
    layers = layer_count(fields)
    types, after = _layer_types(fields, layers)
    attentions = _attentions(fields)
    mlps = _mlps(fields, layers)
    last = Layer(attention=attentions[after], feed_forward=_experts(fields))
    return assemble(
        fields,
        [
            Layer(attention=attentions[kind], feed_forward=mlp)
            for kind, mlp in zip(types, mlps, strict=True)
        ],
        mtp=(mtp_count(fields, 1), last),
        hyper_connections=fields.count("hc_mult", high=64),
    )


def _attentions(fields: Fields) -> dict[str, Attention]:
    heads = fields.count("num_attention_heads")
    groups = fields.count("o_groups")
    width = fields.count("head_dim")
    fields.count("num_key_value_heads", default=1, high=1)
    fields.divides("o_groups", groups, "num_attention_heads", heads)
    sliding = Attention(
        kind=AttentionKind.SHARED_KV,
        heads=heads,
        kv_heads=1,
        head_dim=width,
        value_dim=width,
        q_lora_rank=fields.count("q_lora_rank"),
        rope_dim=_rope_dim(fields, width),
        window=fields.count("sliding_window"),
        sinks=True,
        output_groups=groups,
        output_lora_rank=fields.count("o_lora_rank"),
    )
    rates = _rates(fields)
    indexer = Indexer(
        heads=fields.count("index_n_heads"),
        head_dim=fields.count("index_head_dim"),
        topk=fields.count("index_topk"),
    )
    return {
        SLIDING: sliding,
        CSA: replace(sliding, compression=rates[CSA], indexer=indexer),
        HCA: replace(sliding, compression=rates[HCA]),
    }


def _rope_dim(fields: Fields, width: int) -> int:
    share = fields.fraction("partial_rotary_factor")
    default = int(width * share) if share is not None else None
    rope = fields.count("qk_rope_head_dim", default=default)
    if rope > width:
        fields.fail(f"qk_rope_head_dim = {rope} exceeds head_dim = {width}")
    return rope


def _rates(fields: Fields) -> dict[str, int]:
    given = fields.raw.get("compress_rates") or {}
    if not isinstance(given, dict):
        fields.fail("'compress_rates' has to be an object from attention type to tokens")
    inner = Fields(given, name=fields.name, model_type=fields.model_type)
    old = {CSA: "compress_rate_csa", HCA: "compress_rate_hca"}
    return {
        kind: fields.count(old[kind], default=inner.count(kind, default=RATES[kind]))
        for kind in RATES
    }


def _layer_types(fields: Fields, layers: int) -> tuple[tuple[str, ...], str]:
    """The kind of each layer, and the kind of the MTP modules that follow them."""
    types = fields.per_layer("layer_types", layers, (SLIDING, CSA, HCA))
    ratios = fields.counts("compress_ratios")
    if ratios is None:
        return types or _default_types(layers), SLIDING
    if len(ratios) < layers:
        fields.fail(f"'compress_ratios' has {len(ratios)} entries for {layers} layers")
    kinds = {0: SLIDING} | {rate: kind for kind, rate in _rates(fields).items()}
    unknown = sorted(set(ratios) - set(kinds))
    if unknown:
        fields.fail(f"'compress_ratios' holds {unknown[0]}; supported: {sorted(kinds)}")
    named = tuple(kinds[ratio] for ratio in ratios)
    if types is not None and types != named[:layers]:
        fields.fail("'layer_types' and 'compress_ratios' disagree")
    return named[:layers], named[layers] if len(named) > layers else SLIDING


def _default_types(layers: int) -> tuple[str, ...]:
    """Two HCA layers, then HCA and CSA in turn, as the config class fills it in."""
    return tuple(CSA if i >= 2 and i % 2 else HCA for i in range(layers))


def _mlps(fields: Fields, layers: int) -> list[FeedForward]:
    routed = _experts(fields)
    hashed = replace(routed, router=RouterKind.HASH, router_bias=False)
    types = fields.per_layer("mlp_layer_types", layers, ("hash_moe", "moe"))
    leading = fields.optional_count("num_hash_layers", default=None, low=0, high=MAX_LAYERS)
    if types is None:
        count = 3 if leading is None else leading
        types = tuple("hash_moe" if i < count else "moe" for i in range(layers))
    elif leading is not None and types.count("hash_moe") != min(leading, layers):
        found = types.count("hash_moe")
        fields.fail(f"'num_hash_layers' = {leading}, but 'mlp_layer_types' names {found}")
    return [hashed if kind == "hash_moe" else routed for kind in types]


def _experts(fields: Fields) -> FeedForward:
    width = fields.count("moe_intermediate_size")
    kinds = {
        "sqrtsoftplus": RouterKind.SQRT_SOFTPLUS,
        "softmax": RouterKind.SOFTMAX,
        "sigmoid": RouterKind.SIGMOID,
    }
    return mixture(
        fields,
        width=width,
        experts=("n_routed_experts", "num_local_experts"),
        router=kinds[fields.choice("scoring_func", among=kinds, default="sqrtsoftplus")],
        shared_width=width * fields.count("n_shared_experts", low=0, high=1000),
        router_bias=True,
    )
