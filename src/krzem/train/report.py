"""Where numbers go: a JSON line a step, a panel or lines on the screen, boards of others."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from krzem.errors import RunError
from krzem.train.durable import storing
from krzem.train.forecast import Forecast
from krzem.train.live import Panel, Progress
from krzem.train.summary import EVENTS, METRICS


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
