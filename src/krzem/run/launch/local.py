"""Processes on this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from krzem.errors import LaunchError
from krzem.run.launch.job import EXIT, PROCESS, Job, Look, Phase, ask_by_file, ended, read_json
from krzem.run.processes import Identity, end_all, memory_bytes, of_run

RECORD_SECONDS = 20.0
"""A supervisor writes down who it is within this time, or something is badly wrong."""


class LocalLauncher:
    """Starts a supervisor in a session of its own: it lives on if the controller dies."""

    name = "local"
    can_exclude = False

    def start(self, job: Job) -> Mapping[str, Any]:
        """Start ``job`` and wait for the record of its process."""
        job.write()
        return self.supervise(job)

    def supervise(self, job: Job) -> Mapping[str, Any]:
        """Start the supervisor of a job that is written down."""
        for name in (PROCESS, EXIT):
            (job.folder / name).unlink(missing_ok=True)
        command = [sys.executable, "-m", "krzem.run.launch.supervise", str(job.folder), "--detach"]
        environment = {**os.environ, **job.variables}
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if done.returncode:
            raise LaunchError(
                f"{job.name} could not be started: {done.stderr.decode(errors='replace')[-500:]}"
            )
        limit = time.monotonic() + RECORD_SECONDS
        while (handle := self.find(job)) is None:
            if time.monotonic() > limit:
                raise LaunchError(f"{job.name} left no record in {job.folder / PROCESS}")
            time.sleep(0.005)
        return handle

    def find(self, job: Job) -> Mapping[str, Any] | None:
        """The record that the supervisor left."""
        found = read_json(job.folder / PROCESS)
        with contextlib.suppress(KeyError, ValueError, TypeError):
            return found and {**found, **asdict(Identity.from_json(found))}
        return None

    def look(self, job: Job, handle: Mapping[str, Any]) -> Look:
        """By exit code, else by whether the supervisor lives."""
        if (look := ended(job)) is not None:
            return look
        if Identity.from_json(handle).alive:
            return Look(phase=Phase.RUNNING)
        # It may have left its exit code between the two looks.
        return ended(job) or Look(phase=Phase.GONE, detail="the process is gone, with no exit code")

    def ask_to_stop(self, job: Job, handle: Mapping[str, Any] | None) -> None:
        """Trainers look for the file."""
        ask_by_file(job, "asked")

    def kill(self, job: Job, handle: Mapping[str, Any] | None) -> None:
        """Every process of the run, the supervisor's children and orphans included."""
        end_all(job.run_dir)

    def end_run(self, run_dir: Path, prefix: str) -> None:
        """Every process of the run on this host."""
        end_all(run_dir)

    def memory_bytes(self, job: Job) -> int | None:
        """All processes of the run."""
        return memory_bytes(of_run(job.run_dir))
