"""Latent attention with fine-grained experts: DeepSeek V2 to V3.2, Kimi K2, GLM-5.

Also the base of Pangu Ultra MoE, whose config spells the same quantities in another way.
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
from krzem.model.families.common import assemble, layer_count, mixture, mtp_count
from krzem.model.families.llama import dense
from krzem.model.fields import MAX_LAYERS, Fields

GROUPS = {"deepseek_v3": (8, 4), "deepseek_v32": (8, 4)}
"""Groups of experts, and how many a token may reach, where the config names neither."""
SPARSE_TYPES = ("full_attention", "indexed_attention", "deepseek_sparse_attention")


def deepseek_v2(fields: Fields) -> Architecture:
    """``DeepseekV2Config``: softmax router."""
    return _plain(fields, RouterKind.SOFTMAX, mtp_default=0)


def deepseek_v3(fields: Fields) -> Architecture:
    """``DeepseekV3Config``: sigmoid router with a balancing bias, one MTP module by default."""
    return _plain(fields, RouterKind.SIGMOID, mtp_default=1)


def kimi_k2(fields: Fields) -> Architecture:
    """The DeepSeek-V3 network under Kimi's model type, without MTP unless named."""
    return _plain(fields, RouterKind.SIGMOID, mtp_default=0)


def deepseek_v32(fields: Fields) -> Architecture:
    """``DeepseekV32Config``: V3 with a lightning indexer in every layer."""
    return _indexed(fields, [False] * layer_count(fields))


def glm_moe_dsa(fields: Fields) -> Architecture:
    """``GlmMoeDsaConfig`` (GLM-5): as V3.2; later versions reuse the choice of earlier layers."""
    layers = layer_count(fields)
    types = fields.per_layer("indexer_types", layers, ("full", "shared"))
    if types is None:
        types = _indexer_schedule(fields, layers)
    if types[0] == "shared":
        fields.fail("the first layer's indexer is 'shared', but no earlier layer made a choice")
    return _indexed(fields, [kind == "shared" for kind in types])


def latent_attention(fields: Fields) -> Attention:
    """Multi-head latent attention, in DeepSeek's or in Pangu's spelling."""
    heads = fields.count("num_attention_heads")
    rope = fields.count("qk_rope_head_dim", "attention_qk_rope_dim")
    nope = fields.count("qk_nope_head_dim", "attention_qk_dim")
    whole = fields.optional_count("qk_head_dim", default=None)
    if whole is not None and whole != nope + rope:
        fields.fail(f"qk_head_dim = {whole}, but its parts add to {nope} + {rope} = {nope + rope}")
    bias = fields.flag("attention_bias", default=False)
    return Attention(
        kind=AttentionKind.LATENT,
        heads=heads,
        kv_heads=heads,
        head_dim=nope + rope,
        value_dim=fields.count("v_head_dim", "attention_v_dim"),
        q_lora_rank=fields.optional_count("q_lora_rank", "attention_q_lora_dim"),
        kv_lora_rank=fields.count("kv_lora_rank", "attention_kv_lora_dim"),
        rope_dim=rope,
        qkv_bias=bias,
        out_bias=bias,
    )


def experts_of(fields: Fields, router: RouterKind) -> FeedForward:
    """Routed and shared experts, in DeepSeek's or in Pangu's spelling."""
    width = fields.count("moe_intermediate_size")
    names = ("n_shared_experts", "num_shared_experts")
    shared = fields.optional_count(*names, low=0, high=1000) or 0
    scoring = fields.choice("scoring_func", among=("softmax", "sigmoid"), default=router.value)
    method = fields.choice(
        "topk_method",
        among=("greedy", "group_limited_greedy", "noaux_tc"),
        default="noaux_tc" if router is RouterKind.SIGMOID else "greedy",
    )
    return mixture(
        fields,
        width=width,
        experts=("n_routed_experts", "num_routed_experts", "num_experts", "num_local_experts"),
        router=RouterKind(scoring),
        shared_width=shared * width,
        router_bias=method == "noaux_tc",
        groups=GROUPS.get(fields.model_type, (1, 1)),
    )


