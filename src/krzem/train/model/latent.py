"""Multi-head latent attention (DeepSeek V2, V3, and with an indexer V3.2).

Shape letters: B batch, S sequence of a context-parallel part, H this rank's heads, Q and C ranks
of the query and key-value latents, R rotated width, N unrotated width, V value width, D hidden.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from krzem.layout.layout import Recompute
from krzem.model import Attention
from krzem.train.config import ModelSpec
from krzem.train.model.balance import attach
from krzem.train.model.context import Context
from krzem.train.model.distill import attention_on_entries, indexer_loss
from krzem.train.model.in_parts import InParts
from krzem.train.model.indexer import KeyIndexer
from krzem.train.model.recompute import recomputed_core
from krzem.train.model.weights import Cut, Linear, Norm, RowLinear
from krzem.train.ops import attention, keys_values, rotate, rotate_tail
from krzem.train.ops.attention import masked_attention
from krzem.train.parallel.axis import Axes
from krzem.train.parallel.collectives import exchange, gather, gather_no_grad, sum_over

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
"""Queries, keys ``[B, H, S, N + R]`` and values ``[B, H, S, V]`` of the whole sequence, the keys
that an indexer picked ``[B, S, S]``, and its scores where it learns."""


class LatentAttention(InParts):
    """Queries, keys and values come from low-rank latents; one rotated key part serves all heads.

    Latents are computed on each rank's own tokens and gathered over tensor-parallel ranks: they
    are narrower than the residual.
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
        if shape.indexer is not None:
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
        learns = torch.is_grad_enabled() and context.weights.indexer > 0
        with torch.set_grad_enabled(learns):
            scores = self.indexer.scores(x, own, context)
        mask = gather_no_grad(self.indexer.chosen(scores), self.axes.sequence, 1)
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
        core = partial(attention, scale=self._scale, documents=context.documents)
        if mask is not None:
            core = partial(masked_attention, mask=mask, scale=self._scale)
        out = recomputed_core(core, self.recompute, q, k, v)
        out = exchange(out.transpose(1, 2), self.axes.cp, split=1, join=2)
        return out.flatten(2)
