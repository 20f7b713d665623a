"""``krzem run``, ``status``, ``logs``, ``stop`` and ``probe``."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from krzem.errors import DataError, KrzemError, RunError, StorageError
from krzem.hardware import CPU
from krzem.run.clock import DAY, duration, iso
from krzem.run.contract import attempt_folder
from krzem.run.controller import run as run_run
from krzem.run.launch.job import OUTPUT
from krzem.run.ledger import LEDGER, Ledger, Reader
from krzem.run.lock import held
from krzem.run.measure import probe_here
from krzem.run.own import check_trainer
from krzem.run.page import report_page
from krzem.run.probe.judge import Probed
from krzem.run.probe.shown import lines as probe_lines
from krzem.run.profile import Profile, profile_text
from krzem.run.rows import State
from krzem.run.run_file import read_run
from krzem.run.services import Services, Snapshot
from krzem.run.settings import RunSettings
from krzem.run.story import tell
from krzem.run.view import format_story, panel, progress_line
from krzem.train.durable import write_atomic

REPORT = "report.html"
_REDRAW_SECONDS, _TELL_SECONDS = 1.0, 15.0
_EXIT = {State.DONE: 0, State.STOPPED: 0, State.FAILED: 1}

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
RUN = click.argument("run", type=click.Path(path_type=Path, exists=True))


def folder_of(path: Path) -> Path:
    """The folder of a run, given itself or its run file; RunError where it has not begun."""
    folder = path if path.is_dir() else read_run(path).folder
    if not (folder / LEDGER).exists():
        raise RunError(f"{folder} holds no run (it has no {LEDGER}): begin it with `krzem run`")
    return folder


@click.command("run")
@click.argument("run_toml", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--dry-run", is_flag=True, help="Plan every pool, say what would be done, and end.")
@click.option("--quiet", is_flag=True, help="Nothing on the way: no live view, no lines.")
@AS_JSON
def run_command(run_toml: Path, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Train over pools of accelerators, in order of preference, to the last token.

    Plans each pool, measures the first, trains on it, watches it, restarts it after faults, and
    moves on to the next pool when a gate fires. May be killed at any time: the same command goes
    on where it was. Ctrl-C saves and stops the run; SIGTERM only ends this controller, and the
    trainer goes on.

    \b
    krzem run run.toml --dry-run
    krzem run run.toml

    \b
    A run file (docs/run.md has every key, examples/two-pools one that runs anywhere):
      model = "config.json"
      [goal]
      tokens = "2T"
      sequence = "4k"
      global_batch = 2048
      deadline = "60d"
      [data]
      path = "tokens"            # from krzem data build
      [[pool]]                   # in order of preference
      name = "ascend"
      accelerator = "ascend-910c"
      count = 2048
      launcher = "slurm"
      [[pool]]
      name = "hopper"
      accelerator = "h800"
      count = 1024
    """
    settings = read_run(run_toml)
    check_trainer(settings)
    if dry_run:
        _dry_run(settings, as_json)
        return
    with (
        _view(settings, quiet=quiet or as_json) as services,
        _signals(settings.folder, services.say),
    ):
        state = run_run(settings, services)
    story = tell(settings.folder)
    click.echo(json.dumps(story.as_dict(), indent=1) if as_json else format_story(story))
    if state is State.DONE and (settings.folder / REPORT).exists() and not as_json:
        click.echo(f"{'report':<8} {settings.folder / REPORT}")
    raise SystemExit(_EXIT.get(state, 1))


