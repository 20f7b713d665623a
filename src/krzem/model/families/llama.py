"""Dense networks of the Llama kind: RMSNorm, rotary positions, grouped queries, gated MLP."""

from __future__ import annotations

from dataclasses import replace

from krzem.model.architecture import Architecture, Attention, FeedForward, Layer
from krzem.model.families.common import (
    FULL,
    SLIDING,
    assemble,
    grouped_attention,
    layer_count,
)
from krzem.model.fields import MAX_LAYERS, Fields


def llama(fields: Fields) -> Architecture:
    """``LlamaConfig``."""
    bias = fields.flag("attention_bias", default=False)
    attention = grouped_attention(fields, qkv_bias=bias, out_bias=bias, kv_heads=None)
    mlp = dense(fields, bias=fields.flag("mlp_bias", default=False))
    layers = layer_count(fields)
    fields.per_layer("layer_types", layers, (FULL,))
    return assemble(fields, [Layer(attention=attention, feed_forward=mlp)] * layers)


def mistral(fields: Fields) -> Architecture:
    """``MistralConfig``: one window for all layers, 4096 where the field is absent."""
    window = fields.optional_count("sliding_window", default=4096)
    attention = replace(grouped_attention(fields), window=window)
    layer = Layer(attention=attention, feed_forward=dense(fields))
    return assemble(fields, [layer] * layer_count(fields))


def qwen2(fields: Fields) -> Architecture:
    """``Qwen2Config``: biases on q, k and v."""
    return _qwen(fields, grouped_attention(fields, qkv_bias=True))


def qwen3(fields: Fields) -> Architecture:
    """``Qwen3Config``: heads of 128 unless given, norms on q and k."""
    bias = fields.flag("attention_bias", default=False)
    attention = grouped_attention(fields, qkv_bias=bias, out_bias=bias, qk_norm=True, head_dim=128)
    return _qwen(fields, attention)


def dense(fields: Fields, *, bias: bool = False) -> FeedForward:
    """The gated MLP of ``intermediate_size``."""
    return FeedForward(width=fields.count("intermediate_size"), bias=bias)


def windowed(
    fields: Fields, attention: Attention, types: tuple[str, ...], window: int | None
) -> list[Attention]:
    """``attention`` for each layer: with ``window`` where the type says sliding."""
    if SLIDING in types and window is None:
        fields.fail("'layer_types' names sliding_attention but 'sliding_window' is not given")
    sliding = replace(attention, window=window)
    return [sliding if kind == SLIDING else attention for kind in types]


def _qwen(fields: Fields, attention: Attention) -> Architecture:
    layers = layer_count(fields)
    types = fields.per_layer("layer_types", layers, (FULL, SLIDING))
    window = qwen_window(fields)
    if types is None:
        first = fields.count("max_window_layers", default=28, low=0, high=MAX_LAYERS)
        types = tuple(SLIDING if window and i >= first else FULL for i in range(layers))
    mlp = dense(fields)
    attentions = windowed(fields, attention, types, window)
    return assemble(fields, [Layer(attention=a, feed_forward=mlp) for a in attentions])


def qwen_window(fields: Fields) -> int | None:
    """The window of Qwen models, which counts only where ``use_sliding_window`` is true."""
    window = fields.optional_count("sliding_window", default=4096)
    return window if fields.flag("use_sliding_window", default=False) else None
