"""Compressed key-value entries of DeepSeek V4: a gated mean over windows of tokens.

Shape letters: B batch, S the whole sequence, T entries, r tokens per entry, N width, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from krzem.model import Indexer
from krzem.train.config import ModelSpec
from krzem.train.model.context import Context
from krzem.train.model.recompute import not_kept
from krzem.train.model.weights import LayerNorm, Linear, Norm, local, weight
from krzem.train.ops import rotate, rotate_first
from krzem.train.ops.attention import whole_mask
from krzem.train.parallel.collectives import Axes, gather


class Compressor(nn.Module):
    """One entry per ``rate`` tokens; with ``overlap`` an entry also reads the window before.

    Overlapping windows use two series of projections: a token's second series goes to its own
    window's entry, its first series to the next window's.  Projections are computed on each rank's
    own tokens and gathered, since windows may straddle ranks.
    """

    def __init__(
        self, spec: ModelSpec, width: int, rate: int, axes: Axes, *, overlap: bool
    ) -> None:
        super().__init__()
        self.spec, self.rate, self.width, self.axes = spec, rate, width, axes
        self.overlap = overlap
        outputs = 2 * width if overlap else width
        self.kv_proj = Linear(spec.hidden, outputs)
        self.gate_proj = Linear(spec.hidden, outputs)
        self.position_bias = weight(rate, outputs)
        self.kv_norm = Norm(width, spec.norm_eps)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """This rank's ``x [B, S/n, D]`` to all entries ``[B, T, N]``, ``T = S // rate``."""
        joined = torch.cat((self.kv_proj(x), self.gate_proj(x)), dim=-1)
        joined = gather(joined, self.axes.sequence, 1)
        entries = context.length // self.rate
        windows = joined[:, : entries * self.rate].unflatten(1, (entries, self.rate))
        kv, gate = windows.chunk(2, dim=-1)
        gate = gate.float() + local(self.position_bias)
        if self.overlap:
            kv, gate = _with_window_before(kv, 0.0), _with_window_before(gate, -torch.inf)
        pooled = (kv * gate.softmax(2).to(kv.dtype)).sum(2)
        return rotate_tail(self.kv_norm(pooled), self._angles(context, entries))

    def _angles(self, context: Context, entries: int) -> tuple[Tensor, Tensor]:
        cos, sin = context.angles(self.spec.rope_compressed)
        used = slice(0, entries * self.rate, self.rate)
        return cos[used], sin[used]


def _with_window_before(x: Tensor, fill: float) -> Tensor:
    """``[B, T, r, 2N] -> [B, T, 2r, N]``: first series of the window before, then second series."""
    first, second = x.chunk(2, dim=-1)
    before = F.pad(first[:, :-1], (0, 0, 0, 0, 1, 0), value=fill)
    return torch.cat((before, second), dim=2)


