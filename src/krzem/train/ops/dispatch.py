"""Rows to the ranks that hold their experts, and back."""

from __future__ import annotations

from torch import Tensor

from krzem.train.ops.registry import operator
from krzem.train.parallel.collectives import Axis, exchange_rows


@operator
def dispatch(rows: Tensor, axis: Axis, send: list[int], receive: list[int]) -> Tensor:
    """All-to-all of ``rows [R, D]``, ``send[i]`` to rank i; the way back swaps the two lists."""
    return exchange_rows(rows, axis, send, receive)
