"""Versions for Ascend NPUs through ``torch_npu``: written from its documentation, not yet run.

A version is taken only where ``torch_npu`` is imported and has the operator.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from krzem.train.ops.attention import attention, causal_mask
from krzem.train.ops.portable import rms_norm, rotate, swiglu


def _library() -> Any:
    return sys.modules["torch_npu"]


def _has(name: str) -> bool:
    return hasattr(sys.modules.get("torch_npu"), name)


@rms_norm.version("npu", lambda: _has("npu_rms_norm"))
def rms_norm_npu(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The fused norm; it needs a weight."""
    gain = x.new_ones(x.shape[-1]) if weight is None else weight
    out: Tensor = _library().npu_rms_norm(x, gain, eps)[0]
    return out


@swiglu.version("npu", lambda: _has("npu_swiglu"))
def swiglu_npu(gate: Tensor, up: Tensor, limit: float | None = None) -> Tensor:
    """The fused activation takes both halves joined."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(min=-limit, max=limit)
    out: Tensor = _library().npu_swiglu(torch.cat((gate, up), dim=-1), dim=-1)
    return out


@rotate.version("npu", lambda: _has("npu_rotary_mul"))
def rotate_npu(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The fused rotation takes angles of full width, ``[1, S, 1, R]``."""
    if interleaved:
        wide = [t.repeat_interleave(2, dim=-1) for t in (cos, sin)]
    else:
        wide = [torch.cat((t, t), dim=-1) for t in (cos, sin)]
    c, s = (t[None, :, None, :].to(x.dtype) for t in wide)
    mode = "interleave" if interleaved else "half"
    out: Tensor = _library().npu_rotary_mul(x, c, s, mode)
    return out


@attention.version("npu", lambda: _has("npu_fusion_attention"))
def attention_npu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None = None,
    documents: Tensor | None = None,
    spans: Tensor | None = None,
) -> Tensor:
    """The fused attention; its mask is True where a key is *not* read."""
    length = q.shape[2]
    mask = causal_mask(length, q.device, window, documents)
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    out: Tensor = _library().npu_fusion_attention(
        q, k, v, q.shape[1], "BNSD", scale=scale, atten_mask=~mask
    )[0]
    return out
