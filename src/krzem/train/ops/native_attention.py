"""Causal attention by the kernels in C, as one operator of torch's.

Products, mask and softmax of a few queries follow one another while they are in the caches, and
only the keys that a query may read are multiplied.  Forward and backward of 32 heads of width 96
over 256 tokens took 8 ms where blocks of torch's operators took 19, and of 8 heads over 1024 tokens
25 against 60 (float32, one thread, AVX512); in bfloat16 4.7 against 7.4, and 15 against 23.

Shape letters: B batch, H heads, S sequence, N query-key width, V value width.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from krzem.train.ops import native


# A library operator is one unit for torch: selective recomputation can keep its result.
@torch.library.custom_op("krzem::causal_attention", mutates_args=())
def native_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``[B, H, S, N], [B, H, S, N], [B, H, S, V] -> [B, H, S, V]`` and the weights.

    ``mask [B or 1, 1, S, S]`` is True where a query may read a key; of each query's keys before
    it and itself.  The backward needs the weights ``[B, H, S, S]``, of which only those of such
    keys are defined (in bfloat16 rows are padded to whole pairs).
    """
    q, k, v = (native.with_rows(t) for t in (q, k, v))
    B, H, S, _ = q.shape
    out, weights = _like_tokens(v), _weights(q)
    added, step = None, 0
    if mask is not None:
        added = torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        step = added.stride(0) if len(added) > 1 else 0
    sizes = (B, H, S, q.shape[-1], v.shape[-1])
    kernel, strides = _kernel("attention", q), _strides(q, k, v, out)
    native.call(kernel, q, k, v, out, strides, weights, added, step, *sizes, scale)
    return out, weights


def takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether there is a kernel for these: bfloat16 wants widths of whole pairs."""
    if not native.usable(q, k, v):
        return False
    pairs = q.shape[-1] % 2 == v.shape[-1] % 2 == 0 and native.multiplies_pairs()
    return q.dtype is torch.float32 or pairs


@torch.library.custom_op("krzem::causal_attention_backward", mutates_args=())
def _backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    g, q, k, v = (native.with_rows(t) for t in (g, q, k, v))
    B, H, S, N = q.shape
    grads = [_like_tokens(t) for t in (q, k, v)]
    strides, sizes = _strides(g, q, k, v, *grads), (B, H, S, N, v.shape[-1])
    kernel = _kernel("attention_gradient", q)
    native.call(kernel, g, q, k, v, *grads, strides, weights, *sizes, scale)
    dq, dk, dv = grads
    return dq, dk, dv


def _kernel(name: str, q: Tensor) -> str:
    return name if q.dtype is torch.float32 else f"pairs_{name}"


def _weights(q: Tensor) -> Tensor:
    """``[B, H, S, S]`` to be written; in bfloat16 rows have whole pairs."""
    B, H, S, _ = q.shape
    return q.new_empty(B, H, S, S if q.dtype is torch.float32 else S + S % 2)


def _like_tokens(x: Tensor) -> Tensor:
    """An uninitialised ``[B, H, S, width]`` like ``x`` that lies token by token, as it is read."""
    B, H, S, width = x.shape
    return x.new_empty(B, S, H, width).transpose(1, 2)


def _strides(*tensors: Tensor) -> ctypes.Array[ctypes.c_ssize_t]:
    """Of batch, head and token of each tensor."""
    numbers = [stride for t in tensors for stride in t.stride()[:3]]
    return (ctypes.c_ssize_t * len(numbers))(*numbers)


@native_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return _like_tokens(v), _weights(q)


@_backward.register_fake
def _(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (_like_tokens(t) for t in (q, k, v))
    return dq, dk, dv


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.scale, _ = inputs
    ctx.save_for_backward(q, k, v, output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, g: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*_backward(g, *ctx.saved_tensors, ctx.scale), None, None)


native_attention.register_autograd(_gradients, setup_context=_keep)
