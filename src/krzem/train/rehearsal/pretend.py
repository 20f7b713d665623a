"""Tensors on a device that this machine does not have, and what stands in for its runtime.

Everything that a rehearsal replaces is here, each with its reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.fsdp._fully_shard as fully_shard
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.testing._internal.distributed.fake_pg import FakeStore

import krzem.train.ops.cuda as cuda
import krzem.train.parallel.mesh as mesh

_HOST = torch.device("cpu", 7)
"""What C++ is told of the device: a processor's number that nothing else has, so that autograd and
device guards ask for no driver, and a device that C++ hands on is known again."""
_READ = torch.ops.aten._local_scalar_dense.default
_DEVICE = torch.ops.prim.device.default
_ADDED_APART, _ADDED = torch.ops.aten.index_add.default, torch.ops.aten.index_add_.default
_FLASH_WIDTH = 256
"""Widest head of FlashAttention-2 and of cuDNN's training kernels."""


class PretendMode(FakeTensorMode):
    """Fake tensors on ``device``; every operator that a program calls is told to ``seen``.

    Python sees ``device`` on tensors; C++, which would ask the device's driver for streams and
    guards, sees a processor.
    """

    def __init__(self, device: torch.device, seen: Callable[[Any, Any, Any, Any], None]) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._device, self._seen, self._depth = device, seen, 0

    def dispatch(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run ``func`` on shapes, and tell of it unless another operator is made of it."""
        if func is _DEVICE and not self.in_kernel_invocation:
            told: torch.device = args[0].fake_device
            return _HOST if told == self._device else told
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == _HOST:
            kwargs["device"] = self._device
        if func is _READ and args[0].constant is None:
            return self._read(args[0])
        if func is _ADDED_APART:
            # The gradient of index_select adds in place, except to subclasses of tensors.
            func = _ADDED
        self._depth += 1
        try:
            out = super().dispatch(func, types, args, kwargs)
        finally:
            self._depth -= 1
        if not self._depth and out is not NotImplemented:
            self._seen(func, args, kwargs, out)
        return out

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Operators inside are not told of: they are about shapes, and no device runs them."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def _read(self, x: Tensor) -> Any:
        """A number that the host asks of the device: there is none, so it is one."""
        self._seen(_READ, (x,), {}, None)
        return bool(1) if x.dtype is torch.bool else (1.0 if x.dtype.is_floating_point else 1)

    def read_all(self, x: Tensor) -> Any:
        """As ``tolist``, which waits for the device once for all its numbers."""
        self._seen(_READ, (x,), {}, None)
        with unset_fake_temporarily():
            return torch.ones(x.shape, dtype=x.dtype).tolist()


def nullcontext_of(*_: Any, **__: Any) -> Any:
    """A context that does nothing, whatever it is asked for."""
    return nullcontext()


class _Stream(torch.cpu.Stream):
    """A stream that does nothing; FSDP over sharding groups insists on an event of it."""

    def record_event(self) -> Any:
        """One that has always happened."""
        return torch.cpu.Event()


class _Runtime:
    """What torch asks of a device's module: streams and events, all of which do nothing."""

    Stream = _Stream

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def current_device(self) -> int:
        """The only device of the rank."""
        return 0


@contextmanager
def pretend_device(mode: PretendMode) -> Iterator[None]:
    """Below, ``mode`` is active, and what needs a device's runtime or its values is stood in for.

    * FSDP asks the device's module for streams: it gets ones that do nothing.
    * A pipeline saves the device's random state before it starts: there is none.
    * A mesh computes coordinates with tensors: those have values and are made outside the mode.
    * Attention, norms and the gradient of ``silu`` choose their kernels by device in C++: the
      kernels that a NVIDIA device gets are named here.
    """
    runtime = _Runtime()

    def handle(*_: Any) -> _Runtime:
        return runtime

    with ExitStack() as stack:
        for module in (torch.distributed.device_mesh, *vars(fully_shard).values()):
            if hasattr(module, "_get_device_handle") and hasattr(module, "__file__"):
                stack.enter_context(mock.patch.object(module, "_get_device_handle", handle))
        stack.enter_context(mock.patch("torch.random.fork_rng", nullcontext_of))
        made = outside(vars(mesh)["init_device_mesh"])
        stack.enter_context(mock.patch.object(mesh, "init_device_mesh", made))
        for name in _MESH_METHODS & vars(DeviceMesh).keys():
            method = outside(vars(DeviceMesh)[name])
            stack.enter_context(mock.patch.object(DeviceMesh, name, method))
        shapes = ShardingPropagator._propagate_tensor_meta_non_cached

        def unseen(*args: Any, **kwargs: Any) -> Any:
            with mode.unseen():
                return shapes(*args, **kwargs)

        stack.enter_context(mock.patch.object(ShardingPropagator, shapes.__name__, unseen))
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", lambda x: mode.read_all(x)))
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attention_kernel))
        stack.enter_context(mock.patch.object(F, "rms_norm", fused_norm))
        stack.enter_context(mock.patch.object(F, "silu", fused_silu))
        for known in ("has_float8", "has_flash"):
            stack.enter_context(mock.patch.object(cuda, known, _is_recent))
        stack.enter_context(mode)
        yield


