"""Any device that torch knows, without the name of a vendor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from krzem.run.probe.backend import Array, Doubles, host_memory_bytes

_TYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class TorchBackend:
    """One device."""

    name = f"torch {torch.__version__}"

    def __init__(self, device: str) -> None:
        self.device = device
        self._device = torch.device(device)
        self.on_host = self._device.type == "cpu"
        self.precisions: tuple[str, ...] = (
            ("fp32", "bf16") if self.on_host else ("fp32", "tf32", "bf16", "fp16")
        )
        if not self.on_host:
            torch.accelerator.set_device_index(self._device.index or 0)

    def put(self, values: Doubles, precision: str) -> Array:
        """Rounded on the host, so that every device starts from the same bits."""
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        return torch.from_numpy(np.ascontiguousarray(values)).to(_TYPES[precision]).to(self._device)

    def get(self, array: Array) -> Doubles:
        """As float64 on the host."""
        values: Doubles = array.detach().to("cpu").to(torch.float64).numpy()
        return values

    def digest(self, array: Array) -> str:
        """Of the bytes, on the host."""
        raw = array.detach().to("cpu").contiguous().view(torch.uint8).numpy()
        return hashlib.sha256(raw.tobytes()).hexdigest()

    def wait(self) -> None:
        """Until the device is idle."""
        if not self.on_host:
            torch.accelerator.synchronize()

    def operators(self) -> dict[str, Callable[..., Array]]:
        """torch's own."""
        return {
            "matmul": torch.matmul,
            "softmax": lambda x: torch.softmax(x, -1),
            "rms_norm": lambda x: functional.rms_norm(x, x.shape[-1:], eps=1e-6),
            "silu": functional.silu,
            "log_sum_exp": lambda x: torch.logsumexp(x, -1),
            "sum": lambda x: x.sum(-1),
            "attention": lambda q, k, v: functional.scaled_dot_product_attention(
                q[None], k[None], v[None], is_causal=True
            )[0],
        }

    def scale_into(self, target: Array, source: Array) -> None:
        """With an output, so that no memory is asked for."""
        torch.mul(source, 1.5, out=target)

    def memory_bytes(self) -> float | None:
        """Of the device where torch can say, of the host for processors."""
        if self.on_host:
            return host_memory_bytes()
        module = getattr(torch, self._device.type)
        return float(module.mem_get_info(self._device)[1])
