"""Activation recomputation: which parts of a layer are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from krzem.layout.layout import Recompute

_AGAIN: ContextVar[bool] = ContextVar("recomputing", default=False)

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
        "aten._grouped_mm",
        "aten._scaled_mm_v2",
        "mkldnn._linear_pointwise",
        "krzem.causal_attention",
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
    keep, again = create_selective_checkpoint_contexts(_policy)
    return keep, _both(again)


@contextmanager
def _both(inner: AbstractContextManager[Any]) -> Iterator[None]:
    with _again(), inner:
        yield


def _policy(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    # An ``out`` overload writes into a tensor that is not its own: nothing to keep.
    owns = getattr(op, "_overloadname", "") != "out"
    kept = owns and str(getattr(op, "overloadpacket", op)) in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
