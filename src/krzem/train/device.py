"""The one module that knows devices by vendor: which there is, its libraries, its memory.

``torch.accelerator`` covers devices with a vendor's back end; on a machine without one its calls
raise, so the CPU has a branch of its own.  CUDA and ROCm are both ``cuda`` to torch.  Ascend needs
``torch_npu``.  A pretend device (a test's stand-in registered under any name) takes the general
path, which is what makes it a test of that path.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import platform
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from krzem.errors import InputError

COLLECTIVES = {"cuda": "NCCL or RCCL", "npu": "HCCL", "xpu": "XCCL", "cpu": "Gloo"}
"""The collective library by device type, for messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """What the run computes on."""

    device: torch.device
    name: str
    """As the vendor's driver says."""
    reason: str
    """Why this device and no other."""
    memory_bytes: int | None
    """None where it is not known."""

    @property
    def is_cpu(self) -> bool:
        """Whether there is no accelerator."""
        return self.device.type == "cpu"


def find_device(wanted: str = "auto", local_rank: int = 0) -> DeviceInfo:
    """The device of this process: ``auto``, or a type such as cpu, cuda, npu.

    Raises:
        InputError: the type asked for is not usable here.
    """
    if wanted == "npu":
        load_ascend()
    present = accelerator_type()
    if wanted == "cpu" or (wanted == "auto" and present is None):
        why = "asked for" if wanted == "cpu" else "no accelerator is visible to torch"
        return DeviceInfo(
            device=torch.device("cpu"), name=_cpu_name(), reason=why, memory_bytes=_host_memory()
        )
    if present is None or wanted not in ("auto", present):
        raise InputError(
            f"device {wanted!r} was asked for, but torch sees {present or 'no accelerator'}; "
            'use device = "auto" or "cpu", or install the vendor\'s torch build'
        )
    device = torch.device(present, local_rank % torch.accelerator.device_count())
    torch.accelerator.set_device_index(device.index)
    why = "asked for" if wanted != "auto" else "the accelerator that torch sees"
    return DeviceInfo(
        device=device, name=_name(device), reason=why, memory_bytes=_device_memory(device)
    )


def accelerator_type() -> str | None:
    """The type of the accelerator present, None on a machine with a CPU alone."""
    if not torch.accelerator.is_available():
        return None
    current = torch.accelerator.current_accelerator()
    return None if current is None else current.type


def has_float32(device: torch.device) -> bool:
    """Whether products of float32 keep float32, and not the ten bits of TF32 or fewer.

    Measured: a product with the unit matrix gives its operand back, unless that is rounded first.
    Some vendors' libraries do so by default, and one device has no other products at all.
    """
    fine = 1.0 + 2.0 ** -torch.arange(12, 20, dtype=torch.float32)
    x = fine.repeat(128, 16).to(device)
    found: bool = bool((x @ torch.eye(128, device=device) == x).all())
    return found


def load_ascend() -> None:
    """Import ``torch_npu``, which registers the device type npu.

    Raises:
        InputError: it is missing, or half installed.
    """
    if importlib.util.find_spec("torch_npu") is None:
        raise InputError(
            "device 'npu' needs torch_npu: install krzem[npu] beside CANN, in the version that "
            f"matches torch {torch.__version__}"
        )
    try:
        importlib.import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"torch_npu is installed but does not load ({error}); it needs CANN: run its "
            "set_env.sh, or remove torch_npu"
        ) from error


def start_ranks(info: DeviceInfo, timeout_seconds: float = 600) -> None:
    """Join the process group that torchrun or Slurm describes, with the device's own library.

    One process without a launcher needs none.

    Raises:
        InputError: what the launcher states is incomplete, or the first rank does not answer.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    backend = dist.get_default_backend_for_device(info.device)
    bound = None if info.is_cpu or backend == "gloo" else info.device
    timeout = timedelta(seconds=timeout_seconds)
    try:
        dist.init_process_group(backend, timeout=timeout, device_id=bound)
    except (ValueError, dist.DistError) as error:
        said = str(error).partition("\n")[0].rpartition("rendezvous: ")[2]
        raise InputError(
            f"this rank cannot join the {os.environ['WORLD_SIZE']} that WORLD_SIZE states ({said}):"
            " start all with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT on each"
            " as it would"
        ) from error


def keep_freed_memory() -> None:
    """Let glibc keep what torch frees for the next step: to the system and back costs page faults.

    A step frees and asks for the same arrays; other C libraries are left as they are.
    """
    map_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(map_threshold, 2**28)
    mallopt(trim_threshold, 2**30)


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done all work given to it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak_memory(device: torch.device) -> int | None:
    """Most bytes allocated on ``device`` since the start; on the CPU the process's peak."""
    if device.type == "cpu":
        return _process_peak()
    try:
        return int(torch.accelerator.max_memory_allocated(device))
    except (RuntimeError, AttributeError, NotImplementedError):
        return None


def has_float8(device: torch.device) -> bool:
    """Whether ``device`` multiplies float8 matrices with block scales, as far as torch can say.

    These are NVIDIA's since Hopper.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    major, minor = torch.get_device_module(device).get_device_capability(device)
    return (major, minor) >= (9, 0)


def has_flash(device: torch.device) -> bool:
    """Whether ``device`` has torch's FlashAttention over documents of any length and windows.

    These are NVIDIA's since Ampere (``sdp_utils.cpp``); what AMD's kernels do with windows is not
    known here.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.get_device_module(device).get_device_capability(device) >= (8, 0)


def check_precision(device: torch.device, precision: str) -> None:
    """Refuse float8 where the device has no such products.

    A processor computes it by restored values, so that a recipe can be tried without a device.

    Raises:
        InputError: the device does not have it.
    """
    if precision == "fp8-block" and device.type != "cpu" and not has_float8(device):
        raise InputError(
            f'goal.precision = "fp8-block" needs float8 products with block scales (NVIDIA Hopper '
            f"or later); {_name(device)} has none that torch can call: use bf16"
        )


def _name(device: torch.device) -> str:
    module = torch.get_device_module(device)
    named = getattr(module, "get_device_name", None)
    return device.type if named is None else str(named(device.index))


def _device_memory(device: torch.device) -> int | None:
    properties = getattr(torch.get_device_module(device), "get_device_properties", None)
    total = getattr(properties(device.index), "total_memory", None) if properties else None
    return None if total is None else int(total)


def _cpu_name() -> str:
    """The processor's name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _host_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _process_peak() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
