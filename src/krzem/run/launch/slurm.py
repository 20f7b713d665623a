"""Jobs under Slurm: sbatch starts them, squeue and sacct say what became of them.

The batch job runs the same supervisor as the local launcher, which leaves the exit code in the
job's folder: Slurm's accounting is asked only where that file is missing.  Slurm sends SIGUSR1
some time before the end of a job or a preemption; the supervisor turns it into the stop request
that trainers look for, and queues the job again when it has saved.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from krzem.errors import LaunchError
from krzem.run.launch.job import (
    EXIT,
    OUTPUT,
    PROCESS,
    Job,
    Look,
    Phase,
    SilentError,
    ask_by_file,
    ended,
)
from krzem.run.launch.local import LocalLauncher
from krzem.run.pool_settings import Slurm
from krzem.run.processes import memory_bytes, of_run
from krzem.train.durable import write_atomic

BATCH = "batch.sh"
ANSWER_SECONDS = 60.0
"""Slurm's own time-outs are shorter; a command that takes longer hangs."""
ENDING_SECONDS = 120.0

_WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
                      "SPECIAL_EXIT", "RESV_DEL_HOLD"})  # fmt: skip
_LIVING = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT",
                     "RESIZING"})  # fmt: skip
_HELD = "launch failed"
"""Reason of a job that Slurm could not start on its nodes and will not try again by itself."""
_NEVER = frozenset({"PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints", "InvalidAccount",
                    "InvalidQOS", "AssocMaxNodePerJobLimit", "QOSMaxNodePerJobLimit",
                    "AssocMaxWallDurationPerJobLimit", "QOSMaxWallDurationPerJobLimit",
                    "DependencyNeverSatisfied", "AccountNotAllowed", "QOSNotAllowed"})  # fmt: skip
"""Reasons for which a job waits for ever: more nodes than a partition has, say."""
NO_ANSWER = ("Unable to contact slurm", "Connection refused", "Socket timed out",
             "Unexpected message received", "timed out")  # fmt: skip


class SlurmLauncher:
    """Talks to Slurm through its commands."""

    name = "slurm"
    can_exclude = True

    def start(self, job: Job) -> Mapping[str, Any]:
        """Submit ``job``."""
        job.write()
        for name in (PROCESS, EXIT):
            (job.folder / name).unlink(missing_ok=True)
        script = job.folder / BATCH
        write_atomic(script, batch_script(job).encode())
        answer = _ask(["sbatch", "--parsable", *batch_options(job), str(script)])
        return {"job_id": answer.strip().split(";")[0]}

    def find(self, job: Job) -> Mapping[str, Any] | None:
        """By the job's unique name."""
        queued = _ask(["squeue", "--noheader", "--format=%i", f"--name={job.name}"]).split()
        return {"job_id": queued[0]} if queued else None

    def look(self, job: Job, handle: Mapping[str, Any]) -> Look:
        """By exit code, else by the queue, else by what Slurm remembers."""
        if (look := ended(job)) is not None:
            return look
        try:
            state, reason = self._state(str(handle["job_id"]))
        except SilentError as error:
            return ended(job) or Look(phase=Phase.UNKNOWN, detail=str(error))
        if state in _WAITING and (_HELD in reason or reason in _NEVER):
            return Look(phase=Phase.GONE, detail=f"Slurm will not start the job: {reason}")
        if state in _WAITING:
            return Look(phase=Phase.PENDING, detail=f"{state} ({reason})")
        if state in _LIVING:
            return Look(phase=Phase.RUNNING)
        return ended(job) or Look(phase=Phase.GONE, detail=f"Slurm: {state} {reason}".strip())

    def ask_to_stop(self, job: Job, handle: Mapping[str, Any] | None) -> None:
        """Trainers look for the file; a job that still waits in the queue is cancelled."""
        ask_by_file(job, "asked")
        if handle is not None and self.look(job, handle).phase is Phase.PENDING:
            _ask(["scancel", "--state=PENDING", str(handle["job_id"])])

    def kill(self, job: Job, handle: Mapping[str, Any] | None) -> None:
        """Cancel every job of this name and wait until Slurm has none of them."""
        known = None if handle is None else str(handle["job_id"])
        _end(lambda: self._alive(job, known), job.name)

    def end_run(self, run_dir: Path, prefix: str) -> None:
        """Cancel every job and step whose name begins with ``prefix``; wait until none is left."""
        _end_named(prefix)

    def memory_bytes(self, job: Job) -> int | None:
        """Only what happens to run on this host; elsewhere heartbeats tell."""
        here = of_run(job.run_dir)
        return memory_bytes(here) if here else None

    def _alive(self, job: Job, known: str | None) -> list[str]:
        lines = _ask(["squeue", "--noheader", "--format=%i %T", f"--name={job.name}"]).splitlines()
        states = dict(line.split() for line in lines)
        if known and known not in states:
            states[known] = self._state(known)[0]
        return [number for number, state in states.items() if state in _LIVING | _WAITING]

    def _state(self, number: str) -> tuple[str, str]:
        """(state, reason) from the queue, the controller's memory or the accounting."""
        queued = _ask(["squeue", "--noheader", "--states=all", "--format=%T|%r", f"--job={number}"],
                      quiet=True)  # fmt: skip
        if queued.strip():
            state, _, reason = queued.splitlines()[0].partition("|")
            return state, reason
        remembered = _ask(["scontrol", "--oneliner", "show", "job", number], quiet=True)
        for word in remembered.split():
            if word.startswith("JobState="):
                return word.removeprefix("JobState="), ""
        accounted = _ask(["sacct", "-X", "-n", "-P", "-o", "State", "-j", number], quiet=True)
        return (accounted.split() or ["UNKNOWN"])[0].rstrip("+"), "no longer in the queue"


