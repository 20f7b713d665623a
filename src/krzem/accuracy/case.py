"""One published measurement, read as a case that the cost model can be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from krzem.hardware.catalogue import Device
from krzem.layout.layout import Layout, Precision, StateBytes
from krzem.model.architecture import Architecture


class UnusableRowError(Exception):
    """A row that cannot be asked; the text is the reason, the same for rows alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row of a table of runs, as far as prediction needs it."""

    id: str
    source: str
    organisation: str = "?"
    """Who ran it, or whose code it was; sister repositories and their submitters are one."""
    by_maker: bool = False
    """Whether the chip's maker published it."""
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
    """The engine that ran, by its usual name; ``guesses`` say where the row does not name it."""
    named_engine: str = ""
    """The engine as the row names it; empty where it names none."""
    engine_version: str = ""
    switches: Mapping[str, str] = field(default_factory=dict)
    """What the row states, by switch: ``dispatcher``, ``cuda-graphs``, …"""
    finetune: str = ""
    """``none``, ``full``, ``lora``, ``qlora``; empty where the row does not say."""
    lora_rank: int | None = None
    optimizer: str = ""
    states: StateBytes | None = None
    """Bytes per parameter, as stated; None where the row does not say."""
    step_in_backward: bool = False
    """Whether the optimizer steps inside the backward pass."""
    offload: bool = False
    """Whether optimizer states wait in host memory."""
    ran: bool = True
    """False where the row says that it ran out of memory."""
    recompute_known: bool
    alternatives: tuple[tuple[Layout, float], ...] = ()
    """Other layouts in which it may have run, and how likely each of them is."""
    recompute_modules: tuple[str, ...] = ()
    """Modules that the row says are recomputed, by the engine's names."""
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
    unknown: tuple[str, ...] = field(default=())
    """What else it leaves open that its price depends on: switches by name, ``engine``, …"""
