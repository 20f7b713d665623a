"""Property tests run without a deadline, and one small plan that many tests look at."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("krzem", deadline=None)
settings.load_profile("krzem")


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


def say(*arguments: str) -> Said:
    """Run the command line in this process; an exception that escapes it fails the test."""
    from krzem.cli.main import run

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    return Said(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def krzem() -> Callable[..., Said]:
    return say


@pytest.fixture(scope="session")
def small() -> Any:
    """A plan of a small model on sixteen devices, as the Python API gives it."""
    from krzem.api import plan

    return plan(
        "qwen3-0.6b", on="h100:16", tokens="36T", global_batch=64, start="2027-01-01",
        deadline="900d", budget="$3M", date="2026-11-01",
    )  # fmt: skip


@pytest.fixture(scope="session")
def small_document(small: Any) -> dict[str, Any]:
    document: dict[str, Any] = small.as_dict()
    return document