_MESH_METHODS = {
    "__init__",
    "__getitem__",
    "_compute_coordinates_from_mesh",
    "get_all_groups",
    "get_coordinate",
    "get_local_rank",
    "_get_mesh_tensor_from_full_mesh",
}


def _is_recent(_: torch.device) -> bool:
    """The device is taken for one of Hopper or later: whether it is, is asked before."""
    return True


def outside(given: Any) -> Any:
    """A function, or a method as its class holds it, run on real tensors."""
    function = given.__func__ if isinstance(given, staticmethod) else given

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return staticmethod(run) if isinstance(given, staticmethod) else run


@contextmanager
def pretend_ranks(rank: int, ranks: int) -> Iterator[None]:
    """This process as ``rank`` of ``ranks`` that do not exist; nothing is sent."""
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def attention_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` by the kernel that torch takes on NVIDIA devices.

    FlashAttention without a mask and up to 256 channels a head, the memory-efficient kernel with a
    mask; heads of keys are repeated where queries have more (torch/nn/functional.py and
    ATen/native/transformers/cuda/sdp_utils.cpp of 2.13).
    """
    if enable_gqa and key.shape[1] != query.shape[1] and attn_mask is not None:
        times = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(times, 1) for t in (key, value))
    if attn_mask is None and max(query.shape[-1], value.shape[-1]) <= _FLASH_WIDTH:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        out: Tensor = flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
        return out
    bias = None
    if attn_mask is not None:
        bias = attn_mask
        if bias.dtype is torch.bool:
            bias = torch.zeros_like(bias, dtype=query.dtype)
        bias = bias.expand(*query.shape[:3], key.shape[2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    needs = torch.is_grad_enabled() and query.requires_grad
    found: Tensor = efficient(query, key, value, bias, needs, dropout_p, is_causal, scale=scale)[0]
    return found


def fused_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """``rms_norm`` as NVIDIA devices have it: one kernel that keeps its input and a number a row
    (``aten::_fused_rms_norm``)."""
    out: Tensor = _FusedNorm.apply(x, weight)
    return out


class _FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight)


def fused_silu(x: Tensor, inplace: bool = False) -> Tensor:
    """``silu``, whose gradient is one kernel on devices; on others torch puts it together from six
    operators (``math_silu_backward``)."""
    assert not inplace
    out: Tensor = _FusedSilu.apply(x)
    return out


class _FusedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out: Tensor = torch.ops.aten.silu.default(x)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * x  # Reads and writes what the kernel does.
