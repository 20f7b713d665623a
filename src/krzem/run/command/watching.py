"""``krzem status`` and ``logs``."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from rich.live import Live

from krzem.errors import RunError
from krzem.run.clock import duration, iso
from krzem.run.command.common import (
    AS_JSON,
    REPORT,
    RUN,
    folder_of,
    json_text,
    run_page,
    write_html,
    write_report,
)
from krzem.run.contract import METRICS, attempt_folder
from krzem.run.gates import replay
from krzem.run.history import Metrics
from krzem.run.launch.job import OUTPUT
from krzem.run.ledger import LEDGER, Reader
from krzem.run.overview import Listed, format_ranks, format_runs, ranks_of, runs_below
from krzem.run.page import runs_page
from krzem.run.processes import held
from krzem.run.rows import FINAL, Event
from krzem.run.run_file import read_run
from krzem.run.status import StatusReader, read_status
from krzem.run.untrusted import BadInputError, open_bounded, printable
from krzem.run.view import format_status, panel

_REDRAW_SECONDS = 1.0


@click.command("status")
@RUN
@click.option("--watch", is_flag=True, help="Keep looking until Ctrl-C.")
@click.option("--ranks", "with_ranks", is_flag=True, help="Also where every process is.")
@click.option("--report", is_flag=True, help="Also write the HTML report as it is now.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Also write what is shown, with every process, as a page.")  # fmt: skip
@AS_JSON
def status_command(
    run: Path, watch: bool, with_ranks: bool, report: bool, html: Path | None, as_json: bool
) -> None:
    """Say how a run is doing, or all runs below a folder.

    RUN is its run file or its folder, or a folder of runs. Reads only; works during the run,
    after it, and from any machine that sees the folder.

    \b
    krzem status run.toml --ranks
    krzem status runs --html runs.html          a page of all runs
    """
    if run.is_dir() and not (run / LEDGER).exists() and (runs := runs_below(run)):
        _all_runs(run, runs, html, as_json)
        return
    folder = folder_of(run)
    if report:
        write_report(folder)
    if watch and not as_json:
        reader = StatusReader(folder)
        with Live(auto_refresh=False) as live:
            while True:
                live.update(panel(reader.read()), refresh=True)
                time.sleep(_REDRAW_SECONDS)
    status = read_status(folder)
    ranks = ranks_of(folder) if with_ranks or html else []
    if html is not None:
        write_html(html, run_page(folder, ranks))
    if as_json:
        told = {"ranks": [r.as_dict() for r in ranks]} if with_ranks else {}
        click.echo(json_text({**status.as_dict(), **told}))
        return
    click.echo(format_status(status))
    if with_ranks:
        click.echo(format_ranks(ranks))


def _all_runs(folder: Path, runs: list[Listed], html: Path | None, as_json: bool) -> None:
    rows = [run.as_dict() for run in runs]
    if html is not None:
        write_html(html, runs_page(str(folder), [_linked(run, html.parent) for run in runs],
                                   iso(time.time())))  # fmt: skip
    click.echo(json_text({"runs": rows}) if as_json else format_runs(runs))


def _linked(run: Listed, page: Path) -> dict[str, Any]:
    """A row of the page of all runs: with a way to the run's own report."""
    report = run.folder / REPORT
    link = os.path.relpath(report.resolve(), page.resolve()) if report.exists() else ""
    orphan = run.status is not None and not run.status.controlled
    open_state = run.status is not None and run.status.state not in FINAL
    seconds = run.status.left_seconds if run.status else None
    left = "–" if seconds is None else duration(seconds)
    return {**run.as_dict(), "link": quote(link), "is_orphan": orphan and open_state, "left": left}


@click.command("logs")
@RUN
@click.option("--attempt", type=int, help="Number of the attempt.  [default: the newest]")
@click.option(
    "--events", is_flag=True, help="What the controller wrote down, not what was printed."
)
@click.option("--lines", type=click.IntRange(0), default=40, show_default=True,
              help="How many of the last.")  # fmt: skip
@click.option("-f", "--follow", is_flag=True, help="Go on as more is printed, until Ctrl-C.")
@AS_JSON
def logs_command(
    run: Path, attempt: int | None, events: bool, lines: int, follow: bool, as_json: bool
) -> None:
    """Show what a trainer printed, or with --events what happened to the run.

    Of a run that started no trainer it says why.
    """
    folder = folder_of(run)
    if follow:
        _follow(folder, attempt, events, lines, as_json)
    elif events:
        _events(folder, lines, as_json)
    else:
        _printed(folder, attempt, lines, as_json)


