"""Qualification: a pool is measured under its own launcher, and judged against its plan.

With it the services of a real run are complete: pools are planned, measured, asked by the witness.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

from krzem.errors import KrzemError, StorageError
from krzem.hardware import CPU, Device
from krzem.run.attempts import job_name, placed, surroundings
from krzem.run.clock import iso
from krzem.run.contract import ENV_RUN_DIR
from krzem.run.launch.job import Job, JobLauncher
from krzem.run.launch.known import launcher_of
from krzem.run.measure import forget
from krzem.run.parity import check, record
from krzem.run.pool_settings import Pool
from krzem.run.preflight import plan_pool
from krzem.run.probe.judge import Probed, judge, read_ranks
from krzem.run.profile import Profile, cluster_for, profile_text
from krzem.run.services import Qualified, Services
from krzem.run.settings import RunSettings
from krzem.run.side_job import run_side_job
from krzem.run.trainer import is_own
from krzem.run.trial import SPEED, try_steps
from krzem.train.durable import write_atomic

PROBES, PROFILES = "probes", "profiles"
_LATE_SECONDS = 900.0
"""Beyond ten times its planned length: start-up of many processes on a slow file system."""


def qualify_pool(settings: RunSettings, pool: Pool, launcher: JobLauncher, token: int) -> Qualified:
    """Run a probe as a job of the pool and judge it.

    Raises LaunchError where the launcher cannot say what became of it.
    """
    job = probe_job(settings, pool, token)
    failed = _run(settings, job, launcher)
    if failed:
        return Qualified(passed=False, message="not measured", faults=(failed,))
    rule = settings.qualify
    ranks = read_ranks(job.folder)
    if len(ranks) != pool.ranks:
        fault = f"{len(ranks)} of {pool.ranks} devices answered the probe"
        return Qualified(passed=False, message="not measured", faults=(fault,))
    probed = judge(ranks, spread=rule.spread, numerics=rule.numerics)
    faults = [*_left_over(pool, launcher, probed), *_against_plan(settings, pool, probed)]
    unwritten = _write_profile(settings, pool, probed, faults)
    measured, told = dict(probed.measured), ""
    if not faults:
        layout = _layout(settings, pool, measured)
        speed, told = try_steps(settings, pool, launcher, token, layout)
        measured |= {} if speed is None else {SPEED: speed}
    return Qualified(
        passed=not faults,
        message="; ".join(x for x in (probed.verdict, summary(probed.measured), told) if x),
        faults=tuple(faults),
        measured=measured,
        exclude=probed.bad_hosts() if launcher.can_exclude else (),
        evidence={"ranks": list(probed.ranks), "warnings": [*probed.warnings, *unwritten],
                  "devices_at_fault": list(probed.faults)},
    )  # fmt: skip


def _layout(settings: RunSettings, pool: Pool, measured: Mapping[str, float]) -> str | None:
    """What the pool will be planned with, now that it is measured."""
    if not settings.qualify.steps or not is_own(settings, pool):
        return None
    plan = plan_pool(
        settings, pool, tokens_left=settings.goal.tokens, days_left=None, measured=measured
    )
    return plan.layout if pool.layout == "auto" else pool.layout


def probe_job(settings: RunSettings, pool: Pool, token: int) -> Job:
    """The probe as a job; its folder is emptied first."""
    folder = settings.folder / PROBES / f"{pool.name}-{token}"
    forget(folder)
    words = [sys.executable, "-m", "krzem.run.probe.worker", folder, pool.ranks // pool.nodes,
             pool.ranks, settings.qualify.seconds,
             "cpu" if pool.accelerator == CPU else "auto"]  # fmt: skip
    return Job(
        name=job_name(settings, f"probe-{token}"),
        folder=folder,
        run_dir=settings.folder,
        token=token,
        command=[shlex.quote(str(word)) for word in words],
        variables={ENV_RUN_DIR: str(settings.folder), **surroundings(pool)},
        environment=pool.environment,
        **placed(pool),
    )


def _run(settings: RunSettings, job: Job, launcher: JobLauncher) -> str | None:
    """What went wrong, or None.  Time in a queue does not count."""
    allowed = 10 * settings.qualify.seconds + _LATE_SECONDS
    ended = run_side_job(settings, job, launcher, seconds=allowed)
    if ended.code == 0:
        return None
    if ended.code is None:
        return f"the probe could not be run: {ended.said}"
    return f"the probe ended with {ended.code}: {ended.said}"


def _left_over(pool: Pool, launcher: JobLauncher, probed: Probed) -> list[str]:
    """Faults of devices, unless their hosts can be left out and enough others are there."""
    hosts = {r["host"] for r in probed.ranks}
    good = len(hosts) - len(probed.bad_hosts())
    if launcher.can_exclude and good >= 1 and len(hosts) > 1:
        return []
    return list(probed.faults)


def _against_plan(settings: RunSettings, pool: Pool, probed: Probed) -> list[str]:
    """Measured rates against the data sheet; processors have none, and are not judged so."""
    device = _device(pool)
    if device is None:
        return []
    kind = (pool.precision or settings.goal.precision).arithmetic
    kind = "tf32" if kind == "fp32" else kind
    rule = settings.qualify
    compared = (
        (f"{kind} products", probed.measured.get(f"{kind}_flops"), device.peak_flops.get(kind),
         rule.matmul, 1e12, "TFLOP/s"),
        ("memory bandwidth", probed.measured.get("memory_bytes_per_s"),
         device.memory_bytes_per_s, rule.memory, 1e9, "GB/s"),
    )  # fmt: skip
    return [
        f"{what}: {found / unit:,.1f} {name} measured, {found / sheet:.0%} of the data sheet's "
        f"{sheet / unit:,.1f}; {least:.0%} are asked for"
        for what, found, sheet, least, unit, name in compared
        if found is not None and sheet is not None and found < least * sheet
    ]


def _device(pool: Pool) -> Device | None:
    if pool.accelerator == CPU:
        return None
    try:
        return cluster_for(pool, {}).device
    except KrzemError:
        return None


def _write_profile(
    settings: RunSettings, pool: Pool, probed: Probed, faults: list[str]
) -> list[str]:
    """Keep what was measured for plans to come; a disk that does not take it stops no run."""
    text = profile_text(
        Profile(device=pool.accelerator or pool.name, devices=pool.ranks, measured=probed.measured),
        verdict="; ".join(faults) or probed.verdict,
        when=iso(time.time()),
        evidence={"ranks": list(probed.ranks)},
    )
    path = settings.folder / PROFILES / f"{pool.name}.toml"
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, text.encode())
    except (OSError, StorageError) as error:
        return [f"the profile was not kept: {error}"]
    return []


def summary(measured: Mapping[str, float]) -> str:
    """The main numbers of a device in one line."""
    parts = [
        f"{name.removesuffix('_flops')} {value / 1e12:,.3g} TFLOP/s"
        for name, value in measured.items()
        if name.endswith("_flops")
    ]
    parts += [
        f"{name.removesuffix('_bytes_per_s').replace('_', '-')} {value / 1e9:,.3g} GB/s"
        for name, value in measured.items()
        if name.endswith("_bytes_per_s")
    ]
    return ", ".join(parts)


def real_services(**others: Any) -> Services:
    """Every service as it is, but for those that are given by name."""
    real = {
        "launcher": launcher_of,
        "plan": plan_pool,
        "qualify": qualify_pool,
        "witness": check,
        "record_witness": record,
    }
    return Services(**{**real, **others})
