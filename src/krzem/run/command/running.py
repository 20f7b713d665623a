"""``krzem run``."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.live import Live

from krzem.errors import DataError, StorageError
from krzem.run.clock import DAY, duration, iso
from krzem.run.command.common import AS_JSON, REPORT, ask_to_stop, json_text, write_report
from krzem.run.controller import run as run_run
from krzem.run.notify import check_extras, follow
from krzem.run.parity import announced
from krzem.run.qualify import real_services
from krzem.run.rows import State
from krzem.run.run_file import read_run
from krzem.run.services import PoolPlan, Services, Snapshot
from krzem.run.settings import RunSettings
from krzem.run.status import RunStatus, StatusReader, read_status
from krzem.run.trainer import check_trainer
from krzem.run.untrusted import printable
from krzem.run.view import format_status, panel, progress_line

_REDRAW_SECONDS, _TELL_SECONDS = 1.0, 15.0
EXIT_FAILED, EXIT_LATE, EXIT_STOPPED_BY_GATE = 1, 4, 5
"""Of ``krzem run``: it failed; done, but late or over budget; stopped by a gate.  0 is done within
every limit, or stopped on request."""


@click.command("run")
@click.argument("run_toml", type=click.Path(path_type=Path))
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--check-contract", is_flag=True, help="Try a trainer's command, given after --.")
@click.option("--dry-run", is_flag=True, help="Plan every pool, say what would be done, and end.")
@click.option("--quiet", is_flag=True, help="Nothing on the way: no live view, no lines.")
@AS_JSON
def run_command(
    run_toml: Path,
    command: tuple[str, ...],
    check_contract: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train over pools of accelerators, in order of preference, to the last token.

    Plans each pool, measures the first, trains on it, watches it, restarts it after faults, and
    moves on to the next pool when a gate fires. May be killed at any time: the same command
    resumes where it was. Ctrl-C saves and stops the run; SIGTERM ends this controller alone, and
    the trainer continues.

    Ends with 0 when every token is trained within deadline and budget, or stopped on request; 1
    when it failed; 4 when done but late or over budget; 5 when a gate stopped it.

    \b
    krzem run run.toml --dry-run
    krzem run --check-contract -- python my_trainer.py    what a trainer of your own lacks
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
    if check_contract:
        _check_contract((str(run_toml), *command), as_json)
        return
    if command:
        raise click.UsageError(f"unexpected {command[0]!r}: one run file, or --check-contract")
    if not run_toml.is_file():
        raise click.BadParameter(f"there is no file {run_toml}", param_hint="RUN_TOML")
    settings = read_run(run_toml)
    check_trainer(settings)
    check_extras(settings)
    if dry_run:
        _dry_run(settings, as_json)
        return
    with (
        _view(settings, quiet=quiet or as_json) as services,
        _signals(settings.folder, services.say),
        follow(settings),
    ):
        state = run_run(settings, services)
    status = read_status(settings.folder)
    click.echo(json_text(status.as_dict()) if as_json else format_status(status))
    if state is State.DONE and (settings.folder / REPORT).exists() and not as_json:
        click.echo(f"{'report':<8} {settings.folder / REPORT}")
    raise SystemExit(exit_code(status))


def _check_contract(command: tuple[str, ...], as_json: bool) -> None:
    """Try a trainer in a folder of its own, and tell what it keeps of the contract."""
    from krzem.run.contract_check import check_contract

    with tempfile.TemporaryDirectory(prefix="krzem-contract-") as folder:
        found = check_contract(command, Path(folder))
    if as_json:
        click.echo(json.dumps([asdict(clause) for clause in found], indent=1))
    else:
        for clause in found:
            mark = {True: "kept", False: "BROKEN", None: "not tried"}[clause.kept]
            click.echo(f"{mark:<10}{clause.what}: {clause.how}")
    raise SystemExit(0 if all(clause.kept for clause in found) else EXIT_FAILED)


def exit_code(status: RunStatus) -> int:
    """What a script is told of how a run ended."""
    if status.state == State.STOPPED:
        return EXIT_STOPPED_BY_GATE if status.stopped_by_gate else 0
    if status.state != State.DONE:
        return EXIT_FAILED
    return EXIT_LATE if any(limit["kept"] is False for limit in status.limits) else 0


def _dry_run(settings: RunSettings, as_json: bool) -> None:
    services = real_services()
    plans = [
        services.plan(settings, pool, tokens_left=settings.goal.tokens,
                      days_left=settings.goal.deadline_days, measured=None)
        for pool in settings.pools
    ]  # fmt: skip
    chosen = next((plan.pool for plan in plans if plan.refused is None), None)
    proofs = announced(settings)
    if as_json:
        told = [{**plan.as_dict(), "proof": proofs.get(plan.pool)} for plan in plans]
        click.echo(json.dumps(told, indent=1))
    else:
        for plan in plans:
            click.echo("\n  ".join(_planned(plan)))
        for line in proofs.values():
            click.echo(line)
        click.echo(f"would begin on {chosen}" if chosen else "no pool can take this run")
    raise SystemExit(0 if chosen else EXIT_FAILED)


def _planned(plan: PoolPlan) -> list[str]:
    """What a dry run says of a pool: refused and why, or a speed, or why there is none."""
    rules = plan.rules
    told = [*plan.warnings]
    if rules is not None and rules.lawful:
        told.append(f"trade rules: {rules.words}")
    if rules is not None and rules.age:
        told.append(rules.age)
    if plan.refused:
        return [f"{plan.pool}: refused", plan.refused, *told]
    speed, days = plan.tokens_per_s, plan.days
    if speed is None:
        return [f"{plan.pool}: speed not known yet", plan.basis, *told]
    parts = [f"{speed.low:,.0f} to {speed.high:,.0f} tokens/s"]
    if days is not None:
        parts.append(f"{duration(days.low * DAY)} to {duration(days.high * DAY)}")
    if plan.wall:
        parts.append(f"wall: {plan.wall}")
    return [f"{plan.pool}: {', '.join(parts)}", plan.basis, *told]


@contextmanager
def _view(settings: RunSettings, *, quiet: bool) -> Iterator[Services]:
    """Services that show what happens: live on a terminal, else a line each."""
    console = Console(stderr=True)
    plain = real_services(report=write_report)
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
    reader = StatusReader(folder)
    while not done.wait(_REDRAW_SECONDS):
        try:
            live.update(panel(reader.read(), said), refresh=True)
        except (DataError, StorageError):
            continue


class _Told:
    """Tells how far a run is from time to time, where nothing can be drawn."""

    def __init__(self, folder: Path) -> None:
        self._reader, self._attempt, self._step, self._next = StatusReader(folder), 0, 0, 0.0

    def __call__(self, seen: Snapshot) -> None:
        now = time.monotonic()
        if seen.attempt.id != self._attempt:
            self._attempt, self._step = seen.attempt.id, seen.step
        if seen.step == self._step or now < self._next:
            return
        self._step, self._next = seen.step, now + _TELL_SECONDS
        _line(progress_line(self._reader.read()))


def _line(text: str) -> None:
    click.echo(f"{iso(time.time())} {printable(text)}", err=True)


@contextmanager
def _signals(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Ctrl-C asks for a stop once; SIGTERM, or a second Ctrl-C, ends this controller at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        say("stopping: the trainer saves first; Ctrl-C again ends this controller alone")
        # The controller may be inside a transaction of its own: ask from elsewhere.
        threading.Thread(target=ask_to_stop, args=(folder, "save")).start()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