def rotate_tail(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the last channels of ``x [B, S, N]`` or ``[B, S, H, N]``, pairs being neighbours."""
    cos, sin = angles
    width = 2 * cos.shape[-1]
    plain, turned = x.split([x.shape[-1] - width, width], dim=-1)
    if x.dim() == 3:
        turned = rotate(turned.unsqueeze(2), cos, sin, True).squeeze(2)
    else:
        turned = rotate(turned, cos, sin, True)
    return torch.cat((plain, turned), dim=-1)


# The lightning indexer: which compressed entries each query reads
# ----------------------------------------------------------------


AT_ONCE = 2**24
"""Products of queries and keys formed at a time: heads beyond that are taken in turn."""


def index_scores(q: Tensor, k: Tensor, weights: Tensor) -> Tensor:
    """``sum_h w_h relu(q_h . k)``: ``[B, Q, H, N], [B, T, N], [B, Q, H] -> [B, Q, T]`` float32.

    Products of all heads are never held together, and formed again in the backward pass.
    """
    scores: Tensor = _IndexScores.apply(q, k, weights)
    return scores


class _IndexScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, weights)
        scores = q.new_zeros(*q.shape[:2], k.shape[1], dtype=torch.float32)
        with not_kept():
            for part in _some_heads(q, k):
                products = F.relu(_products(q[:, :, part], k))
                scores += torch.einsum("bqht,bqh->bqt", products, _scaled(weights, part, q))
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, weights = ctx.saved_tensors
        dq, dw = torch.empty_like(q), torch.empty_like(weights)
        dk = torch.zeros_like(k, dtype=torch.float32)
        for part in _some_heads(q, k):
            products = F.relu(_products(q[:, :, part], k))
            scale = (q.shape[-1] * q.shape[-2]) ** -0.5
            dw[:, :, part] = torch.einsum("bqht,bqt->bqh", products, g) * scale
            slopes = products.sign_().mul_(g.unsqueeze(2))
            slopes *= _scaled(weights, part, q).unsqueeze(-1)
            dq[:, :, part] = torch.einsum("bqht,btn->bqhn", slopes, k.float())
            dk += torch.einsum("bqht,bqhn->btn", slopes, q[:, :, part].float())
        return dq, dk.to(k.dtype), dw


def _some_heads(q: Tensor, k: Tensor) -> list[slice]:
    step = max(1, AT_ONCE // (q.shape[0] * q.shape[1] * k.shape[1]))
    return [slice(first, first + step) for first in range(0, q.shape[2], step)]


def _products(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bqhn,btn->bqht", q.float(), k.float())


def _scaled(weights: Tensor, part: slice, q: Tensor) -> Tensor:
    """Weights of some heads, over the roots of a head's width and of their number; float32."""
    return weights[:, :, part].float() * (q.shape[-1] * q.shape[-2]) ** -0.5


class IndexScorer(nn.Module):
    """:func:`index_scores` with head weights from the hidden state."""

    def __init__(self, spec: ModelSpec, shape: Indexer) -> None:
        super().__init__()
        self.shape = shape
        self.weights_proj = Linear(spec.hidden, shape.heads)

    def forward(self, q: Tensor, k: Tensor, x: Tensor) -> Tensor:
        """``q [B, Q, H, N], k [B, T, N], x [B, Q, D] -> [B, Q, T]`` float32."""
        return index_scores(q, k, self.weights_proj(x))


class LightningIndexer(Compressor):
    """A small compressor for keys, queries from the low-rank query, and a scorer.

    The choice of entries has no gradient: :mod:`krzem.train.model.shared_kv` trains these weights.
    """

    def __init__(self, spec: ModelSpec, shape: Indexer, latent: int, rate: int, axes: Axes) -> None:
        super().__init__(spec, shape.head_dim, rate, axes, overlap=True)
        self.shape = shape
        self.q_b_proj = Linear(latent, shape.heads * shape.head_dim)
        self.scorer = IndexScorer(spec, shape)

    def scores(self, x: Tensor, latent: Tensor, context: Context) -> Tensor:
        """[B, Q, T] of this rank's queries, minus infinity where an entry is not visible.

        ``x [B, Q, D]`` and the query latent ``[B, Q, L]`` are this rank's own tokens; no gradient
        goes back to them.
        """
        x, latent = x.detach(), latent.detach()
        keys = self.forward(x, context)
        q = self.q_b_proj(latent).view(*latent.shape[:2], -1, self.width)
        q = rotate_tail(q, context.angles(self.spec.rope_compressed, context.own))
        visible = visible_entries(context, self.rate, keys.shape[1], overlap=True)[:, context.own]
        return self.scorer(q, keys, x).masked_fill(~visible, -torch.inf)

    @torch.no_grad()
    def choose(self, scores: Tensor) -> Tensor:
        """[B, Q, k] the best entries of each query; -1 where fewer are visible."""
        best, index = scores.topk(min(self.shape.topk, scores.shape[-1]), dim=-1)
        return index.masked_fill(best == -torch.inf, -1)


class KeyIndexer(nn.Module):
    """Picks the keys that a query of latent attention reads (DeepSeek-V3.2, arXiv 2512.02556).

    One key of its own for each token, under a norm that subtracts the mean; first channels are
    rotated, half a head apart (neighbours in GLM-5).
    """

    def __init__(self, spec: ModelSpec, shape: Indexer, latent: int, axes: Axes) -> None:
        super().__init__()
        self.spec, self.shape, self.axes = spec, shape, axes
        self.wq_b = Linear(latent, shape.heads * shape.head_dim)
        self.wk = Linear(spec.hidden, shape.head_dim)
        self.k_norm = LayerNorm(shape.head_dim)
        self.weights_proj = Linear(spec.hidden, shape.heads)

    def scores(self, x: Tensor, latent: Tensor, context: Context) -> Tensor:
        """[B, Q, S] of this rank's queries, minus infinity where a key may not be read.

        ``x [B, Q, D]`` and ``latent [B, Q, L]`` are this rank's own tokens; no gradient goes back
        to them.
        """
        x, latent = x.detach(), latent.detach()
        q = self.wq_b(latent).view(*latent.shape[:2], -1, self.shape.head_dim)
        k = self._rotated(self.k_norm(self.wk(x)).unsqueeze(2), context).squeeze(2)
        keys = gather(k, self.axes.sequence, 1)
        scores = index_scores(self._rotated(q, context), keys, self.weights_proj(x))
        mask = whole_mask(context.length, x.device, None, context.documents).squeeze(1)
        return scores.masked_fill(~mask[:, context.own], -torch.inf)

    @torch.no_grad()
    def chosen(self, scores: Tensor) -> Tensor:
        """[B, Q, S] whether a query reads a key: of those it may read the best ``topk``."""
        best, index = scores.topk(min(self.shape.topk, scores.shape[-1]), dim=-1)
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        return chosen.scatter_(-1, index, best != -torch.inf)

    def _rotated(self, x: Tensor, context: Context) -> Tensor:
        cos, sin = context.angles(self.spec.rope, context.own)
        return rotate_first(x, cos, sin, self.spec.index_interleaved)


def visible_entries(context: Context, rate: int, entries: int, *, overlap: bool) -> Tensor:
    """[B or 1, S, T]: entries whose tokens are all at or before the query, in its document."""
    position = torch.arange(context.length, device=context.device)
    entry = torch.arange(entries, device=context.device)
    visible = (entry[None, :] < ((position + 1) // rate)[:, None])[None]
    if context.documents is None:
        return visible
    first = entry * rate - (rate if overlap else 0)
    document = context.documents[:, first.clamp(min=0)]
    return visible & (context.documents[:, :, None] == document[:, None, :])
