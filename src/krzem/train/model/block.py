"""One transformer layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from krzem.layout.layout import Recompute
from krzem.model import Attention, AttentionKind, Layer
from krzem.train.config import ModelSpec, Rope
from krzem.train.model.compressor import KeyIndexer
from krzem.train.model.context import Context, InParts
from krzem.train.model.delta import GatedDeltaNet
from krzem.train.model.feed_forward import FeedForwardNetwork
from krzem.train.model.hyper import HyperConnection, spread
from krzem.train.model.mixture import Mixture, Routing, attach
from krzem.train.model.recompute import recomputed, recomputed_core
from krzem.train.model.shared_kv import SharedKeyValueAttention, attention_on_entries, indexer_loss
from krzem.train.model.weights import Cut, CutNorm, Linear, Norm, RowLinear, own_heads, weight
from krzem.train.ops import attention, keys_values, rotate, rotate_first, rotate_tail
from krzem.train.ops.attention import grouped_sink_attention, masked_attention
from krzem.train.parallel.collectives import ALONE, Axes, exchange, gather, gather_no_grad, sum_over

# Multi-head and grouped-query attention (Llama, Mistral, Qwen, OLMo, Gemma, GPT-OSS)
# -----------------------------------------------------------------------------------

Grouped = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Queries ``[B, S, H, N]``, keys and values ``[B, S, G, N]``, and where heads are gated the gates
``[B, S, H, N]`` before the sigmoid."""


