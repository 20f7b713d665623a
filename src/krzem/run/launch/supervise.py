"""The process between a launcher and a trainer: it outlives the controller and keeps the exit code.

``python -m krzem.run.launch.supervise FOLDER`` first writes down who it is, then looks whether its
fencing token is still the newest, and only then starts ``job.sh``.  A controller that comes back
after a crash raises the token first and looks for that record second; so either it finds the
record, or this process finds the newer token and does nothing.  It imports little, to start fast.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from krzem.run.contract import (
    CHECKPOINTS,
    ENV_RESUME,
    EXIT_FENCED,
    EXIT_STOPPED,
    LEFT,
    STOP,
    code_left,
    read_fence,
)
from krzem.run.processes import Identity
from krzem.run.untrusted import read_object
from krzem.train.durable import write_atomic

_PR_SET_PDEATHSIG = 1
EXIT_UNUSABLE = 69
"""The job got other hosts than it needs."""


def main(arguments: list[str]) -> int:
    """``FOLDER [--detach] [--slurm | --notice]``; returns the job's exit code."""
    folder = Path(arguments[0])
    if "--detach" in arguments:
        _detach(folder / "output.log")
    supervisor = _Supervisor(folder, slurm="--slurm" in arguments)
    return supervisor.run()


class _Supervisor:
    def __init__(self, folder: Path, *, slurm: bool) -> None:
        self.folder = folder
        self.slurm = slurm
        self.job = read_object(folder / "job.json")
        self.child: subprocess.Popen[bytes] | None = None
        self.noticed = False

    def run(self) -> int:
        """The whole life of a job."""
        self._forget_earlier_start()
        identity = Identity.of(os.getpid())
        if identity is not None:
            write_atomic(self.folder / "process.json", json.dumps(asdict(identity)).encode())
        if self.slurm and (fault := self._too_few_nodes()):
            return self._leave(EXIT_UNUSABLE, fault)
        newest = read_fence(Path(self.job["run_dir"]))
        if newest > self.job["token"]:
            detail = f"token {self.job['token']} is older than {newest}: not started"
            return self._leave(EXIT_FENCED, detail)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM):
            signal.signal(number, self._on_signal)
        if (left := self.job.get("notice_after")) is not None:
            signal.setitimer(signal.ITIMER_REAL, max(1.0, float(left)))
        code = self._child()
        # torchrun says 1 for whatever its ranks said.
        return self._finish((code_left(self.folder) or code) if code else code)

    def _child(self) -> int:
        command = ["bash", str(self.folder / "job.sh")]
        if self.slurm and int(os.environ.get("SLURM_NNODES", "1")) > 0:
            command = ["srun", "--kill-on-bad-exit=1", *command]
        command = [*self.job.get("spread", []), *command]
        environment = {**os.environ, **self._resume()}
        self.child = subprocess.Popen(command, env=environment, preexec_fn=self._in_child)
        while True:
            try:
                return self.child.wait()
            except InterruptedError:
                continue

    def _in_child(self) -> None:
        """The trainer ends with this process, and not by the notice of Grid Engine."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        _die_with_parent()

    def _too_few_nodes(self) -> str:
        """Slurm may start a job again on the nodes that are left: the layout needs all of them."""
        asked, got = int(self.job.get("nodes", 0)), int(os.environ.get("SLURM_NNODES") or 0)
        if got == 0 or got >= asked:
            return ""
        return f"{got} nodes were given, {asked} are asked for: nothing is started on them"

    def _resume(self) -> dict[str, str]:
        """A job that was queued again goes on from what its earlier start has saved."""
        if int(os.environ.get("SLURM_RESTART_COUNT") or 0) == 0:
            return {}
        from krzem.train.checkpoint.store import latest_good

        good = latest_good(Path(self.job["run_dir"]) / CHECKPOINTS)
        return {} if good is None else {ENV_RESUME: str(good)}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """A notice from the scheduler: trainers look for the file, whatever starts them.

        SIGUSR1 comes before the end of the allotted time.  SIGTERM comes with a preemption or
        with somebody's scancel; then it is Slurm, or the controller, who starts the job again.
        """
        self.noticed = self.slurm and number == signal.SIGUSR1
        if not (self.folder / STOP).exists():
            write_atomic(self.folder / STOP, json.dumps({"why": "preempted"}).encode())

    def _forget_earlier_start(self) -> None:
        """A job that Slurm queued again runs in the folder of its earlier start."""
        (self.folder / "exit.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder / LEFT, ignore_errors=True)
        if self._why_stopped() == "preempted":
            (self.folder / STOP).unlink(missing_ok=True)

    def _why_stopped(self) -> str:
        try:
            return str(json.loads((self.folder / STOP).read_bytes())["why"])
        except (OSError, ValueError, KeyError):
            return ""

    def _finish(self, code: int) -> int:
        preempted = code == EXIT_STOPPED and self._why_stopped() == "preempted"
        if preempted and self.noticed and self.job["requeue"]:
            number = os.environ.get("SLURM_JOB_ID", "")
            if subprocess.run(["scontrol", "requeue", number], check=False).returncode == 0:
                return code  # no exit code is left: this job is not over
        return self._leave(code, "preempted" if preempted else "")

    def _leave(self, code: int, detail: str) -> int:
        value = {"code": code, "detail": detail}
        write_atomic(self.folder / "exit.json", json.dumps(value).encode())
        return code if code >= 0 else 128 - code


def _detach(log: Path) -> None:
    """Become a process of its own session that no other waits for."""
    if os.fork():
        os._exit(0)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, target in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(source, target)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
