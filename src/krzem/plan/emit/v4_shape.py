"""DeepSeek V4 as launch files say it: one shared key-value head, compressed entries, streams."""

from __future__ import annotations

from dataclasses import dataclass, replace

from krzem.errors import ModelError
from krzem.model.architecture import Architecture, Attention, AttentionKind, FeedForward, RouterKind
from krzem.plan.emit.model_shape import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class V4Shape:
    """What the layers of such a model have in common, and the list in which they differ."""

    arch: Architecture
    attention: Attention
    """Of a layer with an indexer, so that its widths are there."""
    experts: FeedForward
    """Of a layer that is routed by scores."""
    ratios: tuple[int, ...]
    """Tokens per compressed entry: of every layer, then of the prediction modules; 0 for none."""
    hash_layers: int
    """Leading layers whose experts a table of token ids chooses."""


def is_v4(arch: Architecture) -> bool:
    """Whether all attention has one shared key-value head and a grouped output projection."""
    return all(
        layer.attention.kind is AttentionKind.SHARED_KV and layer.feed_forward.is_moe
        for layer, _ in arch.kinds()
    )


def v4_shape(arch: Architecture, engine: str) -> V4Shape:
    """The shape of a model for which :func:`is_v4` holds; raises ModelError for any other."""
    layers = arch.expanded()
    hashed = [layer.feed_forward.router is RouterKind.HASH for layer in layers]
    leading = hashed.index(False) if False in hashed else len(hashed)
    widths = {
        replace(layer.attention, indexer=None, compression=None, window=None) for layer in layers
    }
    nets = {replace(x.feed_forward, router=None, router_bias=False) for x in layers}
    windows = {layer.attention.window for layer in layers}
    if any(hashed[leading:]) or len(widths) > 1 or len(nets) > 1 or len(windows) > 1:
        raise ModelError(
            f"{engine} has arguments for a model like DeepSeek V4 whose layers differ in their"
            f" compression only and whose hash-routed layers come first; {arch.name} differs"
        )
    with_indexer = (x.attention for x in layers if x.attention.indexer is not None)
    mtp = [arch.mtp_layer] * arch.mtp_layers if arch.mtp_layer is not None else []
    return V4Shape(
        arch=arch,
        attention=next(with_indexer, layers[-1].attention),
        experts=layers[min(leading, len(layers) - 1)].feed_forward,
        ratios=tuple(layer.attention.compression or 0 for layer in (*layers, *mtp)),
        hash_layers=leading,
    )


def stand_in(arch: Architecture, engine: str) -> Shape:
    """What Megatron-like sections of a run need to know of it; ModelError for a variant."""
    shape = v4_shape(arch, engine)
    return Shape(
        arch=arch,
        attention=shape.attention,
        dense=None,
        experts=shape.experts,
        moe_layers=(True,) * arch.layers,
        windows=(True,) * arch.layers,
    )
