"""``krzem stop``, ``move``, ``retry``, ``pause`` and ``reload``."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from krzem.errors import RunError
from krzem.run.command.common import AS_JSON, RUN, ask_to_stop, folder_of
from krzem.run.controller import run as run_run
from krzem.run.ledger import Ledger, Reader
from krzem.run.processes import held
from krzem.run.qualify import real_services
from krzem.run.rows import FINAL, Request, RequestKind, State
from krzem.run.run_file import read_run
from krzem.run.status import read_status
from krzem.run.untrusted import printable


@click.command("stop")
@RUN
@click.option("--now", is_flag=True, help="Do not wait for a checkpoint: lose the steps since it.")
@AS_JSON
def stop_command(run: Path, now: bool, as_json: bool) -> None:
    """Stop a run: save, end the trainer, keep everything.

    `krzem run` with the same file resumes it later. Where no controller is at work but a
    trainer may be, RUN must be the run file: the stop is then carried out from here.
    """
    folder = folder_of(run)
    state = str(read_status(folder).state)
    ended = state in FINAL and not held(folder)
    if not ended:
        ask_to_stop(folder, "now" if now else "save")
        state = "asked"
    if not ended and not held(folder):
        if run.is_dir():
            raise RunError(
                f"no controller is at work on {folder}: give the run file instead of the folder, "
                "so that the trainer can be found and stopped"
            )
        state = str(run_run(read_run(run), real_services()))
    told = {"run": str(folder), "how": "now" if now else "save", "state": state}
    words = "stop requested" if state == "asked" else f"already {state}" if ended else state
    shown = f"{folder}: {words}"
    click.echo(json.dumps(told) if as_json else shown)


@click.command("move")
@RUN
@click.argument("pool")
@AS_JSON
def move_command(run: Path, pool: str, as_json: bool) -> None:
    """Take a run to another of its pools: it saves, is verified there, and continues.

    A pool that cannot take the run is refused, and the run stays where it is.
    """
    _ask(run, RequestKind.MOVE, pool, as_json)


@click.command("retry")
@RUN
@click.argument("pool")
@AS_JSON
def retry_command(run: Path, pool: str, as_json: bool) -> None:
    """Try a pool anew that was repaired: its faults so far count no more.

    The run moves to it, from wherever it is; of a run that failed, the next `krzem run` begins
    there.
    """
    _ask(run, RequestKind.RETRY, pool, as_json)


@click.command("pause")
@RUN
@click.option("--resume", is_flag=True, help="Go on with a paused run.")
@AS_JSON
def pause_command(run: Path, resume: bool, as_json: bool) -> None:
    """Save and end the trainer, and hold the run until --resume; its controller waits."""
    _ask(run, RequestKind.RESUME if resume else RequestKind.PAUSE, None, as_json)


@click.command("reload")
@RUN
@AS_JSON
def reload_command(run: Path, as_json: bool) -> None:
    """Make a live run read its run file again: pools, limits, gates, deadline, tokens.

    The trainer is started anew, from what it saves, only where it must see the change itself.
    Model, data, sequence and batch make the run what it is: with other ones the file is refused.
    """
    if not run.is_dir():
        read_run(run)
    _ask(run, RequestKind.RELOAD, None, as_json)


def _ask(run: Path, kind: RequestKind, pool: str | None, as_json: bool) -> None:
    """Leave a request, and wait a moment for what the controller says to it."""
    folder = folder_of(run)
    state = read_status(folder).state
    at_work = held(folder)
    over = state == State.DONE or (state in (State.FAILED, State.STOPPED) and not at_work)
    if over and not (kind is RequestKind.RETRY and state != State.DONE):
        raise RunError(f"{folder} is {state}: there is nothing to {kind}; `krzem run` goes on with "
                       "a run that stopped or failed")  # fmt: skip
    ledger = Ledger(folder)
    try:
        number = ledger.ask(kind, pool)
    finally:
        ledger.close()
    answer = _answer(folder, number) if at_work else None
    told = answer.state if answer else "asked"
    why = answer.message if answer else (
        "the controller does it when the trainer has saved" if at_work
        else "no controller is at work: `krzem run` obeys when it is started"
    )  # fmt: skip
    shown = {"run": str(folder), "request": str(kind), "pool": pool, "state": told, "message": why}
    click.echo(json.dumps(shown) if as_json else printable(f"{folder}: {kind} {told}: {why}"))
    raise SystemExit(1 if told == "refused" else 0)


_ANSWER_SECONDS = 3.0


def _answer(folder: Path, number: int) -> Request | None:
    limit = time.monotonic() + _ANSWER_SECONDS
    while time.monotonic() < limit:
        with Reader(folder) as reader:
            found = next((r for r in reader.requests() if r.id == number), None)
        if found is not None and found.state != "open":
            return found
        time.sleep(0.1)
    return None
