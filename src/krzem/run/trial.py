"""A few steps of the trainer itself on a pool: what a plan of it is worth.

A probe measures what a device can do; a step of a small model on a few threads reaches a share of
it that no rate tells.  The trial is the trainer as it will run (command, layout, precision,
threads, sizes), in a folder of its own, ended after some steps: only its speed is kept.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from dataclasses import replace

from krzem.errors import LaunchError
from krzem.run.attempts import job_name, job_of
from krzem.run.contract import ENV_RUN_DIR, environment_of
from krzem.run.history import Metrics
from krzem.run.launch.job import Job, JobLauncher, Phase, SilentError
from krzem.run.pool_settings import Pool
from krzem.run.rows import Attempt
from krzem.run.settings import RunSettings
from krzem.run.trainer import is_own

TRIALS = "trials"
SPEED = "trained_tokens_per_s"
"""Name of what a trial measures: tokens/s of the whole pool."""
_WARM_UP = 2
_FEWEST = 3
_START_SECONDS = 600.0
"""Until the first step: a large model loads and compiles."""


def try_steps(
    settings: RunSettings, pool: Pool, launcher: JobLauncher, token: int, layout: str | None
) -> tuple[float | None, str]:
    """Tokens/s of some steps on ``pool``, and a sentence; None where there were too few.

    Raises SilentError where the launcher does not answer.
    """
    steps = settings.qualify.steps
    if not steps or not is_own(settings, pool):
        return None, ""
    job = _job(settings, pool, token, layout)
    try:
        speeds, why = _measured(settings, job, launcher, steps + _WARM_UP)
    except SilentError:
        raise
    except LaunchError as error:
        return None, f"no trial steps: {error}"
    finally:
        shutil.rmtree(job.run_dir, ignore_errors=True)
    if len(speeds) < _FEWEST:
        return None, f"{len(speeds)} trial steps were done, too few to tell a speed: {why}"
    speed = statistics.median(speeds)
    return speed, f"{len(speeds)} steps of the trainer itself: {speed:,.0f} tokens/s"


def _job(settings: RunSettings, pool: Pool, token: int, layout: str | None) -> Job:
    place = settings.folder / TRIALS / f"{pool.name}-{token}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    attempt = Attempt(
        id=1, pool=pool.name, token=token, launcher=pool.launcher, handle=None, state="starting",
        from_step=0, at=0.0, first_step_at=None, ended_at=None, exit_code=None, cause=None,
        detail=None, last_step=None,
    )  # fmt: skip
    job = job_of(replace(settings, folder=place), pool, attempt, layout)
    variables = {**job.variables, **environment_of(place, 1, token), ENV_RUN_DIR: str(place)}
    return replace(job, name=job_name(settings, f"trial-{token}"), variables=variables)


def _measured(
    settings: RunSettings, job: Job, launcher: JobLauncher, steps: int
) -> tuple[list[float], str]:
    """Speeds of the steps after the warm-up; and why there were no more of them."""
    metrics = Metrics(job.run_dir)
    handle = launcher.start(job)
    ran, why = 0.0, "their time was over"
    try:
        while len(metrics.history.kept) < steps:
            look = launcher.look(job, handle)
            metrics.read()
            if look.phase in (Phase.ENDED, Phase.GONE):
                why = look.detail or f"the trainer ended with {look.exit_code}"
                break
            ran += settings.recovery.look_every if look.phase is Phase.RUNNING else 0.0
            begun = len(metrics.history.kept) > _WARM_UP
            if ran > (settings.qualify.seconds if begun else 0.0) + _START_SECONDS:
                break
            time.sleep(settings.recovery.look_every)
    finally:
        with contextlib.suppress(OSError):
            launcher.kill(job, handle)
    return [r.tokens_per_s for r in metrics.history.kept[_WARM_UP:]], why
