"""A job that is not the trainer: it is started, waited for, and nothing of it is left behind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from krzem.errors import LaunchError
from krzem.run.launch.job import OUTPUT, Job, JobLauncher, Look, Phase, SilentError
from krzem.run.settings import RunSettings

_SAID = 600
"""Characters kept of what it printed."""
_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How an side job ended."""

    code: int | None
    """None: it was not started, or not waited for any longer."""
    said: str
    """The end of what it printed, or why there is none."""


def run_side_job(
    settings: RunSettings, job: Job, launcher: JobLauncher, *, seconds: float, queued: bool = False
) -> Ended:
    """Run ``job`` for at most ``seconds``; time in a queue counts where ``queued``.

    It waits in a queue for no longer than its pool allows (``limits.queue``).  A job that its
    scheduler lost says nothing of the pool: it is started again.
    Raises LaunchError where the launcher cannot say what became of it.
    """
    look: Look | None = None
    for _ in range(_TRIES):
        try:
            handle = launcher.start(job)
        except SilentError:
            raise
        except LaunchError as error:
            return Ended(code=None, said=str(error))
        look = _wait(settings, job, launcher, handle, seconds, queued)
        if look is None:
            return Ended(code=None, said=f"it has not ended after {seconds:,.0f} s")
        if look.phase is Phase.PENDING:
            said = f"it waited in the queue of {job.pool} for longer than limits.queue allows"
            return Ended(code=None, said=f"{said}: {look.detail or 'no reason is given'}")
        if look.phase is not Phase.GONE:
            break
    assert look is not None
    said = _output(job) or look.detail or "it says nothing"
    return Ended(code=-1 if look.exit_code is None else look.exit_code, said=said)


def _wait(
    settings: RunSettings,
    job: Job,
    launcher: JobLauncher,
    handle: Mapping[str, Any],
    seconds: float,
    queued: bool,
) -> Look | None:
    """The last look at the job, pending where it waits for too long; None where its time ran out
    first."""
    counted = (Phase.RUNNING, Phase.PENDING) if queued else (Phase.RUNNING,)
    patience = next((p.limits.queue_seconds for p in settings.pools if p.name == job.pool), None)
    ran = waited = 0.0
    try:
        while (look := launcher.look(job, handle)).phase not in (Phase.ENDED, Phase.GONE):
            ran += settings.recovery.look_every if look.phase in counted else 0.0
            waited += settings.recovery.look_every if look.phase is Phase.PENDING else 0.0
            if patience is not None and waited > patience:
                return look
            if ran > seconds:
                return None
            time.sleep(settings.recovery.look_every)
    finally:
        launcher.kill(job, handle)
    return look


def _output(job: Job) -> str:
    try:
        return (job.folder / OUTPUT).read_text(encoding="utf-8", errors="replace")[-_SAID:].strip()
    except OSError:
        return ""
