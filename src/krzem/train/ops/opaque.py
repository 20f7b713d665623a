"""Matrix products as single operators of a compiled graph, which a compiler leaves as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from krzem.train.ops.products import product, transposed_product


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
