"""The architecture of a published row: its columns, completed where only one answer is possible."""

from __future__ import annotations

import re
from dataclasses import replace

from krzem.accuracy.case import Row, UnusableRowError, number, text, whole
from krzem.accuracy.spellings import attention_of, known_shape, model_of, yes_or_no
from krzem.errors import KrzemError
from krzem.model.architecture import (
    Architecture,
    Attention,
    AttentionKind,
    FeedForward,
    Layer,
    LayerRun,
    RouterKind,
)
from krzem.model.catalogue import load_model

LATENT = {"q_lora_rank": 1536, "kv_lora_rank": 512, "rope_dim": 64, "head_dim": 192, "value": 128}
"""Ranks that every published model with latent attention of this size uses (DeepSeek V2, V3)."""

_WINDOWS: dict[str, tuple[int | None, int]] = {
    "gpt-oss": (128, 2), "gemma-3": (1024, 6), "gemma3": (1024, 6), "gemma-2": (4096, 2),
    "gemma2": (4096, 2), "llama-4": (8192, 4), "llama4": (8192, 4),
}  # fmt: skip
"""Window and period of models whose layers alternate (their Hugging Face configs)."""

_RECURRENT = (
    "mamba", "linear attention", "jamba", "rwkv", "nemotron-h", "nemotron-3-nano",
    "nemotron-3-super", "nemotron-3-ultra", "nemotron-3.5",
)  # fmt: skip
"""Models whose columns cannot say what their layers hold: they are read by name."""
_LEARNED = ("gpt", "opt", "megatron", "mt-nlg", "bloom", "mpt", "turing")
_TIED = ("gpt", "mpt", "bloom", "opt", "mt-nlg", "gemma")


