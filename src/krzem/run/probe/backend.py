"""What does the arithmetic of a probe: torch on any device, or numpy where torch is not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = Any
"""A numpy array or a torch tensor."""
Doubles = NDArray[np.float64]


class Backend(Protocol):
    """Arrays of one device."""

    name: str
    device: str
    """cpu, cuda:0, npu:3 …"""
    precisions: tuple[str, ...]
    """Those whose products are worth measuring here: fp32, tf32, bf16, fp16."""

    def put(self, values: Doubles, precision: str) -> Array:
        """``values`` rounded to ``precision``, on the device."""

    def get(self, array: Array) -> Doubles:
        """Values as float64 on the host."""

    def digest(self, array: Array) -> str:
        """Hash of the bits."""

    def wait(self) -> None:
        """Until the device has done all that was asked of it."""

    def operators(self) -> dict[str, Callable[..., Array]]:
        """The device's own matmul, softmax, rms_norm, silu, log_sum_exp, sum and attention."""

    def scale_into(self, target: Array, source: Array) -> None:
        """``target = 1.5 * source``, in place."""

    def memory_bytes(self) -> float | None:
        """Memory of the device."""


class NumpyBackend:
    """The host's processors through numpy."""

    name = "numpy"
    device = "cpu"
    precisions: tuple[str, ...] = ("fp32", "fp64")
    _TYPES = {"fp32": np.float32, "fp64": np.float64}  # noqa: RUF012

    def put(self, values: Doubles, precision: str) -> Array:
        """Rounded to float32 or float64."""
        return values.astype(self._TYPES[precision])

    def get(self, array: Array) -> Doubles:
        """As float64."""
        return np.asarray(array, dtype=np.float64)

    def digest(self, array: Array) -> str:
        """Of the array's bytes."""
        return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()

    def wait(self) -> None:
        """numpy waits by itself."""

    def operators(self) -> dict[str, Callable[..., Array]]:
        """Written with numpy in the precision of the input."""
        return {
            "matmul": np.matmul,
            "softmax": _softmax,
            "rms_norm": lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(1e-6)),
            "silu": lambda x: x / (1 + np.exp(-x)),
            "log_sum_exp": _log_sum_exp,
            "sum": lambda x: x.sum(-1),
            "attention": _attention,
        }

    def scale_into(self, target: Array, source: Array) -> None:
        """With an output, so that no memory is asked for."""
        np.multiply(source, 1.5, out=target)

    def memory_bytes(self) -> float | None:
        """Memory of the host."""
        return host_memory_bytes()


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _log_sum_exp(x: Array) -> Array:
    top = x.max(-1, keepdims=True)
    return np.log(np.exp(x - top).sum(-1)) + top[..., 0]


def _attention(q: Array, k: Array, v: Array) -> Array:
    """Causal attention; q, k, v [heads, tokens, channels]."""
    scores = q @ np.swapaxes(k, -1, -2) / q.dtype.type(np.sqrt(q.shape[-1]))
    tokens = q.shape[-2]
    mask = np.triu(np.ones((tokens, tokens), dtype=bool), 1)
    return _softmax(np.where(mask, scores.dtype.type(-1e30), scores)) @ v


def host_memory_bytes() -> float:
    """Memory of this host."""
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def torch_or_none() -> Any:
    """The torch module, or None where it is not installed or cannot be imported."""
    try:
        import torch
    except Exception:  # a half-installed vendor plug-in fails in ways of its own
        return None
    return torch


def accelerators() -> int:
    """Accelerators that torch sees; 0 without torch or without any."""
    torch = torch_or_none()
    if torch is None or not torch.accelerator.is_available():
        return 0
    return int(torch.accelerator.device_count())
