"""The lightning indexer: which compressed entries each query reads.

Shape letters: B batch, Q this rank's queries, T entries, H index heads, N index width, D hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krzem.model import Indexer
from krzem.train.config import ModelSpec
from krzem.train.model.compressor import Compressor, rotate_tail
from krzem.train.model.context import Context
from krzem.train.model.weights import LayerNorm, Linear
from krzem.train.ops import rotate_first
from krzem.train.ops.attention import whole_mask
from krzem.train.parallel.axis import Axes
from krzem.train.parallel.collectives import gather


def index_scores(q: Tensor, k: Tensor, weights: Tensor) -> Tensor:
    """``sum_h w_h relu(q_h . k)``: ``[B, Q, H, N], [B, T, N], [B, Q, H] -> [B, Q, T]`` float32."""
    products = torch.einsum("bqhn,btn->bqht", q.float(), k.float())
    scores = F.relu(products) * q.shape[-1] ** -0.5
    return torch.einsum("bqht,bqh->bqt", scores, weights.float() * q.shape[-2] ** -0.5)


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

    The choice of entries has no gradient: :mod:`krzem.train.model.distill` trains these weights.
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
    rotated, half a head apart.
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
        return rotate_first(x, cos, sin, False)


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
