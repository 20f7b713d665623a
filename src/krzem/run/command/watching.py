"""``krzem status`` and ``logs``."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
from rich.live import Live

from krzem.errors import RunError
from krzem.run.command.common import AS_JSON, RUN, folder_of, write_report
from krzem.run.contract import attempt_folder
from krzem.run.launch.job import OUTPUT
from krzem.run.ledger import Reader
from krzem.run.story import Teller, tell
from krzem.run.untrusted import printable
from krzem.run.view import format_story, panel

_REDRAW_SECONDS = 1.0


@click.command("status")
@RUN
@click.option("--watch", is_flag=True, help="Keep looking until Ctrl-C.")
@click.option("--report", is_flag=True, help="Also write the HTML report as it is now.")
@AS_JSON
def status_command(run: Path, watch: bool, report: bool, as_json: bool) -> None:
    """Say how a run is doing.

    RUN is its run file or its folder. Reads only; works while the run goes on, after it, and from
    any machine that sees the folder.
    """
    folder = folder_of(run)
    if report:
        write_report(folder)
    if watch and not as_json:
        teller = Teller(folder)
        with Live(auto_refresh=False) as live:
            while True:
                live.update(panel(teller.tell()), refresh=True)
                time.sleep(_REDRAW_SECONDS)
    story = tell(folder)
    click.echo(json.dumps(story.as_dict(), indent=1) if as_json else format_story(story))


@click.command("logs")
@RUN
@click.option("--attempt", type=int, help="Number of the attempt.  [default: the newest]")
@click.option(
    "--events", is_flag=True, help="What the controller wrote down, not what was printed."
)
@click.option("--lines", type=int, default=40, show_default=True, help="How many of the last.")
@AS_JSON
def logs_command(run: Path, attempt: int | None, events: bool, lines: int, as_json: bool) -> None:
    """Show what a trainer printed, or with --events what happened to the run."""
    folder = folder_of(run)
    if events:
        _events(folder, lines, as_json)
        return
    with Reader(folder) as reader:
        known = [a.id for a in reader.attempts()]
    if not known or (attempt is not None and attempt not in known):
        raise RunError(
            f"no attempt {attempt or ''} in {folder}; there are "
            f"{', '.join(map(str, known)) or 'none yet'}"
        )
    path = attempt_folder(folder, attempt or known[-1]) / OUTPUT
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    shown = text.splitlines()[-lines:]
    click.echo(json.dumps({"attempt": attempt or known[-1], "file": str(path), "lines": shown})
               if as_json else "\n".join(shown))  # fmt: skip


def _events(folder: Path, lines: int, as_json: bool) -> None:
    with Reader(folder) as reader:
        found = reader.events(last=lines)
    for event in found:
        if as_json:
            click.echo(json.dumps({name: getattr(event, name) for name in event.__slots__}))
        else:
            where = f" [{event.pool}]" if event.pool else ""
            click.echo(printable(f"{event.wall} {event.kind}{where}: {event.message}"))