class GroupedQueryAttention(InParts):
    """Queries in groups that share a key-value head."""

    def __init__(self, spec: ModelSpec, shape: Attention, axes: Axes) -> None:
        super().__init__()
        self.spec, self.shape, self.axes = spec, shape, axes
        self.recompute = Recompute.NONE
        width, bias = shape.head_dim, shape.qkv_bias
        # Fewer key-value heads than ranks: every rank computes all of them and takes what it needs.
        self.kv_split = shape.kv_heads % axes.tp.size == 0
        kv_cut = Cut.ROWS if self.kv_split else Cut.WHOLE
        each = 2 * width if spec.gated_heads else width
        self.q_proj = Linear(spec.hidden, shape.heads * each, Cut.ROWS, bias=bias)
        self.k_proj = Linear(spec.hidden, shape.kv_heads * width, kv_cut, bias=bias)
        self.v_proj = Linear(spec.hidden, shape.kv_heads * width, kv_cut, bias=bias)
        self.o_proj = RowLinear(shape.heads * width, spec.hidden, axes.tp, bias=shape.out_bias)
        self.q_norm, self.k_norm = self._norms()
        self.sinks = weight(shape.heads) if shape.sinks else None

    @property
    def rope(self) -> Rope:
        """How its heads are rotated."""
        return self.spec.rope_windowed if self.shape.window else self.spec.rope

    def _norms(self) -> tuple[nn.Module, nn.Module]:
        """Of queries and of keys: over each head, or over all heads together."""
        spec, shape = self.spec, self.shape
        if spec.whole_norms:
            keys = self.axes.tp if self.kv_split else ALONE
            return (
                CutNorm(shape.heads * shape.head_dim, spec.norm_eps, self.axes.tp),
                CutNorm(shape.kv_heads * shape.head_dim, spec.norm_eps, keys),
            )
        if not shape.qk_norm:
            return nn.Identity(), nn.Identity()
        width, eps, offset = shape.head_dim, spec.norm_eps, spec.norm_offset
        return Norm(width, eps, offset), Norm(width, eps, offset)

    def inputs(self, x: Tensor, context: Context) -> Grouped:
        """What the core reads, and the gates of its output, of ``x [B, S/tp, D]``."""
        x = gather(x, self.axes.tp, 1)
        heads = (*x.shape[:2], -1, self.shape.head_dim)
        q, k = self.q_proj(x), self.k_proj(x)
        gate = None
        if self.spec.gated_heads:
            q, gate = q.view(*x.shape[:2], -1, 2, self.shape.head_dim).unbind(3)
        if self.spec.whole_norms:
            q, k = self.q_norm(q).view(heads), self.k_norm(k).view(heads)
        else:
            q, k = self.q_norm(q.reshape(heads)), self.k_norm(k.view(heads))
        v = self.v_proj(x).view(heads)
        cos, sin = context.angles(self.rope, context.chunk)
        q, k = (rotate_first(t, cos, sin, self.spec.rope_interleaved) for t in (q, k))
        return q, self._own_heads(k), self._own_heads(v), gate

    def output(self, out: Tensor, inputs: Grouped, _: Context) -> Tensor:
        """``[B, S, H * N] -> [B, S/tp, D]``."""
        gate = inputs[3]
        return self.o_proj(out if gate is None else out * gate.flatten(2).sigmoid())

    def _own_heads(self, kv: Tensor) -> Tensor:
        """The key-value heads that this rank's query heads read, in a number cp divides."""
        heads = self.shape.heads // self.axes.tp.size
        if not self.kv_split:
            first = self.axes.tp.rank * heads
            query = torch.arange(first, first + heads, device=kv.device)
            return kv.index_select(2, query // (self.shape.heads // self.shape.kv_heads))
        copies = self.axes.cp.size // math.gcd(kv.shape[2], self.axes.cp.size)
        return kv if copies == 1 else kv.repeat_interleave(copies, dim=2)

    def core(self, inputs: Grouped, context: Context) -> Tensor:
        """``[B, S, H * N]``: attention over the whole sequence with this rank's share of heads."""
        parts = inputs[:3]
        q, k, v = (exchange(t, self.axes.cp, split=2, join=1).transpose(1, 2) for t in parts)
        if context.cache is not None:
            k, v = context.cache.extended(self, k, v)
        core = partial(
            attention if self.sinks is None else grouped_sink_attention,
            scale=self.shape.head_dim**-0.5 * self.spec.attention_scale,
            window=self.shape.window,
            documents=context.documents,
            spans=context.spans,
        )
        sinks = () if self.sinks is None else (own_heads(self.sinks, q.shape[1], self.axes),)
        out = recomputed_core(core, self.recompute, q, k, v, *sinks)
        out = exchange(out.transpose(1, 2), self.axes.cp, split=1, join=2)
        return out.flatten(2)


# Multi-head latent attention (DeepSeek V2, V3, and with an indexer V3.2 and GLM-5)
# ---------------------------------------------------------------------------------

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
"""Queries, keys ``[B, H, S, N + R]`` and values ``[B, H, S, V]`` of the whole sequence, the keys
that an indexer picked ``[B, S, S]``, and its scores where it learns."""


class LatentAttention(InParts):
    """Queries, keys and values come from low-rank latents; one rotated key part serves all heads.

    Latents are computed on each rank's own tokens and gathered over tensor-parallel ranks: they
    are narrower than the residual.  A layer that reuses the choice of keys of another one has no
    indexer; ``chooser`` is that layer's attention (GLM-5, arXiv 2603.12201).
    """

    def __init__(self, spec: ModelSpec, shape: Attention, axes: Axes) -> None:
        super().__init__()
        self.spec, self.shape, self.axes = spec, shape, axes
        self.recompute = Recompute.NONE
        self.rotated = shape.rope_dim or 0
        self.plain = shape.head_dim - self.rotated
        self.latent = shape.kv_lora_rank or 0
        queries = shape.heads * shape.head_dim
        if shape.q_lora_rank:
            self.q_a_proj = Linear(spec.hidden, shape.q_lora_rank)
            self.q_a_layernorm = Norm(shape.q_lora_rank, spec.latent_eps)
            self.q_b_proj = Linear(shape.q_lora_rank, queries, Cut.ROWS)
        else:
            self.q_proj = Linear(spec.hidden, queries, Cut.ROWS)
        self.kv_a_proj_with_mqa = Linear(spec.hidden, self.latent + self.rotated)
        self.kv_a_layernorm = Norm(self.latent, spec.latent_eps)
        expanded = shape.heads * (self.plain + shape.value_dim)
        self.kv_b_proj = Linear(self.latent, expanded, Cut.ROWS)
        self.o_proj = RowLinear(shape.heads * shape.value_dim, spec.hidden, axes.tp)
        self.chooser = id(self)
        if shape.indexer is not None and not shape.indexer.shared:
            rank = shape.q_lora_rank or 0
            self.indexer = KeyIndexer(spec, shape.indexer, rank, axes)

    def inputs(self, x: Tensor, context: Context) -> Inputs:
        """What the core reads, of ``x [B, S/tp, D]``."""
        own = self.q_a_layernorm(self.q_a_proj(x)) if self.shape.q_lora_rank else x
        q, k, v = (
            exchange(t, self.axes.cp, split=2, join=1).transpose(1, 2)
            for t in self._heads(own, x, context)
        )
        if self.shape.indexer is None:
            return q, k, v, None, None
        if self.shape.indexer.shared:
            return q, k, v, context.choices[self.chooser], None
        learns = torch.is_grad_enabled() and context.weights.indexer > 0
        with torch.set_grad_enabled(learns):
            scores = self.indexer.scores(x, own, context)
        mask = gather_no_grad(self.indexer.chosen(scores), self.axes.sequence, 1)
        context.choices[self.chooser] = mask
        return q, k, v, mask, scores if learns else None

    def _heads(self, own: Tensor, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys ``[B, S, H, N + R]`` and values ``[B, S, H, V]``; ``own`` is what queries
        are made from on this rank's tokens."""
        source, c, k_rot = self._latents(own, x, context)
        heads = (*c.shape[:2], -1)
        up = self.q_b_proj if self.shape.q_lora_rank else self.q_proj
        q = up(source).view(*heads, self.shape.head_dim)
        cos, sin = context.angles(self.spec.rope, context.chunk)
        q = rotate_tail(q, cos, sin, self.spec.rope_interleaved)
        kv = self.kv_b_proj(c).view(*heads, self.plain + self.shape.value_dim)
        k, v = keys_values(kv, k_rot, self.plain)
        return q, k, v

    def output(self, out: Tensor, inputs: Inputs, context: Context) -> Tensor:
        """``[B, S, H * V] -> [B, S/tp, D]``, with what the indexer learns from."""
        y: Tensor = self.o_proj(out)
        q, k, _, mask, scores = inputs
        if scores is None or mask is None:
            return y
        attention = attention_on_entries(q, k, None, mask, k.shape[2], self._scale)
        attention = sum_over(attention, self.axes.sequence)[:, context.own]
        loss = indexer_loss(scores, mask[:, context.own], attention)
        tokens = context.sequences * context.length
        return attach(y, loss * (context.weights.indexer / tokens))

    @property
    def _scale(self) -> float:
        return self.shape.head_dim**-0.5 * self.spec.attention_scale

    def _latents(
        self, source: Tensor, x: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``source [B, S, Q or D]`` of all ranks, ``c [B, S, C]``, ``k_rot [B, S, R]``."""
        c, k_rot = self.kv_a_proj_with_mqa(x).split([self.latent, self.rotated], dim=-1)
        cos, sin = context.angles(self.spec.rope, context.own)
        k_rot = rotate(k_rot.unsqueeze(2), cos, sin, self.spec.rope_interleaved).squeeze(2)
        c = self.kv_a_layernorm(c)
        if self.axes.tp.size == 1:
            return source, c, k_rot
        joined = torch.cat((source, c, k_rot), dim=-1)
        parts = gather(joined, self.axes.tp, 1)
        a, b, d = parts.split([source.shape[-1], self.latent, self.rotated], dim=-1)
        return a, b, d

    def core(self, inputs: Inputs, context: Context) -> Tensor:
        """``[B, S, H * V]``: attention over the whole sequence with this rank's share of heads."""
        q, k, v, mask, _ = inputs
        if context.cache is not None:
            k, v = context.cache.extended(self, k, v)
        core = partial(
            attention, scale=self._scale, documents=context.documents, spans=context.spans
        )
        if mask is not None:
            core = partial(masked_attention, mask=mask, scale=self._scale)
        out = recomputed_core(core, self.recompute, q, k, v)
        out = exchange(out.transpose(1, 2), self.axes.cp, split=1, join=2)
        return out.flatten(2)


def reuse_choices(layers: Sequence[nn.Module]) -> None:
    """Tell layers that reuse a choice of keys whose it is: the last indexer's before them."""
    last = 0
    for module in (layer.self_attn for layer in layers):
        if isinstance(module, LatentAttention) and module.shape.indexer is not None:
            last = module.chooser = last if module.shape.indexer.shared else module.chooser


# One transformer layer
# ---------------------

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


def _mixer(spec: ModelSpec, layer: Layer, axes: Axes) -> Any:
    """What lets tokens see each other: attention, or a recurrence in its place."""
    if layer.recurrence is not None:
        return GatedDeltaNet(spec, layer.recurrence, axes)
    return _ATTENTION[layer.attention.kind](spec, layer.attention, axes)


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
        self.self_attn = _mixer(spec, layer, axes)
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
