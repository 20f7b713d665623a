"""The gated delta rule over a sequence, in chunks of tokens (arXiv 2412.06464)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from krzem.train.ops.registry import operator

_NORM_EPS = 1e-6
"""Of the length of queries and keys, as the reference and ``transformers`` have it."""


@operator
def gated_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor,
    documents: Tensor | None = None,
    chunk: int = 64,
) -> Tensor:
    """What queries read from a state that keys and values are written to: ``[B, H, S, V]``.

    ``q, k [B, H, S, K]`` are brought to length one, queries divided by the root of K;
    ``v [B, H, S, V]``, ``decay [B, H, S]`` (a logarithm, at most 0) and ``beta [B, H, S]``.  Token
    t's state is ``S_t = exp(decay_t) S_{t-1}``, then ``S_t += beta_t k_t (v_t - k_t S_t)^T``; it
    reads ``q_t S_t``.  A state begins at zero with each of ``documents [B, S]``.  Within a chunk
    the writes are solved for at once, from chunk to chunk the state is handed on; all in float32.
    """
    length, dtype = q.shape[2], q.dtype
    q, k, v, decay, beta = _in_chunks(q, k, v, decay, beta, chunk)
    total = decay.cumsum(-1)
    pairs = (total.unsqueeze(-1) - total.unsqueeze(-2)).tril().exp().tril()
    read = total.exp()
    if documents is not None:
        same, goes_on = _documents(documents, chunk)
        pairs, read = pairs * same.unsqueeze(1), read * goes_on.unsqueeze(1)
    write = pairs[..., -1, :]
    carry = read[..., -1]
    # Each write corrects what the writes before it in the chunk, and the state, already give.
    system = (k * beta.unsqueeze(-1)) @ k.mT * pairs
    sides = torch.cat((v, k * read.unsqueeze(-1)), dim=-1) * beta.unsqueeze(-1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    values, keys = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    own, q, k = q @ k.mT * pairs, q * read.unsqueeze(-1), k * write.unsqueeze(-1)
    state, out = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1]), []
    for i in range(v.shape[2]):
        new = values[:, :, i] - keys[:, :, i] @ state
        out.append(q[:, :, i] @ state + own[:, :, i] @ new)
        state = state * carry[:, :, i, None, None] + k[:, :, i].mT @ new
    return torch.cat(out, dim=2)[:, :, :length].to(dtype)


def _in_chunks(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, chunk: int
) -> tuple[Tensor, ...]:
    """Float32 ``[B, H, T, chunk, …]``, padded by tokens that write nothing and do not decay."""
    q, k = (_unit(t.float()) for t in (q, k))
    q = q * q.shape[-1] ** -0.5
    pad = -q.shape[2] % chunk
    wide = (F.pad(t.float(), (0, 0, 0, pad)) for t in (q, k, v))
    flat = (F.pad(t.float(), (0, pad)) for t in (decay, beta))
    return tuple(t.unflatten(2, (-1, chunk)) for t in (*wide, *flat))


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _NORM_EPS)


def _documents(documents: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """``[B, T, chunk, chunk]`` whether two tokens of a chunk are of one document, and
    ``[B, T, chunk]`` whether a token is of the document that the chunk before it ends with."""
    more = documents[:, -1:].expand(-1, -documents.shape[1] % chunk)
    parts = torch.cat((documents, more), dim=1).unflatten(1, (-1, chunk))
    before = torch.cat((parts[:, :1, 0], parts[:, :-1, -1]), dim=1)
    return parts.unsqueeze(-1) == parts.unsqueeze(-2), parts == before.unsqueeze(-1)
