"""Attention of DeepSeek V4: near keys in a window, far keys compressed, one key-value head.

Shape letters: B batch, S whole sequence, s a context-parallel part, H this rank's heads, N head
width, G output groups, T compressed entries, D hidden.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krzem.layout.layout import Recompute
from krzem.model import Attention
from krzem.train.config import ModelSpec
from krzem.train.model.compressor import (
    AT_ONCE,
    Compressor,
    LightningIndexer,
    rotate_tail,
    visible_entries,
)
from krzem.train.model.context import Context, InParts
from krzem.train.model.mixture import attach
from krzem.train.model.recompute import not_kept, recomputed_core
from krzem.train.model.weights import Cut, Linear, Norm, RowLinear, local, own_heads, weight
from krzem.train.ops import rms_norm, sink_attention
from krzem.train.ops.attention import whole_mask
from krzem.train.parallel.collectives import Axes, exchange, gather, gather_no_grad, sum_over

# What an indexer learns from: the attention that reads the entries it chose
# --------------------------------------------------------------------------

_NEVER = -1e30


@torch.no_grad()
def attention_on_entries(
    q: Tensor, keys: Tensor, sinks: Tensor | None, mask: Tensor, entries: int, scale: float
) -> Tensor:
    """``[B, S, T]`` float32: probability given to each of the last ``entries`` keys, summed over H.

    The other arguments are those of :func:`krzem.train.ops.sink_attention`; ``keys`` may be those
    of each head, ``[B, H, K, N]``, and ``sinks`` none.
    """
    batch, heads, length, _ = q.shape
    total = q.new_zeros(batch, length, entries, dtype=torch.float32)
    step = max(1, AT_ONCE // (batch * length * keys.shape[-2]))
    logit = q.new_full((heads,), -torch.inf) if sinks is None else sinks
    apart = keys if keys.dim() == 4 else keys.unsqueeze(1)
    for first in range(0, heads, step):
        part = slice(first, first + step)
        own = apart[:, part] if apart.shape[1] > 1 else apart
        with not_kept():
            logits = (q[:, part] @ own.transpose(-1, -2)).float() * scale
        logits = logits.masked_fill(~mask.unsqueeze(1), -torch.inf)
        sink = logit[part].float().view(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        shares = torch.cat((logits, sink), dim=-1).softmax(-1)
        total += shares[..., -1 - entries : -1].sum(1)
    return total


def indexer_loss(scores: Tensor, chosen: Tensor, attention: Tensor) -> Tensor:
    """Divergence of the scores from the attention, summed over queries; nats.

    ``scores``, ``chosen`` and ``attention`` are ``[B, Q, T]``; a query that chose nothing counts 0.
    """
    attention = attention * chosen
    target = attention / attention.sum(-1, keepdim=True).clamp_min(1e-20)
    log_scores = F.log_softmax(scores.masked_fill(~chosen, _NEVER), dim=-1)
    return (torch.xlogy(target, target) - target * log_scores).sum()


# Attention of DeepSeek V4: near keys in a window, far keys compressed, one key-value head
# ----------------------------------------------------------------------------------------

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
"""``q [B, H, S, N]``, ``keys [B, T, N]``, ``mask [B or 1, S, T]``, the mask's part of compressed
entries, and the indexer's scores where it learns."""


class KeyValueCompressor(Compressor):
    """The compressor of an attention layer; with an indexer it reads few entries (CSA)."""

    def __init__(self, spec: ModelSpec, shape: Attention, axes: Axes) -> None:
        rate = shape.compression or 1
        overlap = shape.indexer is not None
        super().__init__(spec, shape.head_dim, rate, axes, overlap=overlap)
        if shape.indexer is not None:
            latent = shape.q_lora_rank or 0
            self.indexer = LightningIndexer(spec, shape.indexer, latent, rate, axes)

    def mask(self, x: Tensor, latent: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """[B or 1, S, T]: the entries each query reads; and the indexer's scores if it learns."""
        entries = context.length // self.rate
        if not self.overlap:
            return visible_entries(context, self.rate, entries, overlap=False), None
        learns = torch.is_grad_enabled() and context.weights.indexer > 0
        with torch.set_grad_enabled(learns):
            scores = self.indexer.scores(x, latent, context)
        best = gather_no_grad(self.indexer.choose(scores), self.axes.sequence, 1)
        # Entry T stands for "none" and is cut off again.
        chosen = best.new_zeros(*best.shape[:2], entries + 1, dtype=torch.bool)
        none = torch.where(best < 0, entries, best)
        return chosen.scatter_(-1, none, True)[..., :entries], scores if learns else None


class GroupedOutput(nn.Module):
    """Heads in groups, each projected to a low rank of its own."""

    def __init__(self, shape: Attention) -> None:
        super().__init__()
        groups, rank = shape.output_groups or 1, shape.output_lora_rank or 0
        self.rank = rank
        inputs = shape.heads * shape.head_dim // groups
        self.weight = weight(groups * rank, inputs, cut=Cut.ROWS)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, s, H * N] -> [B, s, G * rank]`` for this rank's groups."""
        w = local(self.weight, x.dtype).unflatten(0, (-1, self.rank))
        grouped = x.flatten(0, 1).unflatten(1, (w.shape[0], -1)).transpose(0, 1)
        y = torch.bmm(grouped, w.transpose(1, 2))
        return y.transpose(0, 1).reshape(*x.shape[:2], -1)


