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
from krzem.train.model.weights import Linear
from krzem.train.parallel.axis import Axes


class IndexScorer(nn.Module):
    """``sum_h w_h relu(q_h . k)`` with head weights from the hidden state."""

    def __init__(self, spec: ModelSpec, shape: Indexer) -> None:
        super().__init__()
        self.shape = shape
        self.weights_proj = Linear(spec.hidden, shape.heads)

    def forward(self, q: Tensor, k: Tensor, x: Tensor) -> Tensor:
        """``q [B, Q, H, N], k [B, T, N], x [B, Q, D] -> [B, Q, T]`` float32."""
        products = torch.einsum("bqhn,btn->bqht", q.float(), k.float())
        scores = F.relu(products) * self.shape.head_dim**-0.5
        weights = self.weights_proj(x).float() * self.shape.heads**-0.5
        return torch.einsum("bqht,bqh->bqt", scores, weights)


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
