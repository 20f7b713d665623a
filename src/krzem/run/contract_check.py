"""``krzem run --check-contract -- command …``: what a trainer lacks, found out in about a minute.

The command is started three times in a run folder of its own: to train, be asked to stop and save;
to go on from what it saved; and behind the back of a newer attempt, where it must commit nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krzem.errors import CheckpointError, RunError
from krzem.run.contract import (
    CHECKPOINTS,
    ENV_RESUME,
    EXIT_FENCED,
    EXIT_STOPPED,
    FENCE,
    METRICS,
    STOP,
    StepRecord,
    attempt_folder,
    environment_of,
    parse_record,
    read_heartbeats,
)
from krzem.run.untrusted import BadInputError
from krzem.train.checkpoint.store import committed, verify

_LOOK = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One promise of the contract."""

    what: str
    kept: bool | None
    """None: it could not be tried, because an earlier one was not kept."""
    how: str
    """What was seen, or what to do."""


def check_contract(
    command: Sequence[str], folder: Path, *, seconds: float = 20.0
) -> tuple[Clause, ...]:
    """Try ``command`` in the empty run folder ``folder``; each of three starts for ``seconds``.

    Raises:
        RunError: the command cannot be started at all.
    """
    trial = _Trial(command, folder, seconds)
    first = trial.start(1, until=lambda: trial.steps(1) >= 2, stop=True)
    found = [_steps(trial, first), _beats(trial), _stop(first), *_saved(folder)]
    good = _newest(folder)
    if good is None or not found[0].kept:
        rest = ("goes on from a checkpoint", "commits nothing behind a newer attempt")
        return (*found, *(Clause(what=w, kept=None, how="tried when steps and a checkpoint are "
                                 "there") for w in rest))  # fmt: skip
    trial.start(2, resume=good[1], until=lambda: trial.steps(2) >= 1, stop=True)
    found.append(_resumed(trial, good[0]))
    before = {path.name for _, path in committed(folder / CHECKPOINTS)}
    code = trial.start(3, newer=True, resume=good[1], until=lambda: trial.steps(3) >= 1, stop=True)
    after = {path.name for _, path in committed(folder / CHECKPOINTS)}
    found.append(_fenced(code, sorted(after - before)))
    return tuple(found)


