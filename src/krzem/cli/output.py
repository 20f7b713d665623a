"""Prints an answer, writes its files, shows progress; what it looks like is made in ``report``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from krzem.errors import InputError, UnknownNameError
from krzem.files import check_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress, TaskID
Document = dict[str, Any]


def check_files(*paths: str | None) -> None:
    """Refuse, before anything is computed, a file that cannot be written where it is wanted."""
    for path in paths:
        if path is not None:
            check_target(path)


def check_engine(engine: str | None, target: str | None, scheduler: str = "none") -> None:
    """Refuse an engine that nothing can be emitted for; raises UnknownNameError, InputError."""
    if engine is None:
        for option, given in (("--emit-to FILE", target), ("--scheduler NAME", scheduler)):
            if given not in (None, "none"):
                raise InputError(f"{option} needs --emit ENGINE, such as --emit megatron-lm")
        return
    from krzem.plan.emit import ENGINES, SCHEDULERS

    if scheduler not in SCHEDULERS:
        known = ", ".join(SCHEDULERS)
        raise UnknownNameError("scheduler", scheduler, SCHEDULERS, f"Known: {known}.")

    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES, f"Known: {', '.join(ENGINES)}.")


def show(document: Document, text: str, as_json: bool) -> None:
    """The document or its text on standard output."""
    if as_json:
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        click.echo(text, nl=False)


def write_page(document: Document, path: str | None) -> None:
    """The document as a page; nothing where no ``path`` is given."""
    if path is None:
        return
    from krzem.report.html import write_html

    write_html(document, Path(path))
    click.echo(f"wrote {path}", err=True)


def write_script(script: str, path: str) -> None:
    """A launch script, a config or a trace, all or nothing; raises StorageError."""
    from krzem.train.durable import write_atomic

    write_atomic(Path(path), script.encode())
    click.echo(f"wrote {path}", err=True)


# A progress line for searches that take more than two seconds, on a terminal only
# --------------------------------------------------------------------------------

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
