"""The kernels in C: where they are compiled, and what happens without them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from krzem.train.ops import logit_sums, native, rms_norm, swiglu

needed = pytest.mark.skipif(native.library() is None, reason="no C compiler")
PROGRAM = """
import torch
from krzem.train.ops import native, rms_norm
print(native.library() is not None, rms_norm(torch.ones(2, 8), None, 1e-6).sum().item())
"""


def answer(**variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()[0]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_where_a_compiler_is_the_kernels_are() -> None:
    assert answer() == "True"


@needed
def test_a_library_is_compiled_once_and_taken_again(tmp_path: Path) -> None:
    assert answer(XDG_CACHE_HOME=str(tmp_path)) == "True"
    (built,) = (tmp_path / "krzem" / "native").iterdir()
    before = built.stat().st_mtime_ns
    assert answer(XDG_CACHE_HOME=str(tmp_path)) == "True"
    assert built.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "variables",
    [
        {"KRZEM_NATIVE": "0"},
        {"CC": "no-such-compiler"},
        {"CC": "false"},
        {"XDG_CACHE_HOME": "/dev/null"},
    ],
    ids=["off", "no compiler", "compiler fails", "no cache"],
)
def test_without_kernels_torch_computes(variables: dict[str, str]) -> None:
    assert answer(**variables) == "False"


@needed
@pytest.mark.parametrize("threads", [2, 5])
def test_threads_share_the_rows(threads: int) -> None:
    x, weight = torch.randn(7, 40), torch.randn(40)
    gate, value = (torch.randn(7, 40).requires_grad_() for _ in range(2))
    one = [rms_norm(x, weight, 1e-6), swiglu(gate, value)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        several = [rms_norm(x, weight, 1e-6), swiglu(gate, value)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, several, strict=True))


@needed
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_hidden(bad: float) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(3, 20, dtype=dtype)
        x[1, 7] = bad
        assert not rms_norm(x, None, 1e-6)[1].isfinite().all()
        y = swiglu(x, torch.ones_like(x))
        assert torch.equal(y.isfinite(), x.isfinite())
        loss, _ = logit_sums(x, torch.zeros(len(x), dtype=torch.int64))
        assert loss.isfinite().tolist() == [True, False, True]