def _dry_run(settings: RunSettings, as_json: bool) -> None:
    services = Services()
    plans = [
        services.plan(settings, pool, tokens_left=settings.goal.tokens,
                      days_left=settings.goal.deadline_days, measured=None)
        for pool in settings.pools
    ]  # fmt: skip
    if as_json:
        click.echo(json.dumps([plan.as_dict() for plan in plans], indent=1))
        return
    for plan in plans:
        speed = plan.tokens_per_s
        known = f"{speed.low:,.0f} to {speed.high:,.0f} tokens/s" if speed else "speed unknown"
        days = (
            plan.days and f", {duration(plan.days.low * DAY)} to {duration(plan.days.high * DAY)}"
        )
        wall = f", wall: {plan.wall}" if plan.wall else ""
        click.echo(f"{plan.pool}: {known}{days}{wall}\n  {plan.refused or plan.basis}")
        for warning in plan.warnings:
            click.echo(f"  {warning}")
    chosen = next((plan.pool for plan in plans if plan.refused is None), None)
    click.echo(f"would begin on {chosen}" if chosen else "no pool can take this run")


@contextmanager
def _view(settings: RunSettings, *, quiet: bool) -> Iterator[Services]:
    """Services that show what happens: live on a terminal, else a line each."""
    console = Console(stderr=True)
    plain = Services(report=write_report)
    if quiet:
        yield plain
        return
    if not console.is_terminal:
        yield replace(plain, say=_line, on_look=_Told(settings.folder))
        return
    said: list[str] = []
    done = threading.Event()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        drawing = threading.Thread(target=_draw, args=(live, settings.folder, said, done))
        drawing.start()
        try:
            yield replace(plain, say=said.append)
        finally:
            done.set()
            drawing.join()


def _draw(live: Live, folder: Path, said: list[str], done: threading.Event) -> None:
    """Redraw from the ledger, as `krzem status` would see it."""
    while not done.wait(_REDRAW_SECONDS):
        try:
            live.update(panel(tell(folder), said), refresh=True)
        except (DataError, StorageError):
            continue


