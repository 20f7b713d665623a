"""Matrix products by the fastest library of the device.

On x86 processors torch gives float32 products to MKL, which on processors of other makers than its
own does not use their widest instructions.  oneDNN, which torch carries as well, does: 240 against
100 GFLOP/s measured on one AMD core with AVX512 (torch 2.13), and it is torch's own choice for
bfloat16.  Products of a narrow type need no choice.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from krzem.train.ops.registry import is_portable

_ROWS = 512
"""Of a piece in :func:`transposed_product`: 2048 rows of 256 took 1.38 ms, in one piece 1.57 ms."""


@functools.cache
def has_onednn() -> bool:
    """Whether float32 products of this process can go through oneDNN."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    available: bool = torch.backends.mkldnn.is_available()
    return wide and available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def by_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether the product of ``a`` and ``b`` is one that oneDNN does better."""
    return (
        a.device.type == "cpu"
        and a.dtype is torch.float32
        and b.dtype is torch.float32
        and min(a.numel(), b.numel()) > 0
        and has_onednn()
        and not is_portable()
    )


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a [..., K]`` times the transpose of ``b [N, K]``: ``[..., N]``."""
    if by_onednn(a, b):
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(a, b, None, "none", [], "")
        return out
    return torch.matmul(a, b.t())


def transposed_product(a: Tensor, b: Tensor) -> Tensor:
    """The transpose of ``a [M, N]`` times ``b [M, K]``: ``[N, K]``, the gradient of a weight."""
    return _summed_products(None, a, b) if by_onednn(a, b) else torch.mm(a.t(), b)


def add_transposed_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``total [N, K]``, or nothing yet, plus :func:`transposed_product`, in float32.

    ``total`` comes from this function and may be changed in place.
    """
    if by_onednn(a, b):
        return _summed_products(total, a, b)
    part = torch.mm(a.t(), b)
    return part.float() if total is None else total.add_(part)


def _summed_products(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``total`` plus the transpose of ``a`` times ``b``, a piece of their rows at a time.

    A piece is still in the caches when its product is computed after it was rearranged.  oneDNN
    wants its first operand rearranged, which costs least for the narrower one.
    """
    if a.shape[1] > b.shape[1]:
        return _summed_products(None if total is None else total.t(), b, a).t()
    for x, y in zip(a.split(_ROWS), b.split(_ROWS), strict=True):
        if total is None:
            total = product(x.t(), y.t())
        else:
            added = torch.ops.mkldnn._linear_pointwise.binary
            total = added(x.t(), total, y.t(), None, "add")
    assert total is not None
    return total


def product_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """:func:`product` of matrices, written into ``out [M, N]``."""
    if by_onednn(a, b):
        out.copy_(product(a, b))
    else:
        torch.mm(a, b.t(), out=out)


def transposed_product_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """:func:`transposed_product`, written into ``out [N, K]``."""
    if by_onednn(a, b):
        out.copy_(transposed_product(a, b))
    else:
        torch.mm(a.t(), b, out=out)
