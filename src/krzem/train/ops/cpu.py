"""Versions for processors, where measurement favours another way than the portable one.

Attention has a module of its own, :mod:`krzem.train.ops.cpu_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from krzem.train.ops.portable import linear, rms_norm
from krzem.train.ops.products import by_onednn, product, transposed_product
from krzem.train.ops.registry import interpreted


@torch.library.custom_op("krzem::linear", mutates_args=())
def opaque_linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x [..., I]`` times the transpose of ``weight [O, I]``: ``[..., O]``."""
    return product(x, weight)


@torch.library.custom_op("krzem::linear_weight", mutates_args=())
def _weight_gradient(g: Tensor, x: Tensor) -> Tensor:
    return transposed_product(g.flatten(0, -2), x.flatten(0, -2)).contiguous()


@opaque_linear.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@_weight_gradient.register_fake
def _(g: Tensor, x: Tensor) -> Tensor:
    return g.new_empty(g.shape[-1], x.shape[-1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight = ctx.needs_input_grad
    g = g.contiguous()
    dx = opaque_linear(g, weight.t()) if needs_x else None
    return dx, _weight_gradient(g, x) if needs_weight else None


opaque_linear.register_autograd(_gradients, setup_context=_keep)


@linear.version("cpu", traceable=True)
def linear_cpu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Float32 by oneDNN, forward and backward; other types as torch does."""
    if not interpreted():
        return linear_compiled(x, weight, bias)
    if not by_onednn(x, weight):
        return linear.portable(x, weight, bias)
    y: Tensor = _Linear.apply(x, weight)
    return y if bias is None else y + bias


def linear_compiled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product that the compiler leaves to us, which in other types it does as well."""
    if x.dtype is not torch.float32 or weight.dtype is not torch.float32:
        return linear.portable(x, weight, bias)
    y = opaque_linear(x, weight)
    return y if bias is None else y + bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        g = g.contiguous()
        dx = product(g, weight.t()) if needs_x else None
        dw = transposed_product(g.flatten(0, -2), x.flatten(0, -2)) if needs_weight else None
        return dx, dw


@rms_norm.version("cpu")
def rms_norm_cpu(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """In few passes; the backward computes from the input and one number per row."""
    if x.dtype not in (torch.float32, torch.bfloat16):
        return rms_norm.portable(x, weight, eps)
    y: Tensor = _Norm.apply(x, weight, eps)
    return y


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        wide = x.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, weight, inverse)
        y = wide * inverse
        if weight is not None:
            y *= weight
        return y.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        width = x.shape[-1]
        g, wide = g.reshape(-1, width).float(), x.reshape(-1, width).float()
        inverse = inverse.reshape(-1, 1)
        products = g * wide
        dw = None
        if weight is None:
            along = products.sum(-1, keepdim=True)
            dx = g * inverse
        else:
            gain = weight.float()
            along = torch.mv(products, gain).unsqueeze(-1)
            dw = torch.mv(products.t(), inverse.squeeze(-1)).to(weight.dtype)
            dx = (g * gain).mul_(inverse)
        dx.addcmul_(wide, along * inverse.pow(3), value=-1.0 / width)
        return dx.view(x.shape).to(x.dtype), dw, None
