"""The small operators in plain torch: linear, norm, activation, rotation, logits, all-to-all.

Shape letters: B batch, S sequence, H heads, N unrotated, R rotated and V value width; of logits m
tokens and V this rank's part of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from krzem.train.ops.registry import operator
from krzem.train.parallel.collectives import Axis, exchange_rows


@operator
def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis ``[..., D]``, in float32 inside."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


@operator
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x [..., I]`` times the transpose of ``weight [O, I]``, plus ``bias [O]``: ``[..., O]``."""
    return F.linear(x, weight, bias)


@operator
def swiglu(gate: Tensor, up: Tensor, limit: float | None = None) -> Tensor:
    """``silu(gate) * up``; with ``limit`` gate is cut above and up on both sides (DeepSeek V4)."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    return F.silu(gate) * up


@operator
def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate the channels of ``x [B, S, H, R]`` by angles ``cos, sin [S, R/2]``.

    A pair is ``(2i, 2i+1)`` where ``interleaved``, else ``(i, i + R/2)``; channels keep their
    places.  The rotation is computed in float32.  The backward rotates back, so that nothing but
    the angles is kept.
    """
    return _Rotate.apply(x, cos, sin, interleaved)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        out = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    else:
        a, b = x.chunk(2, dim=-1)
        out = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return out.to(x.dtype)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return _turn(x, cos, sin, interleaved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turn(g, cos, -sin, ctx.interleaved), None, None, None


@operator
def rotate_tail(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """:func:`rotate` of the last ``R`` channels of ``x [B, S, H, N + R]``; the others stay."""
    plain, rotated = x.split([x.shape[-1] - 2 * cos.shape[-1], 2 * cos.shape[-1]], dim=-1)
    return torch.cat((plain, rotate(rotated, cos, sin, interleaved)), dim=-1)


def rotate_first(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """:func:`rotate` of the first ``R`` channels of ``x [B, S, H, R + N]``; the others stay."""
    width = 2 * cos.shape[-1]
    if width == x.shape[-1]:
        return rotate(x, cos, sin, interleaved)
    rotated, plain = x.split([width, x.shape[-1] - width], dim=-1)
    return torch.cat((rotate(rotated, cos, sin, interleaved), plain), dim=-1)


@operator
def keys_values(kv: Tensor, rotated: Tensor, plain: int) -> tuple[Tensor, Tensor]:
    """Keys ``[B, S, H, N + R]`` and values ``[B, S, H, V]`` of ``kv [B, S, H, N + V]``.

    All heads share the rotated part ``[B, S, R]`` of the keys; ``plain`` is N.
    """
    own, v = kv.split([plain, kv.shape[-1] - plain], dim=-1)
    return torch.cat((own, rotated.unsqueeze(2).expand(-1, -1, kv.shape[2], -1)), dim=-1), v


@operator
def logit_sums(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """``[m]`` logarithms of the sums of exponentials of ``logits [m, V]``; ``[m]`` targets' logits.

    ``own [m]`` is the target's place among the logits, negative where it is not there: then its
    logit is given as zero.  Both results are float32.
    """
    chosen = logits.gather(1, own.clamp(min=0)[:, None]).squeeze(1).float()
    return logits.float().logsumexp(-1), chosen.masked_fill_(own < 0, 0.0)


@operator
def logit_gradient(logits: Tensor, own: Tensor, partition: Tensor, factor: Tensor) -> Tensor:
    """``exp(logits - partition) * factor``, less one at the target, ``[m, V]``; may be in place.

    ``partition [m]`` and ``factor [m]`` are float32.
    """
    g = (logits.float() - partition[:, None]).exp_().mul_(factor[:, None])
    here = (own >= 0).float()[:, None]
    return g.scatter_add_(1, own.clamp(min=0)[:, None], -here).to(logits.dtype)


@operator
def dispatch(rows: Tensor, axis: Axis, send: list[int], receive: list[int]) -> Tensor:
    """All-to-all of ``rows [R, D]``, ``send[i]`` to rank i; the way back swaps the two lists."""
    return exchange_rows(rows, axis, send, receive)


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
