"""What the verbs of a run share: how it is named, its report, and a request to stop."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from krzem.errors import KrzemError, RunError, StorageError
from krzem.run.ledger import LEDGER, Ledger, Reader
from krzem.run.overview import Rank
from krzem.run.page import report_page
from krzem.run.run_file import read_run
from krzem.run.status import read_status
from krzem.train.durable import write_atomic

REPORT = "report.html"


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


RUN = click.argument("run", type=click.Path(path_type=Path, exists=True))


def folder_of(path: Path) -> Path:
    """The folder of a run, given itself or its run file; RunError where it has not begun."""
    folder = path if path.is_dir() else read_run(path).folder
    if not (folder / LEDGER).exists():
        raise RunError(f"{folder} holds no run (it has no {LEDGER}): begin it with `krzem run`")
    return folder


def ask_to_stop(folder: Path, how: str) -> None:
    ledger = Ledger(folder)
    try:
        ledger.request_stop(how)
    finally:
        ledger.close()


def write_report(folder: Path) -> None:
    """Write the HTML report of the run in ``folder``; without the extra, say so in its place.

    Raises StorageError where the disk does not take it.
    """
    try:
        text = run_page(folder)
    except StorageError:
        raise
    except KrzemError as error:
        raise RunError(str(error)) from None
    write_atomic(folder / REPORT, text.encode())


def run_page(folder: Path, ranks: Sequence[Rank] | None = None) -> str:
    """The page of one run; ``ranks`` are given where it shall show every process."""
    status = read_status(folder)
    with Reader(folder) as reader:
        pool_of = {attempt.id: attempt.pool for attempt in reader.attempts()}
    rows = None if ranks is None else [{**r.as_dict(), "is_slow": r.is_slow} for r in ranks]
    return report_page(status.as_dict(), pool_of, rows)


def write_html(path: Path, text: str) -> None:
    """Write a page where the user wants it; StorageError where it cannot be written."""
    write_atomic(path, text.encode())


def json_text(value: Any) -> str:
    """``value`` as JSON that every reader takes: what is not finite becomes null."""
    return json.dumps(_finite(value), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
