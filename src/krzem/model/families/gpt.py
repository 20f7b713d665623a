"""GPT-2 and GPT-3 (learned positions) and GPT-NeoX (rotary): LayerNorm, two-matrix MLP, biases."""

from __future__ import annotations

from krzem.model.architecture import Architecture, Attention, AttentionKind, FeedForward, Layer
from krzem.model.families.common import assemble, encode_runs, head_width, layer_count
from krzem.model.fields import Fields


def gpt2(fields: Fields) -> Architecture:
    """``GPT2Config``; GPT-3 and the Megatron shapes are the same network at other sizes."""
    if fields.flag("add_cross_attention", default=False):
        fields.fail("'add_cross_attention' is true; only decoders without it are supported")
    hidden = fields.count("n_embd", "hidden_size")
    heads = fields.count("n_head", "num_attention_heads")
    positions = fields.count("n_positions", "max_position_embeddings", "n_ctx")
    layer = _layer(
        head_width(fields, hidden, heads),
        heads,
        fields.optional_count("n_inner", "intermediate_size", default=None) or 4 * hidden,
        bias=True,
    )
    return Architecture(
        name=fields.name,
        model_type=fields.model_type,
        hidden=hidden,
        vocab=fields.count("vocab_size"),
        runs=encode_runs([layer] * layer_count(fields)),
        max_positions=positions,
        tied_embeddings=fields.flag("tie_word_embeddings", default=True),
        learned_positions=positions,
        norm_bias=True,
    )


def gpt_neox(fields: Fields) -> Architecture:
    """``GPTNeoXConfig``; parallel or serial residuals have the same shapes."""
    hidden = fields.count("hidden_size")
    heads = fields.count("num_attention_heads")
    layer = _layer(
        head_width(fields, hidden, heads),
        heads,
        fields.count("intermediate_size"),
        bias=fields.flag("attention_bias", default=True),
    )
    return assemble(fields, [layer] * layer_count(fields), norm_bias=True)


def _layer(head_dim: int, heads: int, width: int, *, bias: bool) -> Layer:
    attention = Attention(
        kind=AttentionKind.GROUPED,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        value_dim=head_dim,
        qkv_bias=bias,
        out_bias=bias,
    )
    return Layer(attention=attention, feed_forward=FeedForward(width=width, gated=False, bias=True))
