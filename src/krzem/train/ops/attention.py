"""Attention: causal over all or a window of keys, and V4's over near and compressed keys.

Shape letters: B batch, H query heads, G key-value heads, S queries, T keys, N query-key width,
V value width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from krzem.train.ops.registry import operator


@operator
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None = None,
    documents: Tensor | None = None,
    spans: Tensor | None = None,
) -> Tensor:
    """Causal attention ``[B, H, S, N], [B, G, T, N], [B, G, T, V] -> [B, H, S, V]``.

    Queries are those of the last ``S`` of ``T`` keys, all of them in training.

    ``window`` limits a query to that many latest keys, itself included; ``documents [B, S]``
    (an id per token) to keys of its own document.  ``spans`` are :func:`document_spans` of them,
    for kernels that read no mask.  Values narrower than keys are padded: kernels that never form
    the score matrix want equal widths.
    """
    width = v.shape[-1]
    if width < q.shape[-1]:
        v = F.pad(v, (0, q.shape[-1] - width))
    mask = causal_mask(q.shape[2], q.device, window, documents, before=k.shape[2] - q.shape[2])
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=k.shape[1] != q.shape[1],
    )
    return out[..., :width]


def most_documents(documents: Tensor | None) -> int:
    """Documents of the sequence that has most of them, rounded up to a power of two; 0 of None.

    It waits for the device: asked once a step, before the device has work.
    """
    if documents is None:
        return 0
    most = int((documents.diff(dim=1) != 0).sum(dim=1).max()) + 1
    return 1 << (most - 1).bit_length()


def document_spans(documents: Tensor | None, most: int = 0) -> Tensor | None:
    """Where documents begin in the row of all tokens, ``[B, S] -> [B * most + 1]`` int32.

    A document is a run of equal ids in a sequence; behind the last one of a sequence come empty
    ones, up to ``most``, and the last number is ``B * S``.  The host reads nothing, except where
    ``most`` is 0 and it counts.
    """
    if documents is None:
        return None
    most = most or most_documents(documents)
    B = len(documents)
    before = documents.diff(dim=1) != 0
    index = torch.cat((before.new_zeros(B, 1), before), dim=1).cumsum(dim=1)
    first = torch.arange(B, device=documents.device)[:, None]
    lengths = torch.zeros(B * most + 1, dtype=torch.int32, device=documents.device)
    slot = (index + first * most + 1).flatten()
    lengths.index_add_(0, slot, torch.ones_like(slot, dtype=torch.int32))
    return lengths.cumsum(dim=0, dtype=torch.int32)


def causal_mask(
    length: int,
    device: torch.device,
    window: int | None,
    documents: Tensor | None,
    *,
    before: int = 0,
) -> Tensor | None:
    """True where a query may read a key, ``[B or 1, 1, S, S]``; None where plainly causal.

    ``before`` the queries there may be keys without queries: ``[1, 1, S, before + S]``.
    """
    if documents is None and not before and (window is None or window >= length):
        return None
    position = torch.arange(before + length, device=device)
    behind = position[before:, None] - position[None, :]
    mask = behind >= 0
    if window is not None:
        mask = mask & (behind < window)
    mask = mask[None, None]
    if documents is not None:
        mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])
    return mask


def whole_mask(
    length: int,
    device: torch.device,
    window: int | None,
    documents: Tensor | None,
    *,
    before: int = 0,
) -> Tensor:
    """:func:`causal_mask`, written out where plainly causal too."""
    mask = causal_mask(length, device, window, documents, before=before)
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
    return mask


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *, scale: float) -> Tensor:
    """As :func:`attention`, of the keys that ``mask [B or 1, S, T]`` says a query may read."""
    width = v.shape[-1]
    v = F.pad(v, (0, q.shape[-1] - width))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(1), scale=scale)
    return out[..., :width]


def grouped_sink_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    *,
    scale: float,
    window: int | None = None,
    documents: Tensor | None = None,
    spans: Tensor | None = None,
) -> Tensor:
    """As :func:`attention`, with a learned logit ``sinks [H]`` of a key without value (GPT-OSS).

    It is computed as in :func:`sink_attention`: one more key and channel.
    """
    B, H, S, N = q.shape
    T = k.shape[2]
    mask = whole_mask(S, q.device, window, documents, before=T - S)
    extra = 8
    logit = (sinks / scale).to(q.dtype).view(1, H, 1, 1).expand(B, H, S, 1)
    q = torch.cat((q, logit, q.new_zeros(()).expand(B, H, S, extra - 1)), dim=-1)
    keys = F.pad(k, (0, extra, 0, 1)) + F.pad(k.new_ones(1, 1, 1, 1), (N, extra - 1, T, 0))
    out = F.scaled_dot_product_attention(
        q,
        keys,
        F.pad(v, (0, extra, 0, 1)),
        attn_mask=F.pad(mask, (0, 1), value=True),
        scale=scale,
        enable_gqa=k.shape[1] != H,
    )
    return out[..., :N]


@operator
def sink_attention(q: Tensor, kv: Tensor, sinks: Tensor, mask: Tensor, *, scale: float) -> Tensor:
    """Attention of all heads over one key-value head, with a learned sink in the denominator.

    ``q [B, H, S, N]``; ``kv [B, T, N]`` is read as key and as value; ``sinks [H]`` is the logit of
    a key without value; ``mask [B or 1, S, T]`` is True where a query may read a key.

    The sink is one more key: queries get a channel that holds their head's logit, and only the
    sink's key is one there.  So a kernel that knows no sinks computes them, gradient included.
    """
    B, H, S, N = q.shape
    T = kv.shape[1]
    extra = 8  # Kernels want widths in multiples of eight.
    logit = (sinks / scale).to(q.dtype).view(1, H, 1, 1).expand(B, H, S, 1)
    q = torch.cat((q, logit, q.new_zeros(()).expand(B, H, S, extra - 1)), dim=-1)
    keys = F.pad(kv, (0, extra, 0, 1))
    keys = keys + F.pad(kv.new_ones(1, 1, 1), (N, extra - 1, T, 0))
    values = F.pad(kv, (0, extra, 0, 1))
    full = F.pad(mask, (0, 1), value=True).unsqueeze(1)
    out = F.scaled_dot_product_attention(
        q,
        keys.unsqueeze(1).expand(B, H, T + 1, N + extra),
        values.unsqueeze(1).expand(B, H, T + 1, N + extra),
        attn_mask=full,
        scale=scale,
    )
    return out[..., :N]
