"""Where numbers go: a JSON line a step, lines or a live panel on the screen, boards of others."""

from __future__ import annotations

import importlib
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.box import ROUNDED
from rich.console import Console
from rich.live import Live
from rich.panel import Panel as Box
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from krzem.errors import RunError
from krzem.quantity import format_bytes, format_flops, format_seconds
from krzem.train.durable import storing
from krzem.train.forecast import Forecast
from krzem.train.summary import EVENTS, METRICS

_WIDTH = 100


_EACH = 0.1
"""Seconds between two drawings of the panel."""


@dataclass(slots=True)
class Progress:
    """The last step, and how fast the run goes; sentences about both."""

    tokens: int
    """Tokens of the whole run."""
    plan: Forecast | None = None
    peak: float | None = None
    """FLOP/s of one device that MFU is measured against."""
    values: dict[str, float] = field(default_factory=dict)
    """Measurements beside the steps, such as the held-out loss."""
    record: Mapping[str, Any] = field(default_factory=dict)
    left: int = 0
    """Steps to come."""
    _seen: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=50))

    def saw(self, record: Mapping[str, Any], left: int) -> None:
        """Take in a step's record."""
        if not self._seen:
            before = record["tokens"] - round(record["tokens_per_s"] * record["seconds"])
            self._seen.append((time.monotonic() - record["seconds"], before))
        self.record, self.left = record, left
        self._seen.append((time.monotonic(), record["tokens"]))

    @property
    def share(self) -> float:
        """Part of the run that is done."""
        return min(1.0, self.record["tokens"] / self.tokens)

    @property
    def seconds_left(self) -> float:
        """At the pace of the last steps, evaluations and stalls included."""
        (begun, first), (now, last) = self._seen[0], self._seen[-1]
        return (self.tokens - last) * (now - begun) / max(last - first, 1) if self.left else 0.0

    def against_plan(self) -> float | None:
        """Speed of the last step over the planned one; None without a plan, or within a ramp."""
        if self.plan is None:
            return None
        planned = self.plan.tokens_per_step / self.plan.step_seconds.mid
        own = round(self.record["tokens_per_s"] * self.record["seconds"])
        if own != self.plan.tokens_per_step:
            return None
        return float(self.record["tokens_per_s"] / planned)

    def line(self) -> str:
        """The step in one line."""
        r = self.record
        parts = [
            f"step {r['step']:>6}/{r['step'] + self.left}",
            f"loss {r['loss']:.4f}",
            f"norm {r['grad_norm']:.2f}",
            f"rate {r['rate']:.2e}",
            f"{r['tokens_per_s']:,.0f} tokens/s",
        ]
        if r.get("mfu") is not None:
            parts.append(f"MFU {r['mfu']:.1%}")
        if r.get("memory_bytes"):
            parts.append(f"{r['memory_bytes'] / 2**30:.1f} GiB")
        speed = self.against_plan()
        if speed is not None:
            parts.append(f"{speed:.0%} of plan")
        return "  ".join([*parts, f"{format_seconds(self.seconds_left, 3)} left"])

    def rows(self) -> list[str]:
        """The panel's lines."""
        r = self.record
        losses = [f"loss {r['loss']:.4f}"]
        losses += [f"{name.replace('_', ' ')} {value:.4f}" for name, value in self.values.items()]
        losses += [f"norm {r['grad_norm']:.2f}", f"rate {r['rate']:.2e}"]
        speed = [f"{r['tokens_per_s']:,.0f} tokens/s", f"{format_seconds(r['seconds'], 3)} a step"]
        if r.get("mfu") is not None:
            of = "" if self.peak is None else f" of {format_flops(self.peak, 3)} each"
            speed.append(f"MFU {r['mfu']:.1%}{of}")
        if r.get("memory_bytes"):
            speed.append(f"memory {format_bytes(r['memory_bytes'], 3)}")
        return ["   ".join(losses), "   ".join(speed), *self._plan_rows()]

    def _plan_rows(self) -> list[str]:
        if self.plan is None:
            return []
        low, mid, high = (
            format_seconds(getattr(self.plan.step_seconds, at), 3) for at in ("low", "mid", "high")
        )
        speed = self.against_plan()
        actual = "" if speed is None else f", runs at {speed:.0%} of it"
        memory = format_bytes(self.plan.memory_bytes.mid, 3)
        return [f"plan {mid} ({low} to {high}) a step{actual}   memory {memory}"]


