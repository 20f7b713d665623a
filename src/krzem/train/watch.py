"""Watches a run: numbers that are none, spikes, idle experts; what a step is spent on."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from krzem.errors import RunError
from krzem.train.device import synchronize
from krzem.train.durable import storing
from krzem.train.engine import StepResult
from krzem.train.parallel.held import Held


@dataclass(slots=True)
class Watch:
    """Looks at each step; keeps the last losses for comparison."""

    span: int = 64
    """Steps that a loss is compared with."""
    factor: float = 8.0
    """Median absolute deviations above the median from which a loss is a spike."""
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    def spike(self, step: int, loss: float) -> str:
        """One sentence where ``loss`` stands out from the last ones; nothing where it does not."""
        sentence = self._judged(step, loss)
        self._losses.append(loss)
        return sentence

    def _judged(self, step: int, loss: float) -> str:
        if len(self._losses) < self.span // 4:
            return ""
        middle = statistics.median(self._losses)
        spread = statistics.median(abs(x - middle) for x in self._losses)
        limit = middle + self.factor * max(spread, 0.01 * abs(middle))
        if loss <= limit:
            return ""
        return (
            f"step {step}: loss {loss:.4f} is a spike: the median of the last "
            f"{len(self._losses)} is {middle:.4f}"
        )


def is_finite(result: StepResult) -> bool:
    """Whether the losses and the gradient norm are numbers."""
    return all(map(math.isfinite, [*result.losses.values(), result.gradient_norm]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """What on one rank is no number, as names of parameters."""

    parameters: tuple[str, ...]
    own_loss: bool
    """The loss of this rank's own tokens."""
    gradients: tuple[str, ...]
    """After they were summed over ranks."""

    @property
    def distance(self) -> int:
        """From the cause: parameters break losses, and sums carry these to all ranks."""
        return 0 if self.parameters else 1 if self.own_loss else 2 if self.gradients else 3


def broken(held: Sequence[Held], *, own_loss: bool) -> Broken:
    """What is no number among this rank's parameters and gradients."""
    return Broken(
        parameters=tuple(h.name for h in held if _is_broken(h.part)),
        own_loss=own_loss,
        gradients=tuple(h.name for h in held if h.grad is not None and _is_broken(h.grad)),
    )


def blame(ranks: Sequence[Broken]) -> str:
    """Where it began: the parameter or gradient, and the rank."""
    rank, found = min(enumerate(ranks), key=lambda item: item[1].distance)
    names = found.parameters or found.gradients
    what = "the parameter" if found.parameters else "the gradient of"
    return f"first in {what} {names[0]} on rank {rank}" if names else "no gradient is to blame"


def _is_broken(values: Tensor) -> bool:
    return not bool(values.isfinite().all().item())


IDLE_SHARE = 0.01
"""Part of an even share of the choices below which an expert counts as idle."""


COLLAPSED = 0.5
"""Share of idle experts from which a router counts as collapsed."""


@dataclass(slots=True)
class CollapseWatch:
    """Adds up what the experts of each router got, to be judged every ``span`` steps."""

    span: int = 32
    """Steps that are judged together."""
    _steps: int = 0
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _collapsed: set[str] = field(default_factory=set)

    def add(self, loads: Mapping[str, Tensor]) -> None:
        """Take in a step's choices per expert of each router, over the global batch."""
        for name, load in loads.items():
            before = self._sums.get(name)
            self._sums[name] = load.float() if before is None else before + load
        self._steps += 1

    @property
    def due(self) -> bool:
        """Whether ``span`` steps have been seen since the last judgement."""
        return self._steps >= self.span

    def judge(self, step: int) -> list[tuple[str, str]]:
        """Events as kind and sentence, of the steps since the last judgement; ``step`` is the last.

        A router is reported when it collapses and when it has recovered, not in between.
        """
        found = [self._judged(step, name, total) for name, total in self._sums.items()]
        self._steps, self._sums = 0, {}
        return [event for event in found if event is not None]

    def _judged(self, step: int, name: str, total: Tensor) -> tuple[str, str] | None:
        shares = total / total.mean().clamp(min=1e-9)
        idle, peak = torch.stack([(shares < IDLE_SHARE).float().mean(), shares.max()]).tolist()
        collapsed, before = idle >= COLLAPSED, name in self._collapsed
        if collapsed == before:
            return None
        where = f"step {step}: router {name}"
        if not collapsed:
            self._collapsed.remove(name)
            return "recovered", f"{where} has recovered: {1 - idle:.0%} of its experts get tokens"
        self._collapsed.add(name)
        return "warning", (
            f"{where} has collapsed: in the last {self.span} steps {idle:.0%} of its experts got "
            f"less than {IDLE_SHARE:.0%} of an even share, the fullest {peak:.1f} times that share"
        )


def again_sentence(step: int, result: StepResult) -> str:
    """That a step was taken again, and what would have spared it."""
    return (
        f"step {step}: {result.beyond:,} rows went beyond train.capacity, so the step was taken "
        f"again with exact dispatch; a capacity of {result.needed:.2f} would have held them"
    )


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
