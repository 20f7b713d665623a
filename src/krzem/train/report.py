"""Where numbers go: a JSON line a step, a line on the screen, TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from krzem.errors import RunError
from krzem.quantity import format_seconds
from krzem.train.durable import storing


class Contract(Protocol):
    """What a controller lets its trainer do; the loop runs as well without one."""

    def beat(self, step: int, phase: str) -> None:
        """Say where this rank is."""

    def stop_requested(self) -> bool:
        """Whether to save and end."""

    def commit_guard(self) -> None:
        """Raise where a newer attempt owns the run."""


class Reporter:
    """Writes ``metrics.jsonl`` and ``events.jsonl`` and prints; on rank 0 alone."""

    def __init__(self, folder: Path, steps: int, *, every: int, tensorboard: bool) -> None:
        self.folder, self.steps, self.every = folder, steps, every
        self.console = Console(stderr=True, highlight=False)
        self._board: Any = _board(folder) if tensorboard else None
        self._begun = time.monotonic()
        self._first: int | None = None
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def step(self, record: Mapping[str, Any]) -> None:
        """One optimiser step."""
        self._first = record["step"] - 1 if self._first is None else self._first
        self._append("metrics.jsonl", record)
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, record["step"])
        last = record["step"] == self.steps
        if self.every and (
            record["step"] % self.every == 0 or last or self._first == 0 == record["step"] - 1
        ):
            self.console.print(self.line(record))

    def line(self, record: Mapping[str, Any]) -> str:
        """The step for people."""
        done = record["step"] - (self._first or 0)
        left = (time.monotonic() - self._begun) / max(done, 1) * (self.steps - record["step"])
        parts = [
            f"step {record['step']:>6}/{self.steps}",
            f"loss {record['loss']:.4f}",
            f"norm {record['grad_norm']:.2f}",
            f"rate {record['rate']:.2e}",
            f"{record['tokens_per_s']:,.0f} tokens/s",
        ]
        if record.get("mfu") is not None:
            parts.append(f"MFU {record['mfu']:.1%}")
        if record.get("memory_bytes"):
            parts.append(f"{record['memory_bytes'] / 2**30:.1f} GiB")
        return "  ".join([*parts, f"{format_seconds(left)} left"])

    def event(self, step: int, kind: str, message: str) -> None:
        """Something that is no ordinary step."""
        self._append("events.jsonl", {"step": step, "kind": kind, "message": message})
        self.console.print(message)

    def value(self, step: int, name: str, value: float) -> None:
        """A measurement beside the steps, such as the held-out loss."""
        self._append("events.jsonl", {"step": step, "kind": name, "value": value})
        if self._board is not None:
            self._board.add_scalar(name, value, step)
        self.console.print(f"step {step:>6}  {name.replace('_', ' ')} {value:.4f}")

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        path = self.folder / name
        with storing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError(
            "metrics.tensorboard = true needs the package tensorboard: pip install krzem[train]"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"))