class AllocationLauncher(LocalLauncher):
    """Steps of an allocation that runs already, each under a supervisor on this host."""

    name = "slurm"

    def __init__(self, number: str) -> None:
        self.number = number

    def start(self, job: Job) -> Mapping[str, Any]:
        """Start a step with the nodes that ``job`` asks for.

        Raises LaunchError where the allocation is over, or has fewer nodes.
        """
        found = allocation_of(self.number)
        if found.nodes < job.slurm.nodes:
            raise LaunchError(
                f"allocation {self.number} has {found.nodes} nodes, pool {job.pool} asks for "
                f"{job.slurm.nodes}: give nodes = {found.nodes} in its [pool.slurm], a larger "
                'allocation, or allocation = "new" for a job of its own'
            )
        left = found.seconds_left
        notice = None if left is None else left - job.slurm.notice_seconds
        if left is not None and left <= job.slurm.notice_seconds:
            raise LaunchError(
                f"allocation {self.number} ends in {max(left, 0):.0f} s, and pool {job.pool} is to "
                f"save {job.slurm.notice_seconds:.0f} s before an end: ask for a new allocation, "
                'or give allocation = "new" for a job of its own'
            )
        job.write(spread=step_command(self.number, job), notice_after=notice)
        return self.supervise(job)

    def kill(self, job: Job, handle: Mapping[str, Any] | None) -> None:
        """The steps of this name, then every process of the run on this host."""
        _end_named(job.name)
        super().kill(job, handle)

    def end_run(self, run_dir: Path, prefix: str) -> None:
        """Jobs and steps of the run, in this allocation and any other, and its processes here."""
        _end_named(prefix)
        super().end_run(run_dir, prefix)


