"""Registers the pretend accelerator with torch, under the name ``pretend``.

Importing this builds the extension (half a minute with g++, once) and changes torch for the
process: only workers of tests import it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import types
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.cpp_extension import load

NAME = "pretend"
COLLECTIVES = "pretendccl"


def build() -> Any:
    """The extension, built where it is not yet or where its source changed."""
    folder = Path(tempfile.gettempdir()) / f"krzem-pretend-{os.getuid()}-{torch.__version__}"
    folder.mkdir(exist_ok=True)
    return load(
        "krzem_pretend",
        [str(Path(__file__).with_name("device.cpp"))],
        build_directory=str(folder),
        extra_cflags=["-O0", "-w"],
    )


def register(library: Any) -> None:
    """Make torch know device, module and collective library."""
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(NAME)
    members: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "device_count": library.device_count,
        "current_device": library.current_device,
        "set_device": lambda d: library.set_device(torch.device(NAME, d).index),
        "synchronize": lambda *_: None,
        "manual_seed": lambda _: None,
        "manual_seed_all": lambda _: None,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "get_amp_supported_dtype": lambda: [torch.bfloat16],
        "Stream": torch.Stream,
        "Event": torch.Event,
        "current_stream": lambda *_: torch.accelerator.current_stream(),
        "stream": lambda _: contextlib.nullcontext(),
    }
    for name, value in members.items():
        setattr(module, name, value)
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()

    def make(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
        inner = dist.ProcessGroupGloo(store, rank, size, timeout=timeout)
        return library.Collectives(inner, rank, size)

    dist.Backend.register_backend(COLLECTIVES, make, devices=[NAME])


register(build())
