"""Faults of runs under schedulers, each a real one that is started here: Slurm and Grid Engine.

A daemon that dies takes what it knows of jobs with it, so those trials get a Slurm of their own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.fault_trial import ROOT, STEPS, Trial, hold, lose_ledger

from krzem.run.ledger import Reader
from krzem.run.rows import Cause

SCRIPTS = ROOT / "scripts"


def tidy_slurm(trial: Trial) -> None:
    """What an administrator does after a crash of Slurm's daemons.

    A controller daemon that dies before it has saved its state gives job numbers out again, takes
    jobs that are over for running ones, and drains nodes on which a number is known already.
    """
    with Reader(trial.run_dir) as reader:
        mine = {a.handle["job_id"] for a in reader.attempts() if a.handle}
    listed = ["squeue", "--noheader", "--format=%i"]
    for job in subprocess.run(listed, capture_output=True, text=True, check=False).stdout.split():
        if job not in mine:
            subprocess.run(["scancel", job], check=False)
    subprocess.run(["scontrol", "update", "nodename=n[1-2]", "state=resume"], check=False,
                   stderr=subprocess.DEVNULL)  # fmt: skip


def over(trial: Trial) -> bool:
    """Whether the trial needs Slurm no more."""
    return trial.controllers[-1].poll() is not None or trial.step() >= STEPS - 2


def slurm_daemon(which: str) -> Callable[[Trial], None]:
    """A daemon of Slurm dies under the job and is started again."""

    def disturb(trial: Trial) -> None:
        home = Path(os.environ["SLURM_CONF"]).parent
        trial.write(launcher="slurm", nodes=2)
        trial.start()
        trial.until(trial.random.randrange(3, 20))
        os.kill(int((home / f"{which}.pid").read_text()), signal.SIGKILL)
        end = time.monotonic() + trial.random.uniform(0.1, 2.0)
        trial.wait(lambda: time.monotonic() > end)
        name, _, node = which.partition("-")
        subprocess.run([name, *(["-N", node] if node else [])], check=True)
        for _ in range(20):
            soon = time.monotonic() + 3
            trial.wait(lambda s=soon: over(trial) or time.monotonic() > s)  # type: ignore[misc]
            if over(trial):
                break
            tidy_slurm(trial)

    return disturb


def cancelled(launcher: str, command: str) -> Callable[[Trial], None]:
    """The job is cancelled by somebody."""

    def disturb(trial: Trial) -> None:
        trial.write(launcher=launcher, nodes=2)
        trial.start()
        trial.until(trial.random.randrange(3, 30))
        with Reader(trial.run_dir) as reader:
            attempt = reader.open_attempt()
        if attempt is not None and attempt.handle is not None:
            subprocess.run([command, attempt.handle["job_id"]], check=False,
                           stdout=subprocess.DEVNULL)  # fmt: skip

    return disturb


def pending(launcher: str, hold_option: str) -> Callable[[Trial], None]:
    """The first pool's job is held in the queue for ever; the second takes over."""

    def disturb(trial: Trial) -> None:
        table = "slurm" if launcher == "slurm" else "scheduler"
        options = f'options = ["{hold_option}"]\n'
        extra = '[pool.limits]\nqueue = "1 s"\n'
        if table == "scheduler":
            extra += f"[pool.scheduler]\n{options}"
        trial.write(launcher=launcher, pools=["full", "free"], pool_extra={"full": extra})
        if table == "slurm":
            text = trial.path.read_text()
            trial.path.write_text(text.replace("[pool.slurm]\n", f"[pool.slurm]\n{options}", 1))
        trial.start()
        trial.finish()
        with Reader(trial.run_dir) as reader:
            first, *_, last = reader.attempts()
        assert first.cause is Cause.QUEUED, f"it waited, and ended as {first.cause}"
        assert (first.pool, last.pool) == ("full", "free"), "the run did not move on"

    return disturb


def forgotten(launcher: str) -> Callable[[Trial], None]:
    """The ledger goes while the job runs and its controller is dead."""

    def disturb(trial: Trial) -> None:
        process = hold(trial, trial.random.randrange(2, STEPS - 3), launcher=launcher)
        process.kill()
        process.wait()
        lose_ledger(trial)
        (trial.run_dir / "go").touch()
        trial.start()

    return disturb


SLURM: dict[str, tuple[Callable[[Trial], None], int]] = {
    "Slurm's controller daemon killed": (slurm_daemon("slurmctld"), 6),
    "Slurm's node daemon killed": (slurm_daemon("slurmd-n2"), 6),
    "Slurm job cancelled": (cancelled("slurm", "scancel"), 6),
    "Slurm job that never starts": (pending("slurm", "--hold"), 6),
    "Slurm: ledger lost under a living job": (forgotten("slurm"), 6),
}
GRID_ENGINE: dict[str, tuple[Callable[[Trial], None], int]] = {
    "Grid Engine job deleted": (cancelled("grid-engine", "qdel"), 6),
    "Grid Engine job that never starts": (pending("grid-engine", "-h"), 6),
    "Grid Engine: ledger lost under a living job": (forgotten("grid-engine"), 6),
}
"""Name: how to disturb, and its share of the trials."""


def slurm_installed() -> bool:
    """Whether a Slurm of our own can be started here."""
    return not os.geteuid() and all(shutil.which(t) for t in ("munged", "slurmctld", "slurmd"))


@contextmanager
def own_slurm() -> Iterator[None]:
    """A Slurm of one trial: a daemon that dies takes what it knows of jobs with it."""
    folder = Path(tempfile.mkdtemp(prefix="krzem-slurm-"))
    up = [str(SCRIPTS / "slurm-up"), str(folder), "2", str(os.getpid())]
    subprocess.run(up, check=True, stdout=subprocess.DEVNULL)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        yield
    finally:
        subprocess.run([SCRIPTS / "slurm-down", folder], check=False)
        del os.environ["SLURM_CONF"]
        if before is not None:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder, ignore_errors=True)


def grid_engine_installed() -> bool:
    """Whether a Grid Engine of our own can be started here."""
    tools = ("sge_qmaster", "sge_execd", "qsub", "qconf")
    return not os.geteuid() and all(shutil.which(tool) for tool in tools)


@contextmanager
def own_grid_engine() -> Iterator[None]:
    """A Grid Engine for many trials."""
    folder = Path(tempfile.mkdtemp(prefix="krzem-sge."))
    up = [str(SCRIPTS / "grid-engine-up"), str(folder), str(os.getpid())]
    said = subprocess.run(up, check=True, capture_output=True, text=True).stdout
    given = dict(word.split("=", 1) for word in said.split())
    os.environ.update(given)
    try:
        yield
    finally:
        subprocess.run([SCRIPTS / "grid-engine-down", folder], check=False)
        for name in given:
            del os.environ[name]
        shutil.rmtree(folder, ignore_errors=True)


class Schedulers:
    """The schedulers of a campaign, started when the first trial asks for one."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._started: set[str] = set()

    @contextmanager
    def ready_for(self, scenario: str) -> Iterator[None]:
        """The scheduler that ``scenario`` runs under, if any."""
        if "daemon" in scenario:
            with own_slurm():
                yield
            return
        for name, scenarios, start in (
            ("slurm", SLURM, own_slurm), ("grid-engine", GRID_ENGINE, own_grid_engine),
        ):  # fmt: skip
            if scenario in scenarios and name not in self._started:
                self._stack.enter_context(start())
                self._started.add(name)
        yield
