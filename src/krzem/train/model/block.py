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
from krzem.train.model.shared_kv import SharedKeyValueAttention
from krzem.train.model.weights import Norm
from krzem.train.parallel.axis import Axes

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
        self.input_layernorm = Norm(spec.hidden, spec.norm_eps)
        self.self_attn = _ATTENTION[layer.attention.kind](spec, layer.attention, axes)
        self.post_attention_layernorm = Norm(spec.hidden, spec.norm_eps)
        if mlp.is_moe:
            self.mlp: nn.Module = Mixture(spec, mlp, axes)
        else:
            self.mlp = FeedForwardNetwork(spec.hidden, mlp.width, axes, bias=mlp.bias)
        self.streams = spec.streams > 1
        if self.streams:
            self.attn_hc = HyperConnection(spec)
            self.ffn_hc = HyperConnection(spec)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """The residual after this layer."""
        run = self._with_streams if self.streams else self._plain
        return recomputed(run, self.recompute, x, context)

    def _plain(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), context)
        return x + self._network(self.post_attention_layernorm(x), context)

    def _with_streams(self, x: Tensor, context: Context) -> Tensor:
        y, post, mix = self.attn_hc.collapse(x)
        x = spread(x, self.self_attn(self.input_layernorm(y), context), post, mix)
        y, post, mix = self.ffn_hc.collapse(x)
        return spread(x, self._network(self.post_attention_layernorm(y), context), post, mix)

    def _network(self, x: Tensor, context: Context) -> Tensor:
        y: Tensor = self.mlp(x, context) if isinstance(self.mlp, Mixture) else self.mlp(x)
        return y