class _Told:
    """Tells how far a run is from time to time, where nothing can be drawn."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._attempt, self._step, self._next = folder, 0, 0, 0.0

    def __call__(self, seen: Snapshot) -> None:
        now = time.monotonic()
        if seen.attempt.id != self._attempt:
            self._attempt, self._step = seen.attempt.id, seen.step
        if seen.step == self._step or now < self._next:
            return
        self._step, self._next = seen.step, now + _TELL_SECONDS
        _line(progress_line(tell(self._folder)))


def _line(text: str) -> None:
    click.echo(f"{iso(time.time())} {text}", err=True)


@contextmanager
def _signals(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C asks for a stop once; SIGTERM, or a second Ctrl-C, ends this controller at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        say("stopping: the trainer saves first; Ctrl-C again ends this controller alone")
        # The controller may be inside a transaction of its own: ask from elsewhere.
        threading.Thread(target=_ask_to_stop, args=(folder, "save")).start()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _ask_to_stop(folder: Path, how: str) -> None:
    ledger = Ledger(folder)
    try:
        ledger.request_stop(how)
    finally:
        ledger.close()


def write_report(folder: Path) -> None:
    """Write the HTML report of the run in ``folder``; without the extra, say so in its place.

    Raises StorageError where the disk does not take it.
    """
    story = tell(folder)
    with Reader(folder) as reader:
        pool_of = {attempt.id: attempt.pool for attempt in reader.attempts()}
    try:
        text = report_page(story.as_dict(), pool_of)
    except StorageError:
        raise
    except KrzemError as error:
        raise RunError(str(error)) from None
    write_atomic(folder / REPORT, text.encode())


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
        with Live(auto_refresh=False) as live:
            while True:
                live.update(panel(tell(folder)), refresh=True)
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
            click.echo(f"{event.wall} {event.kind}{where}: {event.message}")


@click.command("stop")
@RUN
@click.option("--now", is_flag=True, help="Do not wait for a checkpoint: lose the steps since it.")
@AS_JSON
def stop_command(run: Path, now: bool, as_json: bool) -> None:
    """Stop a run: save, end the trainer, keep everything.

    `krzem run` with the same file goes on with it later. Where no controller is at work but a
    trainer may be, RUN must be the run file: the stop is then carried out from here.
    """
    folder = folder_of(run)
    state = str(tell(folder).state)
    ended = state in (State.DONE, State.FAILED) and not held(folder)
    if not ended:
        _ask_to_stop(folder, "now" if now else "save")
        state = "asked"
    if not ended and not held(folder):
        if run.is_dir():
            raise RunError(
                f"no controller is at work on {folder}: give the run file instead of the folder, "
                "so that the trainer can be found and stopped"
            )
        state = str(run_run(read_run(run)))
    told = {"run": str(folder), "how": "now" if now else "save", "state": state}
    words = "stop requested" if state == "asked" else f"already {state}" if ended else state
    shown = f"{folder}: {words}"
    click.echo(json.dumps(told) if as_json else shown)


@click.command("probe")
@click.option("--seconds", type=float, default=25.0, show_default=True,
              help="About how long to measure; a soak test is a fifth of it.")  # fmt: skip
@click.option("--processes", type=int,
              help="Devices to measure at once.  [default: all; 2 on processors]")  # fmt: skip
@click.option("--device", "use", type=click.Choice(["auto", "cpu", "numpy"]), default="auto",
              show_default=True, help="numpy needs no torch, and measures no links.")  # fmt: skip
@click.option("--name", default=CPU, show_default=True,
              help="Catalogue id of the accelerator, for the profile.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Write the device profile here.")
@AS_JSON
def probe_command(
    seconds: float, processes: int | None, use: str, name: str, out: Path | None, as_json: bool
) -> None:
    """Measure this machine: how fast it is, and whether it computes rightly.

    Matrix products and attention by precision, memory, collectives by size (with torch), a soak
    under load, repeated identical work, operators against float64. The profile is a cluster file
    whose [measured] numbers replace those of the data sheet in a plan.

    \b
    krzem probe
    krzem probe --out profile.toml           then, in run.toml:  profile = "profile.toml"
    """
    if seconds <= 0 or (processes is not None and processes < 1):
        shown = "" if processes is None else f" --processes {processes}"
        raise RunError(f"--seconds {seconds:g}{shown}: it must be above 0")
    with _bar(quiet=as_json) as progress:
        probed = probe_here(seconds=seconds, processes=processes, use=use, progress=progress)
    text = profile_text(
        Profile(device=name, devices=len(probed.ranks), measured=probed.measured),
        verdict=probed.verdict,
        when=iso(time.time()),
        evidence={"ranks": list(probed.ranks)},
    )
    if out is not None:
        write_atomic(out, text.encode())
    click.echo(json.dumps(_probed(probed), indent=1) if as_json else format_probe(probed, text))
    raise SystemExit(0 if probed.passed else 1)


def _probed(probed: Probed) -> dict[str, Any]:
    return {
        "passed": probed.passed,
        "verdict": probed.verdict,
        "faults": list(probed.faults),
        "warnings": list(probed.warnings),
        "measured": dict(probed.measured),
        "ranks": list(probed.ranks),
    }


def format_probe(probed: Probed, profile: str) -> str:
    """A probe as text for people: verdict, numbers, profile."""
    first = probed.ranks[0]
    shown = [
        ("verdict", probed.verdict),
        ("with", f"{first['backend']} on {first['device']}, {first['threads'] or 'all'} threads"),
        *probe_lines(first),
    ]
    if not any(rank["collectives"] for rank in probed.ranks):
        why = "one process" if len(probed.ranks) == 1 else "they need torch"
        shown.append(("links", f"not measured: {why}"))
    shown += [("note", warning) for warning in probed.warnings]
    lines = [f"{what:<9}  {value}" for what, value in shown]
    return "\n".join([*lines, "", profile])


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Callable[[float, str], None]]:
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda share, part: None
        return
    columns = (TextColumn("{task.description:<12}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=1.0)
        yield lambda share, part: bars.update(task, completed=share, description=part)
