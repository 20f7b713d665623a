"""Witnesses that many tests look at; nothing here runs without torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest

collect_ignore_glob = [] if importlib.util.find_spec("torch") is not None else ["*"]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def recorded() -> dict[tuple[str, str], tuple[Any, Any]]:
    """(model, arithmetic) -> (witness, model under it), made when first asked for.

    The arithmetic is one type, or ``both``: what ``krzem run`` records.
    """
    from tests.witness.models import QUICK, batches, subject, with_documents

    from krzem.witness.recording import record

    class Kept(dict[tuple[str, str], tuple[Any, Any]]):
        def __missing__(self, key: tuple[str, str]) -> tuple[Any, Any]:
            name, arithmetic = key
            both = arithmetic == "both"
            model = subject(name, "float32" if both else arithmetic)
            also = ("bfloat16",) if both else ()
            found = record(model, with_documents(batches()), settings=QUICK, also=also)
            self[key] = found, model
            return self[key]

    return Kept()
