"""The same products in another order of summing, or with operands of fewer bits.

On a given machine a matrix product is summed in one order; on other hardware in another.  Here the
contracted axis is cut in two and the two products are added, each rounded to the type in use, as
tensor-parallel ranks and split kernels do.  It works for any model, forward and backward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from krzem.train.ops import portable_only

_GROUPED = "krzem::grouped_linear"
_PRODUCTS = {"aten::mm": torch.mm, "aten::bmm": torch.bmm}


@contextlib.contextmanager
def split_products(share: float) -> Iterator[None]:
    """Every matrix product below is summed in two parts, attention by plain products.

    ``share`` of the contracted axis goes into the first part.
    """
    with portable_only(), sdpa_kernel([SDPBackend.MATH]), _Split(share):
        yield


@contextlib.contextmanager
def narrow_products() -> Iterator[None]:
    """Operands of every matrix product below are rounded to TF32, sums stay in float32.

    What a device computes whose float32 products are not float32.
    """
    with portable_only(), sdpa_kernel([SDPBackend.MATH]), _Narrow():
        yield


class _Products(TorchDispatchMode):
    """Changes the products of plain tensors."""

    def change(self, product: Callable[..., Tensor], *args: Any) -> Tensor:
        """The product of ``args``, computed otherwise."""
        raise NotImplementedError

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name().partition(".")[0]
        plain = all(type(a) in (Tensor, torch.nn.Parameter) for a in args if isinstance(a, Tensor))
        if kwargs or not plain:
            return func(*args, **kwargs)
        if name in _PRODUCTS and len(args) == 2:
            return self.change(_PRODUCTS[name], *args)
        if name == "aten::addmm" and len(args) == 3:
            return args[0] + self.change(torch.mm, *args[1:])
        if name == _GROUPED:
            return self.change(func, *args)
        return func(*args)


class _Split(_Products):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def change(self, product: Callable[..., Tensor], *args: Any) -> Tensor:
        """In two parts."""
        halve = _in_two if len(args) == 2 else _grouped
        return halve(product, self.share, *args)


class _Narrow(_Products):
    def change(self, product: Callable[..., Tensor], *args: Any) -> Tensor:
        """Of rounded operands."""
        return product(tf32(args[0]), tf32(args[1]), *args[2:])


def tf32(x: Tensor) -> Tensor:
    """``x`` rounded to the ten bits after the point that TF32 keeps; other types as they are."""
    if x.dtype is not torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def _in_two(
    product: Callable[[Tensor, Tensor], Tensor], share: float, a: Tensor, b: Tensor
) -> Tensor:
    cut = int(a.shape[-1] * share)
    if not cut or not a.is_floating_point():
        return product(a, b)
    low = product(a[..., :cut], b[..., :cut, :])
    return low + product(a[..., cut:], b[..., cut:, :])


def _grouped(func: Any, share: float, x: Tensor, weight: Tensor, *groups: Any) -> Tensor:
    """The experts' products: ``x [P, I]`` with ``weight [E, O, I]``, by ``groups`` of rows."""
    cut = int(x.shape[-1] * share)
    parts = [
        func(x[:, part].contiguous(), weight[..., part].contiguous(), *groups)
        for part in (slice(0, cut), slice(cut, None))
    ]
    total: Tensor = parts[0] + parts[1]
    return total
