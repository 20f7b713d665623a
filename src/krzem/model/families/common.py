"""What the readers of all families share: attention, experts, windows, and the whole model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from krzem.model.architecture import (
    Architecture,
    Attention,
    AttentionKind,
    FeedForward,
    Layer,
    LayerRun,
    RouterKind,
)
from krzem.model.fields import MAX_EXPERTS, MAX_LAYERS, MISSING, Fields, Missing

FULL = "full_attention"
SLIDING = "sliding_attention"


def layer_count(fields: Fields) -> int:
    """Number of transformer layers."""
    return fields.count("num_hidden_layers", "n_layer", high=MAX_LAYERS)


def head_width(
    fields: Fields, hidden: int, heads: int, default: int | None = None, name: str = "head_dim"
) -> int:
    """Width of a head: as given, else ``default``, else ``hidden / heads``, which has to divide."""
    given = fields.optional_count(name, default=default)
    if given is not None:
        return given
    fields.divides("num_attention_heads", heads, "hidden_size", hidden)
    return hidden // heads


def grouped_attention(
    fields: Fields,
    *,
    qkv_bias: bool = False,
    out_bias: bool = False,
    qk_norm: bool = False,
    sinks: bool = False,
    head_dim: int | None = None,
    kv_heads: int | Missing | None = MISSING,
) -> Attention:
    """Grouped-query attention; ``head_dim`` and ``kv_heads`` are what the class defaults to.

    ``kv_heads=None`` stands for "as many as query heads".
    """
    hidden = fields.count("hidden_size")
    heads = fields.count("num_attention_heads")
    groups = fields.optional_count("num_key_value_heads", default=kv_heads) or heads
    fields.divides("num_key_value_heads", groups, "num_attention_heads", heads)
    width = head_width(fields, hidden, heads, head_dim)
    return Attention(
        kind=AttentionKind.GROUPED,
        heads=heads,
        kv_heads=groups,
        head_dim=width,
        value_dim=width,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        qk_norm=qk_norm,
        sinks=sinks,
    )


def mixture(
    fields: Fields,
    *,
    width: int,
    experts: tuple[str, ...],
    router: RouterKind,
    shared_width: int = 0,
    shared_gate: bool = False,
    router_bias: bool = False,
    bias: bool = False,
    groups: tuple[int, int] | None = None,
) -> FeedForward:
    """A mixture of experts; ``experts`` are the names of the field with their number.

    ``groups`` is what the class defaults ``n_group`` and ``topk_group`` to, None where the family
    has no group-limited routing.
    """
    total = fields.count(*experts, high=MAX_EXPERTS)
    per_token = fields.count("num_experts_per_tok", high=MAX_EXPERTS)
    parts, reach = expert_groups(fields, total, groups) if groups else (1, 1)
    within = total // parts * reach
    if per_token > within:
        limit = f" in the {reach} of {parts} groups a token may reach" if parts > 1 else ""
        fields.fail(f"num_experts_per_tok = {per_token} exceeds the {within} experts{limit}")
    return FeedForward(
        width=width,
        bias=bias,
        experts=total,
        experts_per_token=per_token,
        shared_width=shared_width,
        shared_gate=shared_gate,
        router=router,
        router_bias=router_bias,
        expert_groups=parts,
        groups_per_token=reach,
    )


def expert_groups(fields: Fields, experts: int, default: tuple[int, int]) -> tuple[int, int]:
    """Groups of experts and how many of them one token may reach (1, 1 without a limit)."""
    groups = fields.optional_count("n_group", default=default[0]) or 1
    reach = fields.optional_count("topk_group", default=min(default[1], groups)) or groups
    fields.divides("n_group", groups, "the number of experts", experts)
    if reach > groups:
        fields.fail(f"topk_group = {reach} exceeds n_group = {groups}")
    return groups, reach


def encode_runs(layers: Sequence[Layer]) -> tuple[LayerRun, ...]:
    """Consecutive equal layers as runs."""
    return tuple(
        LayerRun(layer=layer, count=sum(1 for _ in same)) for layer, same in groupby(layers)
    )


def assemble(
    fields: Fields,
    layers: Sequence[Layer],
    *,
    tied: bool = False,
    norm_bias: bool = False,
    mtp: tuple[int, Layer | None] = (0, None),
    hyper_connections: int = 1,
) -> Architecture:
    """The model around its layers; ``tied`` is what the class defaults tie_word_embeddings to."""
    return Architecture(
        name=fields.name,
        model_type=fields.model_type,
        hidden=fields.count("hidden_size"),
        vocab=fields.count("vocab_size"),
        runs=encode_runs(layers),
        max_positions=fields.count("max_position_embeddings"),
        tied_embeddings=fields.flag("tie_word_embeddings", default=tied),
        norm_bias=norm_bias,
        mtp_layers=mtp[0],
        mtp_layer=mtp[1] if mtp[0] else None,
        hyper_connections=hyper_connections,
    )


def mtp_count(fields: Fields, default: int) -> int:
    """Multi-token-prediction modules; ``default`` is what the class takes where none are named."""
    names = ("num_nextn_predict_layers", "num_mtp_layers")
    return fields.optional_count(*names, default=default, low=0, high=MAX_LAYERS) or 0
