"""Starting attempts, and finding those that an earlier controller started.

The order is what makes it safe at every instant: the attempt and its token are in the ledger
before the fence file says so, the fence before anything is started, and the supervisor that is
started writes down who it is before it looks at the fence.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krzem.errors import LaunchError
from krzem.run.contract import (
    ENV_LAYOUT,
    ENV_PRECISION,
    ENV_RESUME,
    FENCE,
    attempt_folder,
    environment_of,
    read_fence,
)
from krzem.run.launch.job import OUTPUT, Job, JobLauncher, SilentError
from krzem.run.launch.words import shell_words
from krzem.run.ledger import Ledger
from krzem.run.pool_settings import LOCAL, SITE, SLURM, Pool
from krzem.run.rows import Attempt, Cause
from krzem.run.services import Services
from krzem.run.settings import RunSettings
from krzem.run.stored import Good
from krzem.run.trainer import command_of
from krzem.run.untrusted import BadInputError, open_bounded, printable
from krzem.train.durable import write_atomic

_LOG_TAIL = 4000
FIND_SECONDS = 3.0
"""A supervisor that was started just before its controller died shows up within this time."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A running attempt with what it takes to deal with it."""

    attempt: Attempt
    job: Job
    handle: Mapping[str, Any]
    launcher: JobLauncher

    def log_tail(self) -> str:
        """The end of what the attempt printed."""
        try:
            with os.fdopen(open_bounded(self.job.folder / OUTPUT), "rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _LOG_TAIL))
                return file.read().decode(errors="replace")
        except (OSError, BadInputError):
            return ""

    def last_words(self) -> str:
        """The last line that the attempt printed: with most programs, why it ended."""
        said = [line for line in self.log_tail().splitlines() if line.strip()]
        return printable(said[-1].strip())[:300] if said else ""


def raise_fence(ledger: Ledger, token: int) -> None:
    """Tell every older attempt that it may not commit any more."""
    try:
        newest = read_fence(ledger.folder)
    except BadInputError:
        newest = -1
    if newest < token:
        write_atomic(ledger.folder / FENCE, json.dumps({"token": token}).encode())


def start(
    settings: RunSettings,
    services: Services,
    ledger: Ledger,
    pool: Pool,
    *,
    good: Good | None,
    layout: str | None,
    exclude: Sequence[str] = (),
) -> Started | None:
    """Start a new attempt; None, with the attempt closed, where the launcher could not.

    Nothing else of this run may be alive.
    """
    launcher = services.launcher(pool)
    from_step = good.step if good else 0
    with ledger.writing():
        attempt = ledger.new_attempt(pool.name, launcher.name, from_step)
        ledger.event("attempt", f"attempt {attempt.id} starts on {pool.name} from step "
                     f"{from_step:,}", pool=pool.name, attempt=attempt.id,
                     evidence={"token": attempt.token, "layout": layout})  # fmt: skip
    raise_fence(ledger, attempt.token)
    job = job_of(settings, pool, attempt, layout, good, exclude)
    try:
        handle = launcher.start(job)
    except SilentError as error:
        # It may have been submitted all the same: close it behind a newer token.
        close_unstarted(ledger, attempt, Cause.ABORTED, str(error))
        return None
    except LaunchError as error:
        close_unstarted(ledger, attempt, Cause.NOT_STARTED, str(error))
        return None
    ledger.attempt_runs(attempt.id, handle)
    return Started(attempt=attempt, job=job, handle=handle, launcher=launcher)


def adopt(
    settings: RunSettings, services: Services, ledger: Ledger, attempt: Attempt
) -> Started | None:
    """The attempt that an earlier controller left; None, with it closed, where it never started."""
    pool = settings.pool(attempt.pool)
    launcher = services.launcher(pool)
    job = job_of(settings, pool, attempt)
    handle = attempt.handle or _find(services, launcher, job)
    if handle is None:
        raise_fence(ledger, ledger.next_token())
        launcher.kill(job, launcher.find(job))
        close_unstarted(ledger, attempt, Cause.ABORTED, "the controller died while starting it")
        return None
    with ledger.writing():
        if attempt.handle is None:
            ledger.attempt_runs(attempt.id, handle)
        ledger.event("adopted", f"controller {ledger.epoch} goes on with attempt {attempt.id}",
                     pool=pool.name, attempt=attempt.id, evidence=handle)  # fmt: skip
    return Started(attempt=attempt, job=job, handle=handle, launcher=launcher)


def _find(services: Services, launcher: JobLauncher, job: Job) -> Mapping[str, Any] | None:
    limit = services.clock() + FIND_SECONDS
    while (handle := launcher.find(job)) is None and services.clock() < limit:
        services.sleep(0.05)
    return handle


def close_unstarted(ledger: Ledger, attempt: Attempt, cause: Cause, detail: str) -> None:
    """Close an attempt of which nothing runs, and fence it off in case something yet will."""
    with ledger.writing():
        token = ledger.next_token()
        ledger.attempt_ended(attempt.id, cause, detail)
        ledger.event("not started", detail, pool=attempt.pool, attempt=attempt.id)
    raise_fence(ledger, token)


def job_of(
    settings: RunSettings,
    pool: Pool,
    attempt: Attempt,
    layout: str | None = None,
    good: Good | None = None,
    exclude: Sequence[str] = (),
) -> Job:
    """The job of an attempt: the same for the controller that starts it and one that finds it."""
    run_dir = settings.folder
    precision = pool.precision or settings.goal.precision
    values = {
        "attempt": attempt.id,
        "layout": layout or "",
        "pool": pool.name,
        "precision": precision.value,
        "ranks": pool.ranks,
        "run_dir": run_dir,
        "run_toml": settings.path,
        "token": attempt.token,
    }
    variables = environment_of(run_dir, attempt.id, attempt.token)
    variables[ENV_PRECISION] = precision.value
    if layout:
        variables[ENV_LAYOUT] = layout
    if good is not None:
        variables[ENV_RESUME] = str(good.folder)
    return Job(
        name=job_name(settings, f"{attempt.id:04d}"),
        folder=attempt_folder(run_dir, attempt.id),
        run_dir=run_dir,
        token=attempt.token,
        command=shell_words(command_of(settings, pool, layout), pool, values),
        variables=variables | surroundings(pool),
        environment=pool.environment,
        **placed(pool),
        time_seconds=pool.limits.time_seconds,
        exclude=exclude,
    )


def placed(pool: Pool) -> dict[str, Any]:
    """Where a job of ``pool`` runs, as fields of a :class:`Job`."""
    other = pool.launcher not in (LOCAL, SLURM, SITE)
    return {"pool": pool.name, "launcher": pool.launcher, "slurm": pool.slurm,
            "scheduler": pool.scheduler if other else None}  # fmt: skip


def job_prefix(folder: Path) -> str:
    """What the names of all jobs of the run in ``folder`` begin with."""
    digest = hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:8]
    return f"krzem-{digest}-"


def job_name(settings: RunSettings, what: str) -> str:
    """A name that no other job of any run has."""
    return f"{job_prefix(settings.folder)}{what}"


def surroundings(pool: Pool) -> dict[str, str]:
    """Thread limits and the pool's own variables."""
    threads = pool.limits.threads
    limits = {} if threads is None else dict.fromkeys(_THREADS, str(threads))
    return limits | dict(pool.environment.variables)