def _printed(folder: Path, attempt: int | None, lines: int, as_json: bool) -> None:
    with Reader(folder) as reader:
        attempts = {a.id: a for a in reader.attempts()}
    if attempt is not None and attempt not in attempts:
        known = ", ".join(map(str, attempts)) or "none yet"
        raise RunError(f"no attempt {attempt} in {folder}; there are {known}")
    status = read_status(folder)
    if not attempts:
        why = status.reason or status.last_event
        click.echo(json.dumps({"attempt": None, "file": None, "lines": [], "reason": why})
                   if as_json else printable(f"no trainer was started: {why}"))  # fmt: skip
        return
    shown = attempts[attempt or max(attempts)]
    path = attempt_folder(folder, shown.id) / OUTPUT
    text = _end_of(path)[0].splitlines()[-lines:] if lines else []
    ended = None if shown.cause is None else f"{shown.cause}: {shown.detail}"
    if as_json:
        told = {"attempt": shown.id, "file": str(path), "lines": text, "reason": ended}
        click.echo(json.dumps(told))
        return
    click.echo("\n".join(map(_plain, text)))
    if ended:
        click.echo(printable(f"-- attempt {shown.id} ended: {ended}"))


_MOST = 4 << 20
"""Bytes of a log that are looked at from its end."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def _plain(line: str) -> str:
    """A trainer's line without its colours, and with nothing that steers a terminal."""
    return printable(_COLOURS.sub("", line), keep="\t")


def _end_of(path: Path, start: int | None = None) -> tuple[str, int]:
    """The end of a log, or all of it from byte ``start`` on; and where it ends now."""
    try:
        with os.fdopen(open_bounded(path), "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _MOST) if start is None or start > size else start)
            raw = file.read(_MOST)
            return raw.decode("utf-8", errors="replace"), file.tell()
    except (OSError, BadInputError):
        return "", start or 0


def _follow(folder: Path, attempt: int | None, events: bool, lines: int, as_json: bool) -> None:
    """Print what comes, also of the attempts to come, until the run is over."""
    if events:
        _follow_events(folder, lines, as_json)
        return
    _printed(folder, attempt, lines, as_json)
    place: tuple[int, int] | None = None
    while True:
        with Reader(folder) as reader:
            attempts, run = reader.attempts(), reader.run()
        number = attempt or (attempts[-1].id if attempts else 0)
        path = attempt_folder(folder, number) / OUTPUT
        start = place[1] if place and place[0] == number else None if place is None else 0
        text, end = ("", 0) if not number else _end_of(path, start)
        if place is not None and text:
            for line in text.splitlines():
                click.echo(json.dumps({"attempt": number, "line": line}) if as_json
                           else _plain(line))  # fmt: skip
        place = (number, end)
        if run is not None and run.state.final and not held(folder):
            return
        time.sleep(_REDRAW_SECONDS)


def _follow_events(folder: Path, lines: int, as_json: bool) -> None:
    last = 0
    while True:
        with Reader(folder) as reader:
            found = reader.events(last=lines if last == 0 else None, after=last)
            run = reader.run()
        for event in found:
            _event(event, as_json)
            last = event.id
        if run is not None and run.state.final and not held(folder):
            return
        time.sleep(_REDRAW_SECONDS)


def _events(folder: Path, lines: int, as_json: bool) -> None:
    with Reader(folder) as reader:
        found = reader.events(last=lines)
    for event in found:
        _event(event, as_json)


def _event(event: Event, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({name: getattr(event, name) for name in event.__slots__}))
        return
    where = f" [{event.pool}]" if event.pool else ""
    click.echo(printable(f"{event.wall} {event.kind}{where}: {event.message}"))


@click.command("gates")
@click.argument("run_toml", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--on", "metrics", type=click.Path(path_type=Path, exists=True), required=True,
              help="A metrics.jsonl, or the folder of a run that has one.")  # fmt: skip
@click.option("--expected", type=float, help="Tokens/s that the throughput gate compares with.  "
              "[default: the first pool's tokens_per_s]")  # fmt: skip
@AS_JSON
def gates_command(run_toml: Path, metrics: Path, expected: float | None, as_json: bool) -> None:
    """Try the gates of a run file on past metrics: what would have fired, when, and why.

    Gates on steps alone are tried (throughput, deadline, spike, gradient_norm, nonfinite); those
    that look at processes need a run.

    \b
    krzem gates run.toml --on runs/earlier/metrics.jsonl
    """
    settings = read_run(run_toml)
    folder = metrics if metrics.is_dir() else metrics.parent
    if not metrics.is_dir() and metrics.name != METRICS:
        raise RunError(f"--on {metrics}: give a file called {METRICS}, or its folder")
    read = Metrics(folder)
    read.read()
    speed = settings.pools[0].tokens_per_s if expected is None else expected
    found = list(replay(settings, read.history, speed))
    if as_json:
        shown = [{"step": step, "gate": f.gate, "action": f.action, "message": f.message}
                 for step, f in found]  # fmt: skip
        click.echo(json_text({"steps": len(read.history.kept), "bad_lines": read.bad,
                              "fired": shown}))  # fmt: skip
        return
    for step, finding in found:
        click.echo(f"step {step:,}: {finding.gate} ({finding.action}): {finding.message}")
    bad = f", {read.bad:,} lines are no steps" if read.bad else ""
    click.echo(f"{len(read.history.kept):,} steps, {len(found)} gates would have fired{bad}")
