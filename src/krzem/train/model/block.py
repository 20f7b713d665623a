"""One transformer layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from krzem.layout.layout import Recompute
from krzem.model import AttentionKind, Layer
from krzem.train.config import ModelSpec
from krzem.train.model.context import Context
from krzem.train.model.feed_forward import FeedForwardNetwork
from krzem.train.model.grouped_query import GroupedQueryAttention
from krzem.train.model.hyper import HyperConnection, spread
from krzem.train.model.latent import LatentAttention
from krzem.train.model.mixture import Mixture
from krzem.train.model.recompute import recomputed
from krzem.train.model.router import Routing
from krzem.train.model.shared_kv import SharedKeyValueAttention
from krzem.train.model.weights import Norm
from krzem.train.parallel.axis import Axes

Spreading = tuple[Tensor, Tensor] | None
"""Weights by which streams take a layer's output and mix; None without streams."""
_NORMS = {
    "before": ("input_layernorm", "", "post_attention_layernorm", ""),
    "after": ("", "post_attention_layernorm", "", "post_feedforward_layernorm"),
    "around": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}
"""The norms before and after attention, before and after the network, by their published names."""
_ATTENTION: dict[AttentionKind, Any] = {
    AttentionKind.GROUPED: GroupedQueryAttention,
    AttentionKind.LATENT: LatentAttention,
    AttentionKind.SHARED_KV: SharedKeyValueAttention,
}


class Block(nn.Module):
    """Norm and attention, norm and feed-forward network, each on a residual.

    The residual is ``[B, S, D]``, or ``[B, S, M, D]`` with hyper-connections.
    """

    def __init__(self, spec: ModelSpec, layer: Layer, axes: Axes) -> None:
        super().__init__()
        mlp = layer.feed_forward
        self.recompute = Recompute.NONE
        self.in_pieces = False
        """Whether the layer runs piece by piece, as a compiler takes it, not module by module."""
        self.self_attn = _ATTENTION[layer.attention.kind](spec, layer.attention, axes)
        self._norms = _NORMS[spec.norms]
        for name in filter(None, self._norms):
            self.add_module(name, Norm(spec.hidden, spec.norm_eps, spec.norm_offset))
        if mlp.is_moe:
            self.mlp: nn.Module = Mixture(spec, mlp, axes)
        else:
            self.mlp = FeedForwardNetwork(spec, mlp.width, axes, bias=mlp.bias, gated=mlp.gated)
        self.streams = spec.streams > 1
        if self.streams:
            self.attn_hc = HyperConnection(spec)
            self.ffn_hc = HyperConnection(spec)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """The residual after this layer."""
        run = self._by_pieces if self.in_pieces else self._by_modules
        return recomputed(run, self.recompute, x, context)

    def _by_modules(self, x: Tensor, context: Context) -> Tensor:
        y, spreading = self.attn_hc.collapse(x) if self.streams else (x, None)
        out = self.self_attn(self._normed(0, y), context)
        x = _add(x, self._normed(1, out), spreading)
        y, spreading = self.ffn_hc.collapse(x) if self.streams else (x, None)
        out = self._network(self._normed(2, y), context)
        return _add(x, self._normed(3, out), spreading)

    def _normed(self, place: int, x: Tensor) -> Tensor:
        """``x`` through the norm at ``place``, where there is one."""
        name = self._norms[place]
        out: Tensor = getattr(self, name)(x) if name else x
        return out

    def _network(self, x: Tensor, context: Context) -> Tensor:
        y: Tensor = self.mlp(x, context) if isinstance(self.mlp, Mixture) else self.mlp(x)
        return y

    def _by_pieces(self, x: Tensor, context: Context) -> Tensor:
        inputs, spreading = self.enter(x, context)
        out = self.self_attn.core(inputs, context)
        if not isinstance(self.mlp, Mixture):
            return self.leave(x, out, inputs, spreading, context)
        x, y, routing, later = self.route(x, out, inputs, spreading, context)
        return self.join(x, y, self.mlp.routed(y, routing), routing, later, context)

    def enter(self, x: Tensor, context: Context) -> tuple[Any, Spreading]:
        """What the attention's core reads, and how streams take the attention's output."""
        y, spreading = self.attn_hc.collapse(x) if self.streams else (x, None)
        return self.self_attn.inputs(self._normed(0, y), context), spreading

    def leave(
        self, x: Tensor, out: Tensor, inputs: Any, spreading: Spreading, context: Context
    ) -> Tensor:
        """From what the core gave through a dense network to the residual after the layer."""
        x, y, later = self._between(x, out, inputs, spreading, context)
        return _add(x, self._normed(3, self.mlp(y)), later)

    def route(
        self, x: Tensor, out: Tensor, inputs: Any, spreading: Spreading, context: Context
    ) -> tuple[Tensor, Tensor, Routing, Spreading]:
        """From what the core gave to what the experts get."""
        x, y, later = self._between(x, out, inputs, spreading, context)
        assert isinstance(self.mlp, Mixture)
        return x, y, self.mlp.gate(y.flatten(0, 1), context), later

    def join(
        self,
        x: Tensor,
        y: Tensor,
        routed: Tensor,
        routing: Routing,
        spreading: Spreading,
        context: Context,
    ) -> Tensor:
        """From what the experts gave to the residual after the layer."""
        assert isinstance(self.mlp, Mixture)
        return _add(x, self._normed(3, self.mlp.join(y, routed, routing, context)), spreading)

    def _between(
        self, x: Tensor, out: Tensor, inputs: Any, spreading: Spreading, context: Context
    ) -> tuple[Tensor, Tensor, Spreading]:
        """The residual after attention; the network's input, and how streams take its output."""
        x = _add(x, self._normed(1, self.self_attn.output(out, inputs, context)), spreading)
        y, later = self.ffn_hc.collapse(x) if self.streams else (x, None)
        return x, self._normed(2, y), later


def _add(x: Tensor, y: Tensor, spreading: Spreading) -> Tensor:
    """The residual ``x`` with an output ``y [B, S, D]``."""
    return x + y if spreading is None else spread(x, y, *spreading)
