"""Activation recomputation: which parts of a layer are computed again in the backward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    _CachedTorchDispatchMode,
    _CachingTorchDispatchMode,
    checkpoint,
)

from krzem.layout.layout import Recompute

_AGAIN: ContextVar[bool] = ContextVar("recomputing", default=False)
_PASSING: ContextVar[bool] = ContextVar("passing", default=False)

_KEPT = frozenset(
    {
        "aten.mm",
        "aten.bmm",
        "aten.addmm",
        "aten._scaled_dot_product_flash_attention",
        "aten._scaled_dot_product_flash_attention_for_cpu",
        "aten._scaled_dot_product_efficient_attention",
        "aten._scaled_dot_product_cudnn_attention",
        "aten._scaled_dot_product_attention_math",
        "torch_attn._varlen_attn",
        "aten._grouped_mm",
        "aten._scaled_grouped_mm",
        "aten._scaled_mm_v2",
        "mkldnn._linear_pointwise",
        "krzem.grouped_linear",
        "krzem.grouped_network",
    }
)
"""Operators whose results ``modules`` keeps."""


def recomputing() -> bool:
    """Whether the forward code that asks is running a second time, for the backward pass."""
    return _AGAIN.get()


@contextmanager
def _again() -> Iterator[None]:
    token = _AGAIN.set(True)
    try:
        yield
    finally:
        _AGAIN.reset(token)


@contextmanager
def not_kept() -> Iterator[None]:
    """Products formed inside are of use there alone: ``modules`` keeps none of them."""
    if torch.compiler.is_compiling():
        yield
        return
    token = _PASSING.set(True)
    try:
        yield
    finally:
        _PASSING.reset(token)


def recomputed(function: Callable[..., Tensor], policy: Recompute, *args: Any) -> Tensor:
    """Run a whole layer under ``policy``: ``full`` keeps its input, ``modules`` its products.

    ``modules`` keeps the results of matrix products and attention and computes norms, activation
    functions, rotations and routing again.
    """
    if policy is Recompute.FULL:
        return _checkpoint(function, lambda: (nullcontext(), _again()), *args)
    if policy is Recompute.MODULES:
        return _checkpoint(function, _keep_products, *args)
    return function(*args)


def recomputed_core(function: Callable[..., Tensor], policy: Recompute, *args: Any) -> Tensor:
    """Run an attention core; under ``attention`` it is computed again in the backward pass.

    Under ``modules`` its products are kept, where the layer around it is compiled.
    """
    whole = policy is Recompute.ATTENTION
    return recomputed(function, Recompute.FULL if whole else policy, *args)


Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


def _checkpoint(function: Callable[..., Tensor], contexts: Contexts, *args: Any) -> Tensor:
    out: Tensor = checkpoint(
        function, *args, use_reentrant=False, context_fn=contexts, preserve_rng_state=False
    )
    return out


def _keep_products() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    storage: dict[Any, dict[int, Any]] = defaultdict(dict)
    return _Keep(_must_save, storage), _both(_TakeKept(None, storage))


@contextmanager
def _both(inner: AbstractContextManager[Any]) -> Iterator[None]:
    with _again(), inner:
        yield


class _Keep(_CachingTorchDispatchMode):
    """Keeps the results of the operators named, and lets every other one pass uncounted.

    torch's own modes demand that *every* operator runs as often the second time as the first.
    What FSDP's hooks and collectives run inside a layer does not: it depends on what is gathered.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_kept(func):
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


class _TakeKept(_CachedTorchDispatchMode):
    """Gives the results that :class:`_Keep` kept, in the same order."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_kept(func):
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


def _must_save(*_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE


def _is_kept(op: Any) -> bool:
    # An ``out`` overload writes into a tensor that is not its own: nothing to keep.
    owns = getattr(op, "_overloadname", "") != "out"
    return owns and not _PASSING.get() and str(getattr(op, "overloadpacket", op)) in _KEPT
