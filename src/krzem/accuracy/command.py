"""``krzem accuracy``: predictions against a table of measured runs."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from krzem.accuracy.evaluate import Outcome, Report

PATIENCE_S = 2.0


@click.command("accuracy")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--rows",
    "rows_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write one CSV line a row: measured, predicted low/mid/high, error or reason.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fractions, not per cent.")
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Also write a page that needs no network.")  # fmt: skip
@click.option("--cross-validate", is_flag=True,
              help="Refit on this table, leaving out each source, accelerator and family in turn"
                   " (a minute or two).")  # fmt: skip
def accuracy_command(
    file: Path, rows_file: Path | None, as_json: bool, html: Path | None, cross_validate: bool
) -> None:
    """Predict every run of a CSV FILE and compare with what was measured.

    FILE has the columns of the packaged table of published runs (facts/runs.csv; docs/accuracy.md
    explains them), in any order; what is missing is inferred where only one answer is possible,
    assumed and noted where a habit tells, and else the row is skipped with the reason.

    \b
    krzem accuracy runs.csv
    krzem accuracy mine.csv --rows errors.csv
    krzem accuracy mine.csv --json
    krzem accuracy mine.csv --html accuracy.html
    """
    from krzem.accuracy.evaluate import evaluate
    from krzem.cli.common import check_files
    from krzem.report.text_table import format_report
    from krzem.train.durable import write_atomic

    check_files(*(None if name is None else str(name) for name in (rows_file, html)))
    if html is not None:
        from krzem.report.selfcontained import need_extra

        need_extra()
    with _counting(as_json) as progress:
        report = evaluate(file, cross_validate=cross_validate, progress=progress)
    if rows_file is not None:
        write_atomic(rows_file, rows_csv(report).encode())
        click.echo(f"wrote {rows_file}", err=True)
    if html is not None:
        from krzem.report.html_accuracy import accuracy_page
        from krzem.report.selfcontained import write_text

        write_text(html, accuracy_page(report))
        click.echo(f"wrote {html}", err=True)
    document = report.as_dict()
    if as_json:
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        click.echo(format_report(document), nl=False)


@contextmanager
def _counting(quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """What is called with the rows read so far; shows itself on a terminal after a while."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.status import Status

    status = Status("reading", console=Console(stderr=True))
    started = time.monotonic()
    shown = False

    def count(rows: int) -> None:
        nonlocal shown
        if not shown and time.monotonic() - started > PATIENCE_S:
            status.start()
            shown = True
        if shown and rows % 256 == 0:
            status.update(f"{rows:,} rows predicted")

    try:
        yield count
    finally:
        status.stop()


COLUMNS = (
    "id", "measured_by", "measured_s", "predicted_low_s", "predicted_s", "predicted_high_s",
    "error", "memory_measured_gib", "memory_predicted_gib", "memory_error", "guessed", "skipped",
)  # fmt: skip


def rows_csv(report: Report) -> str:
    """One line a row: measured, predicted low, middle and high, error, or why it was skipped."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_cells(row) for row in report.outcomes)
    return out.getvalue()


def _cells(row: Outcome) -> list[str]:
    if row.reason:
        return [_safe(row.id), *[""] * (len(COLUMNS) - 2), row.reason]
    time = [f"{row.measured_s:.6g}"] if row.measured_s else [""]
    time += [f"{value:.6g}" for value in (row.low_s, row.mid_s, row.high_s)]
    time.append(f"{row.mid_s / row.measured_s - 1.0:+.4f}" if row.measured_s else "")
    memory = ["", "", ""]
    if row.memory_measured is not None:
        memory = [f"{row.memory_measured / 2**30:.2f}", f"{row.memory_predicted / 2**30:.2f}",
                  f"{row.memory_predicted / row.memory_measured - 1.0:+.4f}"]  # fmt: skip
    return [_safe(row.id), row.measured_by, *time, *memory, "; ".join(row.guesses), ""]


def _safe(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text
