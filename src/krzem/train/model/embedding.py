"""Token embedding whose rows may be cut over tensor-parallel ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from krzem.train.model.weights import Cut, local, weight
from krzem.train.parallel.axis import Axis
from krzem.train.parallel.collectives import reduce_scatter


class Embedding(nn.Module):
    """A row per token id; ids of other ranks' rows give zero, and the ranks' results are summed."""

    def __init__(self, vocab: int, hidden: int, axis: Axis) -> None:
        super().__init__()
        self.axis = axis
        self.weight = weight(vocab, hidden, cut=Cut.ROWS)

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """``[B, S] -> [B, S/tp, D]`` in ``dtype``."""
        rows = local(self.weight)
        if self.axis.size == 1:
            return F.embedding(tokens, rows).to(dtype)
        own = tokens - self.axis.rank * rows.shape[0]
        here = (own >= 0) & (own < rows.shape[0])
        found = F.embedding(own.clamp(0, rows.shape[0] - 1), rows).to(dtype)
        return reduce_scatter(found * here.unsqueeze(-1), self.axis, 1)
