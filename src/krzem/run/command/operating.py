"""``krzem stop``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from krzem.errors import RunError
from krzem.run.command.common import AS_JSON, RUN, ask_to_stop, folder_of
from krzem.run.controller import run as run_run
from krzem.run.lock import held
from krzem.run.rows import State
from krzem.run.run_file import read_run
from krzem.run.story import tell


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
    ended = state in (State.DONE, State.FAILED, State.STOPPED) and not held(folder)
    if not ended:
        ask_to_stop(folder, "now" if now else "save")
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