class SharedKeyValueAttention(InParts):
    """Sliding-window attention, with or without compressed entries (CSA, HCA).

    Keys are values, so values carry a rotation too; the output is rotated back.
    """

    def __init__(self, spec: ModelSpec, shape: Attention, axes: Axes) -> None:
        super().__init__()
        self.spec, self.shape, self.axes = spec, shape, axes
        self.recompute = Recompute.NONE
        self.rope = spec.rope_compressed if shape.compression else spec.rope
        latent, groups = shape.q_lora_rank or 0, shape.output_groups or 1
        self.q_a_proj = Linear(spec.hidden, latent)
        self.q_a_norm = Norm(latent, spec.norm_eps)
        self.q_b_proj = Linear(latent, shape.heads * shape.head_dim, Cut.ROWS)
        self.kv_proj = Linear(spec.hidden, shape.head_dim)
        self.kv_norm = Norm(shape.head_dim, spec.norm_eps)
        self.o_a_proj = GroupedOutput(shape)
        self.o_b_proj = RowLinear(groups * (shape.output_lora_rank or 0), spec.hidden, axes.tp)
        self.sinks = weight(shape.heads)
        self.compressor = KeyValueCompressor(spec, shape, axes) if shape.compression else None

    def inputs(self, x: Tensor, context: Context) -> Inputs:
        """What the core reads, of ``x [B, S/n, D]``."""
        latent = self.q_a_norm(self.q_a_proj(x))
        kv = rotate_tail(self.kv_norm(self.kv_proj(x)), context.angles(self.rope, context.own))
        keys = gather(kv, self.axes.sequence, 1)
        mask = whole_mask(context.length, x.device, self.shape.window, context.documents)
        mask = mask.squeeze(1)
        far, scores = None, None
        if self.compressor is not None:
            keys = torch.cat((keys, self.compressor(x, context)), dim=1)
            far, scores = self.compressor.mask(x, latent, context)
            batch = max(len(mask), len(far))
            mask = torch.cat([m.expand(batch, -1, -1) for m in (mask, far)], dim=-1)
        q = exchange(self._queries(latent, context), self.axes.cp, split=2, join=1).transpose(1, 2)
        return q, keys, mask, far, scores

    def output(self, out: Tensor, inputs: Inputs, context: Context) -> Tensor:
        """``[B, s, H, N] -> [B, S/n, D]``, with what the indexer learns from."""
        out = rotate_tail(out, self._back(context))
        y = self.o_b_proj(self.o_a_proj(out.flatten(2)))
        if inputs[-1] is None:
            return y
        return attach(y, self._indexer_loss(inputs, context))

    def _queries(self, latent: Tensor, context: Context) -> Tensor:
        """[B, s, H, N] of the context-parallel part, normalised without gain and rotated."""
        q = self.q_b_proj(gather(latent, self.axes.tp, 1))
        q = rms_norm(q.unflatten(-1, (-1, self.shape.head_dim)), None, self.spec.norm_eps)
        return rotate_tail(q, context.angles(self.rope, context.chunk))

    def _back(self, context: Context) -> tuple[Tensor, Tensor]:
        cos, sin = context.angles(self.rope, context.chunk)
        return cos, -sin

    def core(self, inputs: Inputs, context: Context) -> Tensor:
        """``[B, s, H, N]``: queries over all keys; context-parallel ranks share out the heads."""
        q, keys, mask, *_ = inputs
        core = partial(sink_attention, scale=self.shape.head_dim**-0.5)
        sinks = own_heads(self.sinks, q.shape[1], self.axes)
        out = recomputed_core(core, self.recompute, q, keys, sinks, mask)
        return exchange(out.transpose(1, 2), self.axes.cp, split=1, join=2)

    def _indexer_loss(self, inputs: Inputs, context: Context) -> Tensor:
        """This rank's part: its own queries, with the attention of every rank's heads."""
        q, keys, mask, far, scores = inputs
        assert far is not None
        assert scores is not None
        sinks, scale = own_heads(self.sinks, q.shape[1], self.axes), self.shape.head_dim**-0.5
        attention = attention_on_entries(q, keys, sinks, mask, far.shape[-1], scale)
        attention = sum_over(attention, self.axes.sequence)[:, context.own]
        loss = indexer_loss(scores, far[:, context.own], attention)
        return loss * (context.weights.indexer / (context.sequences * context.length))
