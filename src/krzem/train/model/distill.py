"""What an indexer learns from: the attention that reads the entries it chose.

The choice itself has no gradient.  As in DeepSeek-V3.2 (arXiv 2512.02556, equation 4) the scores
of the chosen entries are pulled towards the share of attention that all heads together give them;
only the indexer's own weights take part, everything it reads is detached.

Shape letters: B batch, H heads, S queries, Q this rank's queries, K keys, T entries, N width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_AT_ONCE = 2**24
"""Probabilities formed at a time: heads beyond that are taken in turn."""
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
    step = max(1, _AT_ONCE // (batch * length * keys.shape[-2]))
    logit = q.new_full((heads,), -torch.inf) if sinks is None else sinks
    apart = keys if keys.dim() == 4 else keys.unsqueeze(1)
    for first in range(0, heads, step):
        part = slice(first, first + step)
        own = apart[:, part] if apart.shape[1] > 1 else apart
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
