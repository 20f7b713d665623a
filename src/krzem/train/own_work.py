"""How long this rank works in a step, waiting for other ranks left out: shows a slow rank.

Forward and backward wait for others wherever a collective is.  On processors the time the process
was running says what was its own.  A device's clock does not tell waiting from working, so there
only what waits for nobody counts: loading the data and updating the parameters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from krzem.train.device import synchronize


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