class Panel:
    """The panel on a terminal."""

    def __init__(self, console: Console, name: str) -> None:
        self.name = name
        self._live = Live(console=console, auto_refresh=False)
        self._drawn = 0.0

    def start(self) -> None:
        """Take the place below what is printed."""
        self._live.start()

    def stop(self) -> None:
        """Leave the last picture."""
        self._live.refresh()
        self._live.stop()

    def show(self, progress: Progress) -> None:
        """Draw anew, at most ten times a second and always at the end."""
        now = time.monotonic()
        drawn = now - self._drawn >= _EACH or not progress.left
        self._live.update(self.picture(progress), refresh=drawn)
        self._drawn = now if drawn else self._drawn

    def picture(self, progress: Progress) -> Box:
        """Progress bar, numbers, plan."""
        step = progress.record["step"]
        left = f"{progress.share:.0%}, {format_seconds(progress.seconds_left, 3)} left"
        inside = Table.grid(expand=True)  # a bar by itself does not end its line
        inside.add_row(ProgressBar(total=1.0, completed=progress.share))
        for row in progress.rows():
            inside.add_row(Text(row))
        return Box(
            inside,
            title=f"{self.name}: step {step:,} of {step + progress.left:,}",
            subtitle=left,
            box=ROUNDED,
            width=min(_WIDTH, self._live.console.width),
        )


class Contract(Protocol):
    """What a controller lets its trainer do; the loop runs as well without one."""

    def beat(self, step: int, phase: str, *, own_seconds: float | None = None) -> None:
        """Say where this rank is, and how long it worked in ``step`` without waiting for others."""

    def stop_requested(self) -> bool:
        """Whether to save and end."""

    def commit_guard(self) -> None:
        """Raise where a newer attempt owns the run."""


class Reporter:
    """Writes ``metrics.jsonl`` and ``events.jsonl`` and shows; on rank 0 alone.

    On a terminal a panel stays in place while the reporter is entered (``with reporter:``);
    elsewhere every ``every`` steps a line is printed.  ``every`` 0 shows nothing.  ``boards`` are
    names of ``[metrics]``: tensorboard, wandb, mlflow.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tokens: int,
        every: int,
        boards: Sequence[str] = (),
        plan: Forecast | None = None,
        peak: float | None = None,
        console: Console | None = None,
    ) -> None:
        self.folder, self.every = folder, every
        self.console = console or Console(stderr=True, highlight=False)
        self.progress = Progress(tokens=tokens, plan=plan, peak=peak)
        self._boards = [_BOARDS[name](folder) for name in boards]
        self._live: Panel | None = None
        self._first = True
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Reporter:
        if self.every and self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Panel(self.console, self.folder.name)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        self._live = None

    def step(self, record: Mapping[str, Any], *, left: int) -> None:
        """One optimizer step, with ``left`` to come."""
        self._append(METRICS, record)
        plain = {n: v for n, v in record.items() if isinstance(v, int | float) and n != "step"}
        for board in self._boards:
            board(plain, record["step"])
        self.progress.saw(record, left)
        if self._live is not None:
            self._live.show(self.progress)
        elif self.every and (record["step"] % self.every == 0 or not left or self._first):
            self.console.print(self.progress.line(), soft_wrap=True)
        self._first = False

    def event(self, step: int, kind: str, message: str) -> None:
        """Something that is no ordinary step."""
        self._append(EVENTS, {"step": step, "kind": kind, "message": message})
        self.console.print(message, soft_wrap=True)

    def value(self, step: int, name: str, value: float) -> None:
        """A measurement beside the steps, such as the held-out loss."""
        self._append(EVENTS, {"step": step, "kind": name, "value": value})
        for board in self._boards:
            board({name: value}, step)
        self.progress.values[name] = value
        self.console.print(f"step {step:>6}  {name.replace('_', ' ')} {value:.4f}")

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        path = self.folder / name
        with storing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


Board = Callable[[Mapping[str, float], int], None]
"""Takes the numbers of a step."""


def _tensorboard(folder: Path) -> Board:
    writer = _library("torch.utils.tensorboard", "tensorboard").SummaryWriter(
        str(folder / "tensorboard")
    )

    def show(values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return show


def _wandb(folder: Path) -> Board:
    # The run's name is its identity there too, so that a resumed run goes on in the same place.
    run = _library("wandb", "wandb").init(
        project="krzem", name=folder.name, id=folder.name, resume="allow", dir=str(folder)
    )
    return lambda values, step: run.log(dict(values), step=step)


def _mlflow(folder: Path) -> Board:
    library = _library("mlflow", "mlflow")
    library.start_run(run_name=folder.name)
    return lambda values, step: library.log_metrics(dict(values), step=step)


_BOARDS: dict[str, Callable[[Path], Board]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RunError(
            f"metrics.{package} = true needs the package {package}: pip install {package}"
        ) from error