def read_architecture(row: Row) -> tuple[Architecture, int, tuple[str, ...]]:
    """(architecture, sequence length, what was assumed); raises UnusableRowError."""
    name = model_of(row).lower()
    mixer = text(row, "mixer")
    recurrent = mixer not in ("", "attention") or any(word in name for word in _RECURRENT)
    layers, hidden, heads = (whole(row, name) for name in ("layers", "hidden", "heads"))
    guesses: list[str] = []
    sequence = _sequence(row, guesses)
    if recurrent:
        return _recurrent(row), sequence, (*guesses, "shape by the model's name")
    if layers is None or hidden is None:
        return _named(row, layers), sequence, (*guesses, "shape by the model's name")
    if heads is None:
        heads = max(1, hidden // (whole(row, "head_dim") or 128))
        guesses.append("heads")
    if max(layers, hidden, sequence, heads) > 10_000_000:
        raise UnusableRowError("model shape out of range")
    vocab = whole(row, "vocab")
    if vocab is None:
        vocab = 50304 if hidden < 4096 else 64000
        guesses.append("vocab")
    attention = _attention(row, hidden, heads, guesses)
    runs = _runs(row, attention, layers, hidden, vocab, guesses)
    arch = Architecture(
        name=row.get("model_name") or "?",
        model_type="published-row",
        hidden=hidden,
        vocab=vocab,
        runs=runs,
        max_positions=sequence,
        tied_embeddings=_said(row, "tied", any(w in name for w in _TIED) and "oss" not in name),
        norm_bias=_said(row, "bias", any(word in name for word in _LEARNED)),
        mtp_layers=min(whole(row, "mtp") or 0, layers),
        source=row.get("source") or "",
    )
    return arch, sequence, tuple(guesses)


def _said(row: Row, column: str, usual: bool) -> bool:
    """A column that says yes or no, or what is usual for the model that the row names."""
    stated = yes_or_no(text(row, column))
    return usual if stated is None else stated


def _sequence(row: Row, guesses: list[str]) -> int:
    """Tokens of a sequence; where the row does not say, those of the model's own training."""
    sequence = whole(row, "seq_len")
    if sequence is not None:
        return sequence
    known = known_shape(model_of(row))
    if known is None:
        raise UnusableRowError("sequence length not published")
    guesses.append("sequence length")
    return int(known["seq_len"])


def _named(row: Row, layers: int | None) -> Architecture:
    """The built-in model of that name, where the row gives no shape but the name is known."""
    try:
        found = load_model(model_of(row)[:80])
    except KrzemError:
        found = None
    if found is None or (layers is not None and layers != found.layers):
        raise UnusableRowError("model shape not published (layers or hidden width)")
    return found


def _recurrent(row: Row) -> Architecture:
    """The built-in model of that name, with as many prediction modules as the row has."""
    layers, modules = whole(row, "layers"), whole(row, "mtp")
    try:
        found = load_model(re.sub(r"\(.*", "", model_of(row)).strip()[:80])
    except KrzemError:
        found = None
    if found is None or not found.recurrences or layers not in (None, found.layers):
        raise UnusableRowError("shape of the model with recurrent layers not published")
    if not modules:
        return found
    return replace(found, mtp_layers=modules, mtp_layer=found.expanded()[-1])


def _attention(row: Row, hidden: int, heads: int, guesses: list[str]) -> Attention:
    head_dim = whole(row, "head_dim") or max(1, hidden // heads)
    stated = attention_of(text(row, "attention"))
    if stated == "mla":
        guesses.append("latent ranks")
        return Attention(
            kind=AttentionKind.LATENT,
            heads=heads,
            kv_heads=heads,
            head_dim=LATENT["head_dim"],
            value_dim=LATENT["value"],
            q_lora_rank=_query_rank(row),
            kv_lora_rank=LATENT["kv_lora_rank"],
            rope_dim=LATENT["rope_dim"],
        )
    kv = whole(row, "kv_heads") or (1 if stated == "mqa" else heads)
    window, _ = _window(row)
    return Attention(
        kind=AttentionKind.GROUPED,
        heads=heads,
        kv_heads=min(kv, heads),
        head_dim=head_dim,
        value_dim=head_dim,
        window=window,
        qkv_bias=stated == "mha",
        out_bias=stated == "mha",
    )


def _query_rank(row: Row) -> int | None:
    """Rank of the queries of latent attention; None where they are not compressed."""
    name = model_of(row).lower()
    if text(row, "q_lora_rank") == "0" or "lite" in name or "moonlight" in name:
        return None
    return whole(row, "q_lora_rank") or LATENT["q_lora_rank"]


def _runs(
    row: Row, attention: Attention, layers: int, hidden: int, vocab: int, guesses: list[str]
) -> tuple[LayerRun, ...]:
    stated = text(row, "family")
    moe = any(w in stated for w in ("moe", "expert", "sparse")) or (whole(row, "experts") or 0) > 1
    if not moe:
        width, gated = _dense(row, attention, layers, hidden, vocab, guesses)
        dense = FeedForward(width=width, gated=gated, bias=not gated)
        return _windowed(row, Layer(attention=attention, feed_forward=dense), layers)
    sparse = _moe(row, guesses)
    leading = min(whole(row, "dense_layers") or 0, layers - 1)
    rest = _windowed(row, Layer(attention=attention, feed_forward=sparse), layers - leading)
    if not leading:
        return rest
    width = whole(row, "ffn_hidden") or sparse.width * (sparse.experts_per_token + 1)
    dense_ff = FeedForward(width=width, gated=True)
    return (LayerRun(layer=Layer(attention=attention, feed_forward=dense_ff), count=leading), *rest)


def _window(row: Row) -> tuple[int | None, int]:
    """(window in tokens, one of how many layers is without or 0), stated or by the model named."""
    stated = whole(row, "window")
    if stated is not None:
        return stated, whole(row, "full_every") or 0
    name = model_of(row).lower().replace("_", "-").replace(" ", "-")
    return next((w for word, w in _WINDOWS.items() if word in name), (None, 1))


def _windowed(row: Row, layer: Layer, count: int) -> tuple[LayerRun, ...]:
    """Layers with and without their sliding window, where the attention has one."""
    _, period = _window(row)
    whole_layers = count // period if period else 0
    if layer.attention.window is None or whole_layers == 0:
        return (LayerRun(layer=layer, count=count),)
    a = layer.attention
    full = Attention(
        kind=a.kind, heads=a.heads, kv_heads=a.kv_heads, head_dim=a.head_dim, value_dim=a.value_dim
    )
    whole_layer = Layer(attention=full, feed_forward=layer.feed_forward)
    return (
        LayerRun(layer=layer, count=count - whole_layers),
        LayerRun(layer=whole_layer, count=whole_layers),
    )


def _moe(row: Row, guesses: list[str]) -> FeedForward:
    experts, per_token = whole(row, "experts"), whole(row, "experts_per_token")
    width = whole(row, "moe_ffn_hidden") or whole(row, "ffn_hidden")
    if experts is None or per_token is None or width is None:
        raise UnusableRowError("model shape not published (experts)")
    if per_token > experts:
        raise UnusableRowError("row contradicts itself (more experts per token than experts)")
    if whole(row, "shared_experts") is None and (row.get("shared_experts") or "").strip() != "0":
        guesses.append("shared experts")
    limited = (
        attention_of(text(row, "attention")) == "mla" and experts in (160, 256) and per_token >= 6
    )
    return FeedForward(
        width=width,
        gated=True,
        experts=experts,
        experts_per_token=per_token,
        shared_width=(whole(row, "shared_experts") or 0) * width,
        router=RouterKind.SOFTMAX,
        expert_groups=8 if limited else 1,
        groups_per_token=(4 if experts == 256 else 3) if limited else 1,
    )


def _dense(
    row: Row, a: Attention, layers: int, hidden: int, vocab: int, guesses: list[str]
) -> tuple[int, bool]:
    """Inner width and whether gated, told by the parameter count where it is published."""
    width = whole(row, "ffn_hidden")
    params = number(row, "params_b")
    attention = hidden * a.head_dim * (2 * a.heads + 2 * a.kv_heads)
    if width is None:
        guesses.append("ffn width")
        if params is None:
            return 4 * hidden, False
        left = params * 1e9 - 2 * vocab * hidden - layers * attention
        return max(round(left / (layers * 3 * hidden)), hidden), True
    if params is None:
        return width, width != 4 * hidden
    body = params * 1e9 - 1.5 * vocab * hidden
    two = layers * (attention + 2 * hidden * width)
    three = layers * (attention + 3 * hidden * width)
    return width, abs(three - body) < abs(two - body)
