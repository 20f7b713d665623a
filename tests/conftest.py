"""One thread, property tests without a deadline, and one small plan that many tests look at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings
from tests.command_line import Said, say

# Arrays are small: more threads would wait for each other, and for minutes on a loaded machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Reports fill the terminal: here there is none.
os.environ.pop("COLUMNS", None)

settings.register_profile("krzem", deadline=None)
settings.load_profile("krzem")


FIRST = (
    "test_witness_layouts", "test_equivalence", "test_pairs", "test_pages_browser", "test_resume",
    "test_run_slurm", "test_run_launchers", "test_run_sites", "test_real_parsers",
    "test_fleet_inverse", "test_outlook_command",
)  # fmt: skip
"""Files that take longest: begun first, no process is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests are left out of the daily suite, long files come first."""
    items.sort(key=lambda item: item.path.stem not in FIRST)
    if not os.environ.get("KRZEM_WHOLE_MATRIX"):
        skip = pytest.mark.skip(reason="long: set KRZEM_WHOLE_MATRIX=1 to run it")
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Commands that run inside the tests' process leave no variable behind for other tests."""
    before = {k: v for k, v in os.environ.items() if k.startswith("KRZEM_")}
    yield
    for name in [k for k in os.environ if k.startswith("KRZEM_") and k not in before]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def krzem() -> Callable[..., Said]:
    return say


@pytest.fixture(scope="session")
def small() -> Any:
    """A plan of a small model on sixteen devices, as the Python API gives it."""
    from krzem.api import plan

    return plan(
        "qwen3-0.6b", on="h100:16", tokens="36T", batch=64, start="2027-01-01",
        deadline="900d", budget="$3M", date="2026-11-01",
    )  # fmt: skip


@pytest.fixture(scope="session")
def small_document(small: Any) -> dict[str, Any]:
    document: dict[str, Any] = small.as_dict()
    return document
