"""One published measurement, read as a case that the cost model can be asked."""

from __future__ import annotations

from dataclasses import dataclass, field

from krzem.hardware.device import Device
from krzem.layout.layout import Layout
from krzem.layout.precision import Precision
from krzem.model.architecture import Architecture


class UnusableRowError(Exception):
    """A row that cannot be asked; the text is the reason, the same for rows alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row of a table of runs, as far as prediction needs it."""

    id: str
    source: str
    family: str
    date: float
    """Year with fraction."""
    architecture: Architecture
    sequence: int
    device: Device
    devices: int
    devices_per_node: int | None
    layout: Layout
    global_batch: float
    precision: Precision
    engine: str
    recompute_known: bool
    traits: frozenset[str]
    """What notes say beyond columns: ``ep-overlap``, ``cuda-graph``, ``no-overlap``, …"""
    seconds: float | None
    """Measured seconds per step (converted from whatever the row publishes)."""
    network_bytes_per_s: float | None = None
    """Network per device and direction, where the row says more than the catalogue."""
    measured_by: str
    """The column that ``seconds`` comes from."""
    peak_memory_bytes: float | None
    memory_kind: str
    """What the memory figure counts: ``allocated`` (tensors), ``reserved`` or ``shown``."""
    guesses: tuple[str, ...] = field(default=())
    """What the row does not say and was assumed."""
