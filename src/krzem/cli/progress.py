"""A progress line for searches that take more than two seconds, on a terminal only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress, TaskID

PATIENCE = 2.0
"""Seconds without a word."""


class _Line:
    """Counts layouts; shows itself once ``PATIENCE`` is over."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.started = time.monotonic()
        self.shown: tuple[Progress, TaskID] | None = None

    def __call__(self, evaluated: int) -> None:
        """``evaluated`` layouts are priced."""
        if self.shown is None and time.monotonic() - self.started >= PATIENCE:
            self.shown = self._show()
        if self.shown is not None:
            progress, task = self.shown
            progress.update(task, completed=evaluated)

    def _show(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TextColumn("{task.completed:,.0f} layouts priced"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        progress.start()
        return progress, progress.add_task(self.title, total=None)

    def stop(self) -> None:
        """Take the line away."""
        if self.shown is not None:
            self.shown[0].stop()


@contextmanager
def search_progress(title: str, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """What a search calls with the layouts priced so far; None where nobody watches."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    line = _Line(title)
    try:
        yield line
    finally:
        line.stop()
