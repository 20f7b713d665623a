"""What this rank does in a step: how long it works, and on request all of it, by torch's profiler.

Waiting for other ranks is left out of its own work, which shows a slow rank.

Forward and backward wait for others wherever a collective is.  On processors the time the process
was running says what was its own.  A device's clock does not tell waiting from working, so there
only what waits for nobody counts: loading the data and updating the parameters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from krzem.errors import RunError
from krzem.train.device import synchronize
from krzem.train.durable import storing


class OwnWork:
    """The own work of one step, added up part by part."""

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self._device = device
        self._on_processor = device.type == "cpu"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A part that waits for nobody; the device is idle where it begins."""
        clock = time.process_time if self._on_processor else time.perf_counter
        begun = clock()
        yield
        synchronize(self._device)
        self.seconds += clock() - begun

    @contextmanager
    def together(self) -> Iterator[None]:
        """A part with collectives in it."""
        begun = time.process_time()
        yield
        if self._on_processor:
            self.seconds += time.process_time() - begun


class Recorder:
    """Traces steps ``first`` to ``after`` (not included) into the folder ``profile`` of the run.

    A trace opens in ui.perfetto.dev; a memory snapshot (``cuda`` alone) in pytorch.org/memory_viz.

    Raises:
        RunError: a snapshot of a device that torch keeps no history of.
    """

    def __init__(
        self, folder: Path, device: torch.device, steps: tuple[int, int], *, memory: bool
    ) -> None:
        if memory and device.type != "cuda":
            raise RunError(
                f"metrics.memory_snapshot = true needs a cuda device, and this run's is {device}: "
                "leave it out (`krzem train --rehearse` shows memory over a step without one)"
            )
        self.folder, self.memory = folder / "profile", memory
        self.first, self.after = steps
        self._device = device
        self._running: Any = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """One step, recorded where it is among those asked for."""
        if number == self.first:
            self._begin()
        yield
        if number == self.after - 1:
            self.finish()

    def _begin(self) -> None:
        kinds = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        self._running = profile(activities=kinds, record_shapes=True)
        self._running.start()
        if self.memory:
            torch.cuda.memory._record_memory_history()

    def finish(self) -> None:
        """Write what was recorded, if anything is."""
        if self._running is None:
            return
        synchronize(self._device)
        running, self._running = self._running, None
        running.stop()
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            running.export_chrome_trace(str(self.folder / f"step-{self.first}.json"))
            if self.memory:
                path = self.folder / f"memory-{self.first}.pickle"
                torch.cuda.memory._dump_snapshot(str(path))
                torch.cuda.memory._record_memory_history(enabled=None)
