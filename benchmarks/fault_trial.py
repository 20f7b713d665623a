"""One disturbed run: started, watched at every moment, and brought to its end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.run.run_helpers import write_run

from krzem.errors import CheckpointError, DataError
from krzem.run.contract import CHECKPOINTS, ENV_ATTEMPT, Heartbeat, read_heartbeats
from krzem.run.ledger import LEDGER, Reader
from krzem.run.processes import of_run
from krzem.run.rows import State
from krzem.train.checkpoint.store import checkpoints, quick_check

ROOT = Path(__file__).parent.parent
CONTROLLER = ROOT / "tests" / "run" / "controller_main.py"
STEPS = 40
HELD = "held"
"""A planted wait is no fault: it keeps a trainer alive until it is disturbed."""
LONGEST = 600.0
"""Seconds after which a trial is lost; nothing is judged by time."""


@dataclass(kw_only=True)
class Trial:
    """One disturbed run."""

    folder: Path
    random: random.Random
    path: Path = field(init=False)
    controllers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    damaged: bool = False
    forgotten: bool = False
    """Whether the ledger was lost: then it cannot hold every fault."""
    refused: int = 0
    """Second controllers that were turned away."""
    most_trainers: int = 0
    struck: int = 0
    """Trainers that were struck from outside while they certainly were at work."""
    newest_good: int = 0

    run_folder: str = "run"
    """Of the run, below that of the trial."""

    @property
    def run_dir(self) -> Path:
        return self.folder / self.run_folder

    def write(self, *, stall: str = "4s", **changes: Any) -> None:
        """The run file; a step takes 15 ms, so that there is something to hit."""
        gates = (
            f'stall = {{ seconds = "{stall}", load = "2 min" }}\nrestarts = {{ per_day = 50 }}\n'
        )
        values: dict[str, Any] = {"steps": STEPS, "ranks": 2, "trainer": {"step_seconds": 0.015}}
        values |= changes
        values["gates"] = gates + values.get("gates", "")
        self.path = write_run(self.folder, **values)

    def start(self) -> subprocess.Popen[bytes]:
        """A controller in a process of its own."""
        log = (self.folder / "controller.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, CONTROLLER, self.path], stdout=log, stderr=log, cwd=ROOT
        )
        log.close()
        self.controllers.append(process)
        return process

    def beats(self) -> dict[int, Heartbeat]:
        """Heartbeats of the attempt that runs."""
        with contextlib.suppress(DataError), Reader(self.run_dir) as reader:
            attempt = reader.open_attempt()
            if attempt is not None:
                return read_heartbeats(self.run_dir, attempt.id)
        return {}

    def step(self) -> int:
        """Last step that the heartbeats tell of."""
        return max((beat.step for beat in self.beats().values()), default=0)

    def until(self, step: int) -> None:
        """Wait for a step, or for the end."""
        self.wait(lambda: self.step() >= step or self.controllers[-1].poll() is not None)

    def wait(self, what: Callable[[], bool], seconds: float = LONGEST) -> None:
        """Watch the invariants until something is so."""
        end = time.monotonic() + seconds
        while not what():
            self.look()
            if time.monotonic() > end:
                raise AssertionError("it took too long")
            time.sleep(0.01)

    def look(self) -> None:
        """Never two trainers; never a step back of the newest good checkpoint."""
        attempts = {found for pid in of_run(self.run_dir) if (found := _attempt_of(pid))}
        self.most_trainers = max(self.most_trainers, len(attempts))
        newest = _newest_good(self.run_dir)
        if newest < self.newest_good and not self.damaged:
            raise AssertionError(f"checkpoint {self.newest_good} was lost, {newest} is the newest")
        self.newest_good = newest

    def finish(self) -> None:
        """Start controllers until the run is done."""
        for _ in range(20):
            process = self.controllers[-1] if self.controllers else self.start()
            self.wait(lambda p=process: p.poll() is not None)  # type: ignore[misc]
            if self.state() is State.DONE:
                return
            self.start()
        raise AssertionError("twenty controllers did not finish the run")

    def state(self) -> State | None:
        """Where the run is."""
        with contextlib.suppress(DataError), Reader(self.run_dir) as reader:
            run = reader.run()
            return run.state if run else None
        return None

    def kill_trainers(self) -> None:
        """Every process but the controller."""
        for pid in of_run(self.run_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _attempt_of(pid: int) -> str | None:
    with contextlib.suppress(OSError):
        for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if word.startswith(f"{ENV_ATTEMPT}=".encode()):
                return word.decode()
    return None


def _newest_good(run_dir: Path) -> int:
    found = reversed(checkpoints(run_dir / CHECKPOINTS))
    return next((step for step, folder in found if is_good(folder)), 0)


def is_good(folder: Path) -> bool:
    """Whether a checkpoint is whole, by its manifest and sizes."""
    with contextlib.suppress(CheckpointError):
        quick_check(folder)
        return True
    return False


def hold(trial: Trial, step: int, **changes: Any) -> subprocess.Popen[bytes]:
    """A controller whose trainer waits in ``step``."""
    held = [{"id": HELD, "step": step, "at": "compute", "do": "wait"}]
    trial.write(stall="5 min", faults=held, **changes)  # a held trainer is no hung one
    process = trial.start()
    trial.wait(lambda: (trial.run_dir / "faults.done" / HELD).exists())
    return process


def lose_ledger(trial: Trial, how: str = "lost") -> None:
    """The ledger's files go, or its log alone, or half of it."""
    for file in trial.run_dir.glob(f"{LEDGER}*"):
        if how == "cut short" and file.name == LEDGER:
            raw = file.read_bytes()
            file.write_bytes(raw[: trial.random.randrange(len(raw))])
        elif how != "log lost" or file.name != LEDGER:
            file.unlink()
    trial.forgotten = True
