"""What decides the time of one micro-batch on one device: the cell of a layout.

Hundreds of thousands of layouts share a few hundred cells, because pipeline depth, interleaving,
schedule and ZeRO do not change what one layer costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Array = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Arrays ``[U]`` (or floats) of what layer times depend on."""

    tp: Array
    cp: Array
    ep: Array
    etp: Array
    micro_batch: Array
    sequence_parallel: Array
    """1 or 0."""
    ring: Array
    """1 where context parallelism passes keys around a ring, else 0."""
    gather: Array
    """1 where it gathers all keys first, else 0 (neither: all-to-all)."""
