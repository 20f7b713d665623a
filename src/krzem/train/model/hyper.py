"""Manifold-constrained hyper-connections (DeepSeek V4): several residual streams, mixed.

Shape letters: B batch, S sequence, M streams, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from krzem.train.config import ModelSpec
from krzem.train.model.weights import local, weight
from krzem.train.ops import linear


def _project(streams: Tensor, matrix: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalise ``[B, S, M, D]`` per token, then project, in float32.

    The norm has no gain, so it is a factor per token and comes after the product.  The streams in
    float32, twice as large as they are, are not kept but made again in the backward pass.
    """
    out: Tensor = _Project.apply(streams, matrix, eps)
    return out


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, streams: Tensor, matrix: Tensor, eps: float) -> Tensor:
        flat = streams.flatten(2).float()
        scale = torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)
        products = linear(flat, matrix.float())
        ctx.save_for_backward(streams, matrix, scale, products)
        return products * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        streams, matrix, scale, products = ctx.saved_tensors
        flat = streams.flatten(2).to(torch.float32, copy=True)  # Changed in place below.
        inner = g * scale
        d_matrix = inner.flatten(0, 1).t() @ flat.flatten(0, 1)
        # The factor of a token falls as its length grows.
        slope = (g * products).sum(-1, keepdim=True) * scale.pow(3) / -flat.shape[-1]
        d_flat = flat.mul_(slope).add_(inner @ matrix.float())
        return d_flat.to(streams.dtype).view_as(streams), d_matrix.to(matrix.dtype), None


class HyperConnection(nn.Module):
    """Weights that collapse the streams to a layer's input, spread its output and mix the streams.

    The mixing matrix is made doubly stochastic by Sinkhorn iterations, so that mixing neither
    grows nor shrinks the streams' sum.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.streams = spec, spec.streams
        outputs = (2 + spec.streams) * spec.streams
        self.fn = weight(outputs, spec.streams * spec.hidden)
        self.base = weight(outputs)
        self.scale = weight(3)

    def collapse(self, streams: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``[B, S, M, D]`` to the layer's input ``[B, S, D]``, and :func:`spread`'s weights
        ``[B, S, M]`` and ``[B, S, M, M]``."""
        M, eps = self.streams, self.spec.hyper_eps
        scale, base = local(self.scale).float(), local(self.base).float()
        parts = _project(streams, local(self.fn), self.spec.norm_eps).split([M, M, M * M], dim=-1)
        offsets = base.split([M, M, M * M])
        pre, post, mix = (p * s + b for p, s, b in zip(parts, scale, offsets, strict=True))
        collapse = torch.sigmoid(pre) + eps
        x = torch.einsum("bsm,bsmd->bsd", collapse.to(streams.dtype), streams)
        return x, (2 * torch.sigmoid(post), self._sinkhorn(mix.unflatten(-1, (M, M))))

    def _sinkhorn(self, logits: Tensor) -> Tensor:
        eps = self.spec.hyper_eps
        mix = logits.softmax(-1) + eps
        mix = mix / (mix.sum(-2, keepdim=True) + eps)
        for _ in range(self.spec.sinkhorn_steps - 1):
            mix = mix / (mix.sum(-1, keepdim=True) + eps)
            mix = mix / (mix.sum(-2, keepdim=True) + eps)
        return mix


def spread(streams: Tensor, y: Tensor, post: Tensor, mix: Tensor) -> Tensor:
    """The next streams: ``post * y + mix^T streams``, ``[B, S, M, D]``."""
    dtype = streams.dtype
    mixed = torch.matmul(mix.to(dtype).transpose(-1, -2), streams)
    return torch.addcmul(mixed, post.to(dtype).unsqueeze(-1), y.unsqueeze(-2))


class StreamHead(nn.Module):
    """The learned collapse before the last norm."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.hc_fn = weight(spec.streams, spec.streams * spec.hidden)
        self.hc_base = weight(spec.streams)
        self.hc_scale = weight(1)

    def forward(self, streams: Tensor) -> Tensor:
        """``[B, S, M, D] -> [B, S, D]``."""
        mixes = _project(streams, local(self.hc_fn), self.spec.norm_eps)
        scale, base = local(self.hc_scale).float(), local(self.hc_base).float()
        weights = torch.sigmoid(mixes * scale + base) + self.spec.hyper_eps
        return torch.einsum("bsm,bsmd->bsd", weights.to(streams.dtype), streams)
