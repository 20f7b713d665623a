"""Multi-head and grouped-query attention (Llama, Mistral, Qwen, OLMo, Gemma, GPT-OSS).

Shape letters: B batch, S sequence of a context-parallel part, H and G this rank's query and
key-value heads, N head width, D hidden.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from krzem.layout.layout import Recompute
from krzem.model import Attention
from krzem.train.config import ModelSpec, Rope
from krzem.train.model.context import Context
from krzem.train.model.in_parts import InParts
from krzem.train.model.recompute import recomputed_core
from krzem.train.model.weights import Cut, CutNorm, Linear, Norm, RowLinear, own_heads, weight
from krzem.train.ops import attention, rotate_first
from krzem.train.ops.attention import grouped_sink_attention
from krzem.train.parallel.axis import ALONE, Axes
from krzem.train.parallel.collectives import exchange, gather


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
        self.q_proj = Linear(spec.hidden, shape.heads * width, Cut.ROWS, bias=bias)
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

    def inputs(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, S, H, N]``, keys and values ``[B, S, G, N]`` of ``x [B, S/tp, D]``."""
        x = gather(x, self.axes.tp, 1)
        heads = (*x.shape[:2], -1, self.shape.head_dim)
        q, k = self.q_proj(x), self.k_proj(x)
        if self.spec.whole_norms:
            q, k = self.q_norm(q).view(heads), self.k_norm(k).view(heads)
        else:
            q, k = self.q_norm(q.view(heads)), self.k_norm(k.view(heads))
        v = self.v_proj(x).view(heads)
        cos, sin = context.angles(self.rope, context.chunk)
        q, k = (rotate_first(t, cos, sin, self.spec.rope_interleaved) for t in (q, k))
        return q, self._own_heads(k), self._own_heads(v)

    def output(self, out: Tensor, _: Any, __: Context) -> Tensor:
        """``[B, S, H * N] -> [B, S/tp, D]``."""
        return self.o_proj(out)

    def _own_heads(self, kv: Tensor) -> Tensor:
        """The key-value heads that this rank's query heads read, in a number cp divides."""
        heads = self.shape.heads // self.axes.tp.size
        if not self.kv_split:
            first = self.axes.tp.rank * heads
            query = torch.arange(first, first + heads, device=kv.device)
            return kv.index_select(2, query // (self.shape.heads // self.shape.kv_heads))
        copies = self.axes.cp.size // math.gcd(kv.shape[2], self.axes.cp.size)
        return kv if copies == 1 else kv.repeat_interleave(copies, dim=2)

    def core(self, inputs: tuple[Tensor, Tensor, Tensor], context: Context) -> Tensor:
        """``[B, S, H * N]``: attention over the whole sequence with this rank's share of heads."""
        q, k, v = (exchange(t, self.axes.cp, split=2, join=1).transpose(1, 2) for t in inputs)
        if context.cache is not None:
            k, v = context.cache.extended(self, k, v)
        core = partial(
            attention if self.sinks is None else grouped_sink_attention,
            scale=self.shape.head_dim**-0.5 * self.spec.attention_scale,
            window=self.shape.window,
            documents=context.documents,
        )
        sinks = () if self.sinks is None else (own_heads(self.sinks, q.shape[1], self.axes),)
        out = recomputed_core(core, self.recompute, q, k, v, *sinks)
        out = exchange(out.transpose(1, 2), self.axes.cp, split=1, join=2)
        return out.flatten(2)
