"""Kernels in C for processors, compiled by the machine's own compiler when first needed.

torch's operators each read and write whole arrays; where several follow one another, that costs
more than the arithmetic.  ``kernels.c`` does a norm, a gated activation or causal attention in one
pass.  A machine without a C compiler, or ``KRZEM_NATIVE=0``, computes the same in torch: everything
here is an option.

The library lies in the user's cache folder under a name made of the source, the compiler and the
processor, so that machines that share a home folder do not take each other's.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

SWITCH = "KRZEM_NATIVE"
"""Environment variable that switches the kernels off when it is 0."""
_FLAGS = (
    *("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-std=gnu11", "-shared", "-fPIC", "-fopenmp"),
)
_KINDS = {"p": ctypes.c_void_p, "n": ctypes.c_ssize_t, "f": ctypes.c_float, "i": ctypes.c_int}
_SIGNATURES = {
    "norm": "pnpppnnfin",
    "norm_gradient": "pnpnppppnnin",
    "gated": "pnpnpnnfin",
    "gated_gradient": "ppnpnppnpnnfin",
    "logits": "ppppnnin",
    "logits_gradient": "ppppnnin",
    "attention": "ppppppp" + "nnnnnn" + "fn",
    "attention_gradient": "ppppppp" + "pp" + "nnnnn" + "fn",
}
"""Arguments of each kernel: p address, n size, f float32, i int."""
_PAIRED = ("attention", "attention_gradient")
"""Kernels that some processors have in bfloat16 as well, named ``pairs_...``."""
_SECONDS = 120
"""Longest wait for the compiler."""


_OFF: ContextVar[bool] = ContextVar("off", default=False)


@contextmanager
def switched_off() -> Iterator[None]:
    """Below, processors compute without the kernels."""
    token = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(token)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they are switched off or cannot be compiled."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        found = ctypes.CDLL(str(_built(_compiler())))
    except (OSError, subprocess.SubprocessError):
        return None
    signatures = dict(_SIGNATURES)
    if found.krzem_pairs():
        signatures |= {f"pairs_{name}": _SIGNATURES[name] for name in _PAIRED}
    for name, kinds in signatures.items():
        function = getattr(found, f"krzem_{name}")
        function.argtypes = [_KINDS[kind] for kind in kinds]
        function.restype = ctypes.c_int if "attention" in name else None
    return found


def multiplies_pairs() -> bool:
    """Whether this processor multiplies pairs of bfloat16, so that attention has kernels for it."""
    kernels = library()
    return kernels is not None and bool(kernels.krzem_pairs())


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels are there and take these arrays: all of one type that they know."""
    first = tensors[0]
    known = first.dtype in (torch.float32, torch.bfloat16) and first.numel() > 0
    alike = all(t.dtype is first.dtype and t.device.type == "cpu" for t in tensors)
    return known and alike and not (_OFF.get() or library() is None)


def with_rows(x: Tensor) -> Tensor:
    """``x`` with a contiguous last axis, which is what kernels want of an array."""
    return x if x.stride(-1) == 1 else x.contiguous()


def narrow(x: Tensor) -> int:
    """Whether ``x`` is bfloat16, as kernels ask it."""
    return int(x.dtype is torch.bfloat16)


def call(name: str, *arguments: Tensor | ctypes.Array[ctypes.c_ssize_t] | float | None) -> None:
    """Call a kernel with tensors as addresses; it divides its work over torch's threads.

    Raises:
        MemoryError: the kernel got no memory to work in.
    """
    given = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    if getattr(library(), f"krzem_{name}")(*given, torch.get_num_threads()):
        raise MemoryError(f"no memory for the work arrays of the kernel {name!r}")


def _compiler() -> list[str]:
    """The C compiler that ``CC`` names, or the system's.

    Raises:
        OSError: there is none.
    """
    named = shlex.split(os.environ.get("CC", ""))
    found = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if not named and found is None:
        raise OSError("no C compiler")
    return named or [str(found)]


def _built(compiler: list[str]) -> Path:
    """Where the compiled library is; compiled now unless it is there.

    Raises:
        OSError: it cannot be written.
        SubprocessError: the compiler failed.
    """
    source = resources.files(__package__).joinpath("kernels.c").read_bytes()
    version = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=60)
    parts = (source, version.stdout, " ".join([*compiler, *_FLAGS]).encode(), _processor())
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:20] + ".so"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "krzem" / "native"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise OSError(f"{folder} belongs to another user")
    target = folder / name
    if not target.exists():
        # Several processes may get here at once: each writes its own file, the last one stays.
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / name
            written = [*compiler, *_FLAGS, "-x", "c", "-", "-o", str(made), "-lm"]
            subprocess.run(written, input=source, capture_output=True, check=True, timeout=_SECONDS)
            made.replace(target)
    return target


def _processor() -> bytes:
    """What tells this processor's instructions from another's."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return repr(platform.uname()).encode()
    kinds = (b"model name", b"flags", b"Features", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(kinds)}))