class _Trial:
    """Starts the command under the contract and waits."""

    def __init__(self, command: Sequence[str], folder: Path, seconds: float) -> None:
        self.command, self.folder, self.seconds = list(command), folder, seconds
        self.said = b""

    def start(
        self,
        attempt: int,
        *,
        until: Callable[[], bool],
        stop: bool,
        resume: Path | None = None,
        newer: bool = False,
    ) -> int | None:
        """The exit code of one start; None where it had to be ended."""
        attempt_folder(self.folder, attempt).mkdir(parents=True, exist_ok=True)
        token = attempt + 1 if newer else attempt
        (self.folder / FENCE).write_text(json.dumps({"token": token}), encoding="utf-8")
        environment = {**os.environ, **environment_of(self.folder, attempt, attempt)}
        environment |= {} if resume is None else {ENV_RESUME: str(resume)}
        output = attempt_folder(self.folder, attempt) / "output.log"
        with output.open("wb") as log:
            try:
                process = subprocess.Popen(
                    self.command, env=environment, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise RunError(f"{self.command[0]} cannot be started: {error.strerror}") from None
            self._wait(process, until)
            if stop:
                (attempt_folder(self.folder, attempt) / STOP).touch()
            self._wait(process, lambda: False)
            code = process.poll()
            if code is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.said = output.read_bytes()[-2000:]
        return code

    def _wait(self, process: subprocess.Popen[bytes], until: Callable[[], bool]) -> None:
        limit = time.monotonic() + self.seconds
        while process.poll() is None and time.monotonic() < limit and not until():
            time.sleep(_LOOK)

    def records(self, attempt: int) -> list[StepRecord | str]:
        """Steps that the attempt reported; a text for a line that is none."""
        found: list[StepRecord | str] = []
        try:
            lines = (self.folder / METRICS).read_bytes().splitlines()
        except OSError:
            return found
        for line in lines[:10_000]:
            try:
                record = parse_record(line)
            except BadInputError as error:
                found.append(str(error))
                continue
            found += [record] if record.attempt == attempt else []
        return found

    def steps(self, attempt: int) -> int:
        """How many."""
        return sum(isinstance(r, StepRecord) for r in self.records(attempt))


def _steps(trial: _Trial, code: int | None) -> Clause:
    records = trial.records(1)
    good = [r for r in records if isinstance(r, StepRecord)]
    bad = [r for r in records if isinstance(r, str)]
    if good and not bad:
        return Clause(what="reports steps", kept=True, how=f"{len(good)} in {METRICS}")
    said = trial.said.decode(errors="replace").strip().splitlines()
    last = f"; its last line: {said[-1][:200]}" if said else ""
    how = f"a line of {METRICS} is no step: {bad[0]}" if bad else (
        f"no line in $KRZEM_RUN_DIR/{METRICS} within {trial.seconds:.0f} s (exit code {code}): "
        f"append one JSON object a step, see docs/run.md{last}"
    )  # fmt: skip
    return Clause(what="reports steps", kept=False, how=how)


def _beats(trial: _Trial) -> Clause:
    beats = read_heartbeats(trial.folder, 1)
    how = f"of {len(beats)} ranks" if beats else (
        "none in $KRZEM_RUN_DIR/heartbeat/: write rank-N at each change of phase, or a hang is "
        "noticed by nobody"
    )  # fmt: skip
    return Clause(what="heartbeats", kept=bool(beats), how=how)


def _stop(code: int | None) -> Clause:
    kept = code == EXIT_STOPPED
    how = f"exit code {code}" if kept else (
        f"after $KRZEM_RUN_DIR/attempts/NNNN/{STOP} appeared it "
        + ("went on" if code is None else f"left with {code}")
        + f": save, then exit with {EXIT_STOPPED}"
    )  # fmt: skip
    return Clause(what="saves and stops when asked", kept=kept, how=how)


def _newest(folder: Path) -> tuple[int, Path] | None:
    found = committed(folder / CHECKPOINTS)
    return found[-1] if found else None


def _saved(folder: Path) -> list[Clause]:
    newest = _newest(folder)
    what = "commits checkpoints"
    if newest is None:
        how = (
            "none in $KRZEM_RUN_DIR/checkpoints/: call krzem.run.contract.commit(folder, step, "
            "tokens) once the files are whole"
        )
        return [Clause(what=what, kept=False, how=how)]
    try:
        tokens: Any = verify(newest[1]).meta.get("tokens")
    except CheckpointError as error:
        return [Clause(what=what, kept=False, how=str(error))]
    how = f"{newest[1].name}, {tokens} tokens" if isinstance(tokens, int) else (
        f"{newest[1].name} does not say how many tokens were trained: meta.tokens"
    )  # fmt: skip
    return [Clause(what=what, kept=isinstance(tokens, int), how=how)]


def _resumed(trial: _Trial, step: int) -> Clause:
    steps = [r.step for r in trial.records(2) if isinstance(r, StepRecord)]
    what = "goes on from a checkpoint"
    if not steps:
        return Clause(what=what, kept=False, how=f"no step after step {step} was resumed from")
    kept = steps[0] == step + 1
    how = f"from step {step} with step {steps[0]}" + ("" if kept else (
        f": it has to be step {step + 1}; ${ENV_RESUME} names the folder to load"
    ))  # fmt: skip
    return Clause(what=what, kept=kept, how=how)


def _fenced(code: int | None, committed: list[str]) -> Clause:
    what = "commits nothing behind a newer attempt"
    if committed:
        how = (
            f"committed {', '.join(committed)} although {FENCE} holds a newer token than its own: "
            "ask commit_guard() just before, or use krzem.run.contract.commit"
        )
        return Clause(what=what, kept=False, how=how)
    left = f"exit code {code}" + ("" if code == EXIT_FENCED else f" ({EXIT_FENCED} would say why)")
    return Clause(what=what, kept=True, how=left)
