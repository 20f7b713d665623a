"""What Megatron-like engines need to know of a model, and what they have no words for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from krzem.errors import ModelError
from krzem.model.architecture import Architecture, Attention, AttentionKind, FeedForward, RouterKind


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