def slurm_launcher(asked: Slurm) -> SlurmLauncher | AllocationLauncher:
    """Steps of an allocation where ``asked`` names one, or krzem is started in one that will do."""
    number = asked.allocation
    if number == "auto":
        here = os.environ.get("SLURM_JOB_ID", "")
        elsewhere = asked.partition not in (None, os.environ.get("SLURM_JOB_PARTITION"))
        number = "new" if not here or elsewhere else here
    return SlurmLauncher() if number == "new" else AllocationLauncher(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """What an allocation that runs has."""

    nodes: int
    seconds_left: float | None
    """None where its end is not known."""


def allocation_of(number: str) -> Allocation:
    """The allocation with this job number.

    Raises:
        LaunchError: it does not run, or there is none.
    """
    told = _ask(["squeue", "--noheader", "--states=all", "--format=%T|%D|%e", f"--job={number}"],
                quiet=True).strip()  # fmt: skip
    state, _, rest = told.partition("|")
    if state != "RUNNING":
        raise LaunchError(
            f"allocation {number} {'is ' + state if state else 'is none that Slurm knows'}: "
            'nothing can be started in it; give another, or allocation = "new"'
        )
    nodes, _, end = rest.partition("|")
    left = None
    with contextlib.suppress(ValueError):  # an allocation without a limit has no date here
        left = datetime.fromisoformat(end).timestamp() - time.time()
    return Allocation(nodes=int(nodes), seconds_left=left)


def step_command(number: str, job: Job) -> list[str]:
    """srun with as many tasks as the job has nodes, one on each."""
    s = job.slurm
    words = ["srun", f"--jobid={number}", f"--job-name={job.name}", f"--nodes={s.nodes}",
             f"--ntasks={s.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]  # fmt: skip
    named = {"cpus-per-task": s.cpus, "gpus-per-node": s.gpus}
    return [*words, *(f"--{name}={value}" for name, value in named.items() if value is not None)]


def _end_named(prefix: str) -> None:
    """Cancel every job and step whose name begins with ``prefix``, and wait for their end."""
    _end(lambda: [*_named(prefix), *_named(prefix, "--steps")], prefix)


def _end(living: Callable[[], list[str]], name: str) -> None:
    """Cancel what lives until nothing does; raises LaunchError where it does not end."""
    limit = time.monotonic() + ENDING_SECONDS
    while alive := living():
        if time.monotonic() > limit:
            raise LaunchError(f"Slurm jobs {', '.join(alive)} of {name} do not end")
        _ask(["scancel", "--full", "--signal=KILL", *alive], quiet=True)
        _ask(["scancel", *alive], quiet=True)
        time.sleep(0.2)


def _named(prefix: str, *options: str) -> list[str]:
    lines = _ask(["squeue", "--noheader", *options, "--format=%i|%j"]).splitlines()
    named = (line.strip().partition("|") for line in lines)
    return [number for number, _, name in named if name.startswith(prefix)]


def batch_script(job: Job) -> str:
    """The file for sbatch: how it is submitted, as a comment, then the supervisor."""
    lines = ["#!/bin/bash", f"# {shlex.join(['sbatch', *batch_options(job)])} {BATCH}"]
    lines += [f"export {k}={shlex.quote(v)}" for k, v in sorted(job.variables.items())]
    supervisor = [sys.executable, "-m", "krzem.run.launch.supervise", str(job.folder), "--slurm"]
    return "\n".join([*lines, f"exec {shlex.join(supervisor)}", ""])


def batch_options(job: Job) -> list[str]:
    """Options of sbatch: words of a command line, so that no character in them needs quoting."""
    s = job.slurm
    options = [
        f"--job-name={job.name}",
        f"--nodes={s.nodes}",
        "--ntasks-per-node=1",
        f"--output={str(job.folder / OUTPUT).replace('%', '%%')}",
        "--open-mode=append",
        f"--signal=B:USR1@{max(1, round(s.notice_seconds))}",
        "--requeue" if s.requeue else "--no-requeue",
    ]
    named = {"partition": s.partition, "account": s.account, "qos": s.qos,
             "cpus-per-task": s.cpus, "gpus-per-node": s.gpus}  # fmt: skip
    options += [f"--{name}={value}" for name, value in named.items() if value is not None]
    if job.time_seconds is not None:
        options.append(f"--time={max(1, round(job.time_seconds / 60))}")
    if job.exclude:
        options.append(f"--exclude={','.join(job.exclude)}")
    return [*options, *s.options]


def _ask(command: Sequence[str], *, quiet: bool = False) -> str:
    """What a Slurm command prints; ``quiet`` takes a refusal for an empty answer.

    Raises SilentError where Slurm does not answer, LaunchError where it refuses.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise LaunchError(
            f'{command[0]} is not installed here: a pool with launcher = "slurm" must be run '
            "from a machine where Slurm's commands work"
        ) from None
    except subprocess.TimeoutExpired:
        raise SilentError(f"{command[0]} did not answer in {ANSWER_SECONDS:.0f} s") from None
    if done.returncode == 0:
        return done.stdout
    if any(sign in done.stderr for sign in NO_ANSWER):
        raise SilentError(f"Slurm does not answer: {done.stderr.strip()[-200:]}")
    if quiet:
        return ""
    raise LaunchError(f"`{shlex.join(command)}` was refused: {done.stderr.strip()[-500:]}")