def routed_layers(fields: Fields, layers: int) -> list[bool]:
    """Which layers route: all but the leading dense ones, or as ``mlp_layer_types`` says."""
    names = ("first_k_dense_replace", "num_dense_layers")
    types = fields.per_layer("mlp_layer_types", layers, ("dense", "sparse"))
    if types is None:
        leading = fields.count(*names, low=0, high=MAX_LAYERS)
        step = fields.count("moe_layer_freq", default=1, high=MAX_LAYERS)
        return [i >= leading and i % step == 0 for i in range(layers)]
    routed = [kind == "sparse" for kind in types]
    claimed = fields.optional_count(*names, default=None, low=0, high=MAX_LAYERS)
    found = routed.index(True) if True in routed else layers
    if claimed is not None and min(claimed, layers) != found:
        fields.fail(f"{names[0]!r} = {claimed}, but 'mlp_layer_types' begins with {found} dense")
    return routed


def _plain(fields: Fields, router: RouterKind, mtp_default: int) -> Architecture:
    attention = latent_attention(fields)
    layers = layer_count(fields)
    return assemble_routed(
        fields, [attention] * layers, router, mtp=(mtp_count(fields, mtp_default), attention)
    )


def _indexed(fields: Fields, shared: list[bool]) -> Architecture:
    if fields.optional_count("q_lora_rank") is None:
        fields.fail("'q_lora_rank' is null; the indexer reads the low-rank queries and needs it")
    fields.per_layer("layer_types", len(shared), SPARSE_TYPES)
    indexer = Indexer(
        heads=fields.count("index_n_heads"),
        head_dim=fields.count("index_head_dim"),
        topk=fields.count("index_topk"),
    )
    owner = replace(latent_attention(fields), indexer=indexer)
    reader = replace(owner, indexer=replace(indexer, shared=True))
    attentions = [reader if reuse else owner for reuse in shared]
    return assemble_routed(
        fields, attentions, RouterKind.SIGMOID, mtp=(mtp_count(fields, 0), owner)
    )


def assemble_routed(
    fields: Fields,
    attentions: list[Attention],
    router: RouterKind,
    *,
    mtp: tuple[int, Attention],
    norms: int = 2,
) -> Architecture:
    """The model whose layers hold ``attentions`` and, after the dense ones, experts.

    ``mtp`` is the number of MTP modules and their attention; they route like the last layer.
    """
    routed = routed_layers(fields, len(attentions))
    mlps = {sparse: _mlp(fields, sparse, router) for sparse in dict.fromkeys(routed)}
    layers = [
        Layer(attention=attention, feed_forward=mlps[sparse], norms=norms)
        for attention, sparse in zip(attentions, routed, strict=True)
    ]
    last = Layer(attention=mtp[1], feed_forward=mlps[routed[-1]], norms=norms)
    return assemble(fields, layers, mtp=(mtp[0], last))


def _mlp(fields: Fields, sparse: bool, router: RouterKind) -> FeedForward:
    return experts_of(fields, router) if sparse else dense(fields)


def _indexer_schedule(fields: Fields, layers: int) -> tuple[str, ...]:
    pattern = fields.raw.get("index_topk_pattern")
    if pattern is not None:
        letters = {"F": "full", "S": "shared"}
        if not isinstance(pattern, str) or len(pattern) != layers or set(pattern) - set(letters):
            fields.fail(f"'index_topk_pattern' has to be {layers} letters F or S, one per layer")
        return tuple(letters[letter] for letter in pattern)
    every = fields.count("index_topk_freq", default=1, high=MAX_LAYERS)
    skip = fields.count("index_skip_topk_offset", default=2, low=0, high=MAX_LAYERS)
    return tuple("shared" if max(i - skip + 1, 0) % every else "full" for i in range(layers))
