"""A part of a large matrix for every day, all of it where ``KRZEM_WHOLE_MATRIX`` is set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")
WHOLE = bool(os.environ.get("KRZEM_WHOLE_MATRIX"))


def some(items: Sequence[Item], every: int, first: int = 0) -> list[Item]:
    """Every ``every``-th item from ``first`` on."""
    return list(items) if WHOLE else list(items[first % every :: every])
