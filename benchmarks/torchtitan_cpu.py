"""torchtitan 0.3.0 on processors: ``python torchtitan_cpu.py --module … --config …``.

It is written for PyTorch's nightlies and for accelerators.  What it lacks on a stable PyTorch and a
processor is given to it here before it is imported, and nothing of its training loop, its sharding,
its log or its checkpoints is touched: a device, a timeout, sums that Gloo has, attention by
PyTorch's own product instead of FlexAttention (whose backward pass no processor has), and a stub of
kernels that are imported but not used.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import torch
import torch._utils
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention.flex_attention import create_block_mask, create_mask


def device() -> None:
    """The processor in place of CUDA, with the questions that are asked of a device."""
    torch._utils._get_available_device_type = lambda: "cpu"
    module = types.ModuleType("processor")
    module.__dict__.update(torch.cpu.__dict__)
    empty = types.SimpleNamespace(name="cpu", total_memory=1 << 34, major=0, minor=0)
    given: dict[str, Any] = {
        "get_device_name": lambda *_: "cpu", "get_device_properties": lambda *_: empty,
        "memory_stats": lambda *_: {}, "reset_peak_memory_stats": lambda *_: None,
        "empty_cache": lambda: None, "max_memory_allocated": lambda *_: 0,
        "memory_allocated": lambda *_: 0, "memory_reserved": lambda *_: 0,
        "max_memory_reserved": lambda *_: 0, "device_count": lambda: 64,
        "get_device_capability": lambda *_: (0, 0), "set_device": lambda *_: None,
        "current_device": lambda: 0, "manual_seed": torch.manual_seed,
        "mem_get_info": lambda *_: (1 << 34, 1 << 34),
    }  # fmt: skip
    module.__dict__.update(given)
    torch._utils._get_device_module = lambda *_: module


class _Stub(types.ModuleType):
    """Any name of a module that is imported and never called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


def missing() -> None:
    """Functions of later releases, and kernels that need Triton."""
    sys.modules["torchtitan.distributed.minimal_async_ep.kernels"] = _Stub("kernels")
    if not hasattr(dist, "set_timeout"):
        dist.set_timeout = lambda timeout, group=None: None
    divided = FSDPModule.set_gradient_divide_factor

    def summed(self: FSDPModule, factor: float) -> None:
        divided(self, factor)
        self.set_force_sum_reduction_for_comms(True)

    FSDPModule.set_gradient_divide_factor = summed


def attention() -> None:
    """FlexAttention's masks as dense ones, its product as PyTorch's."""
    from torchtitan.models.common import attention as module

    def forward(self: Any, q_BLNH: Any, k_BLNH: Any, v_BLNH: Any, *, attention_masks: Any,
                scale: Any = None, enable_gqa: bool = False, **_: Any) -> Any:  # fmt: skip
        q, k, v = (x.transpose(1, 2) for x in (q_BLNH, k_BLNH, v_BLNH))
        mask = create_mask(attention_masks.mask_mod, q.shape[0], 1, q.shape[2], k.shape[2], "cpu")
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa
        ).transpose(1, 2)

    module.FlexAttention.forward = forward
    module.create_attention_mask = lambda *a, **k: create_block_mask(*a, **k)


def main() -> None:
    """Prepare, then torchtitan's own entry point."""
    device()
    missing()
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"),
                        ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0")):  # fmt: skip
        os.environ.setdefault(name, value)
    attention()
    from torchtitan.train import main as train

    train()


if __name__ == "__main__":
    main()
