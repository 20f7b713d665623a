"""One thing to run on a pool, written down before it is started."""

from __future__ import annotations

import enum
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from krzem.errors import LaunchError
from krzem.run.contract import STOP
from krzem.run.pool_settings import Environment, Scheduler, Slurm
from krzem.run.untrusted import BadInputError, read_object, whole, words
from krzem.train.durable import storing, write_atomic

JOB = "job.json"
PROCESS = "process.json"
EXIT = "exit.json"
SCRIPT = "job.sh"
OUTPUT = "output.log"
HOSTS = "hosts"
"""The hosts of a job, the first one first, as its batch script found them."""


class Phase(enum.StrEnum):
    """What a launcher knows of a job."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    GONE = "gone"
    """Not running, and it left no exit code."""
    UNKNOWN = "unknown"
    """Whoever would know does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at a job."""

    phase: Phase
    exit_code: int | None = None
    """Negative: the number of the signal that ended it."""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to run and how; enough to start it, and to find it after the controller's death."""

    name: str
    """Unique among all jobs of all runs."""
    folder: Path
    run_dir: Path
    token: int
    command: Sequence[str]
    """Words as the shell is to see them: already quoted."""
    variables: Mapping[str, str] = field(default_factory=dict)
    environment: Environment = field(default_factory=Environment)
    slurm: Slurm = field(default_factory=Slurm)
    time_seconds: float | None = None
    exclude: Sequence[str] = ()
    """Hosts not to be used."""
    pool: str = ""
    launcher: str = "local"
    scheduler: Scheduler | None = None
    """How other schedulers than Slurm are asked."""

    @property
    def nodes(self) -> int:
        """Hosts that it runs on."""
        return self.slurm.nodes if self.scheduler is None else self.scheduler.nodes

    def write(self, spread: Sequence[str] = (), notice_after: float | None = None) -> None:
        """Put ``job.json`` and the script into the job's folder.

        ``spread`` is the command that starts another once on each host of the job; after
        ``notice_after`` seconds it is asked to save and stop.
        """
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        value = {"name": self.name, "run_dir": str(self.run_dir), "token": self.token,
                 "requeue": self.slurm.requeue, "pool": self.pool, "launcher": self.launcher,
                 "spread": list(spread), "nodes": self.nodes,
                 "notice_after": notice_after}  # fmt: skip
        write_atomic(self.folder / JOB, json.dumps(value).encode())
        write_atomic(self.folder / SCRIPT, self.script().encode())

    def script(self) -> str:
        """What is run, as a shell script that can also be read, and run by hand."""
        command = " ".join(self.command)
        if self.environment.container is not None:
            command = self.environment.container.replace("{command}", command)
        # What the supervisor has set stands: it may know a newer checkpoint to begin from.
        exports = [
            f"export {k}=${{{k}-{shlex.quote(v)}}}" for k, v in sorted(self.variables.items())
        ]
        modules = self.environment.modules
        load = [
            "command -v module >/dev/null || . /etc/profile",
            f"module load {shlex.join(modules)}",
        ]
        if self.scheduler is not None:
            hosts = shlex.quote(str(self.folder / HOSTS))
            exports.append(
                f"export KRZEM_NODES={self.nodes} KRZEM_JOB={shlex.quote(self.name)} "
                f"KRZEM_HOSTS={hosts} KRZEM_HEAD=$(head -n 1 {hosts})"
            )
        lines = ["#!/bin/bash", "set -e", *(load if modules else []), *self.environment.setup]
        return "\n".join([*lines, *exports, f"exec {command}", ""])


class SilentError(LaunchError):
    """A scheduler that does not answer; jobs go on without it."""


class JobLauncher(Protocol):
    """How jobs are started, found, watched and ended."""

    name: str
    can_exclude: bool
    """Whether single hosts can be left out."""

    def start(self, job: Job) -> Mapping[str, Any]:
        """Start it; what is returned finds it again.  Raises LaunchError."""

    def find(self, job: Job) -> Mapping[str, Any] | None:
        """What :meth:`start` would have returned, if the job was in fact started."""

    def look(self, job: Job, handle: Mapping[str, Any]) -> Look:
        """What has become of it."""

    def ask_to_stop(self, job: Job, handle: Mapping[str, Any] | None) -> None:
        """Ask it to save and exit."""

    def kill(self, job: Job, handle: Mapping[str, Any] | None) -> None:
        """End it and return when nothing of it lives; LaunchError if that cannot be made sure."""

    def end_run(self, run_dir: Path, prefix: str) -> None:
        """End every job of a run, whatever its number; their names begin with ``prefix``."""

    def memory_bytes(self, job: Job) -> int | None:
        """Memory that it holds on this host; None where this cannot be seen from here."""


def ask_by_file(job: Job, why: str) -> None:
    """The stop request every trainer looks for."""
    job.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(job.folder / STOP, json.dumps({"why": why}).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON file; None where it is not there, or is something else."""
    try:
        return read_object(path)
    except (OSError, BadInputError):
        return None


def ended(job: Job) -> Look | None:
    """The exit code that the supervisor left."""
    value = read_json(job.folder / EXIT)
    if value is None:
        return None
    try:
        code = whole(value, "code", -255, 255)
        detail = words(value, "detail") if "detail" in value else ""
    except BadInputError as error:
        return Look(phase=Phase.ENDED, exit_code=1, detail=f"its {EXIT} cannot be read: {error}")
    return Look(phase=Phase.ENDED, exit_code=code, detail=detail)


def as_json(value: Any) -> dict[str, Any]:
    """A small dataclass as a handle."""
    return asdict(value)
