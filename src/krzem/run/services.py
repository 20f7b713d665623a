"""Everything the controller asks of the rest of the world, so that each can be exchanged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from krzem.run.answers import PoolPlan, Qualified
from krzem.run.launch.job import JobLauncher
from krzem.run.rows import Attempt
from krzem.run.settings import Pool, RunSettings
from krzem.run.verdict import Recorded, Verdict, WitnessCheck, WitnessRecord


class PlanPool(Protocol):
    """Plans a pool for what is left of the run."""

    def __call__(
        self,
        settings: RunSettings,
        pool: Pool,
        *,
        tokens_left: float,
        days_left: float | None,
        measured: Mapping[str, float] | None,
    ) -> PoolPlan:
        """``measured`` numbers replace those of the data sheet."""


class QualifyPool(Protocol):
    """Measures a pool under its own launcher."""

    def __call__(
        self, settings: RunSettings, pool: Pool, launcher: JobLauncher, token: int
    ) -> Qualified:
        """``token`` fences a probe that outlives its controller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the controller sees at one look, for a live view."""

    attempt: Attempt
    phase: str
    step: int
    detail: str = ""


def _launcher(pool: Pool) -> JobLauncher:
    from krzem.run.launch.known import launcher_of

    return launcher_of(pool)


def _plan(
    settings: RunSettings,
    pool: Pool,
    *,
    tokens_left: float,
    days_left: float | None,
    measured: Mapping[str, float] | None,
) -> PoolPlan:
    from krzem.run.before import plan_pool

    return plan_pool(
        settings, pool, tokens_left=tokens_left, days_left=days_left, measured=measured
    )


def _qualify(settings: RunSettings, pool: Pool, launcher: JobLauncher, token: int) -> Qualified:
    from krzem.run.qualify import qualify_pool

    return qualify_pool(settings, pool, launcher, token)


def _check(
    settings: RunSettings,
    pool: Pool,
    launcher: JobLauncher,
    token: int,
    *,
    checkpoint: Path,
    layout: str | None,
) -> Verdict:
    from krzem.run.parity import check

    return check(settings, pool, launcher, token, checkpoint=checkpoint, layout=layout)


def _record(
    settings: RunSettings,
    pool: Pool,
    launcher: JobLauncher,
    token: int,
    *,
    checkpoint: Path,
    layouts: Sequence[str | None],
) -> Recorded | None:
    from krzem.run.parity import record

    return record(settings, pool, launcher, token, checkpoint=checkpoint, layouts=layouts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The real ones by default."""

    launcher: Callable[[Pool], JobLauncher] = _launcher
    plan: PlanPool = _plan
    qualify: QualifyPool = _qualify
    witness: WitnessCheck = _check
    record_witness: WitnessRecord = _record
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    """Seconds that never jump, for stalls and waits."""
    on_look: Callable[[Snapshot], None] = field(default=lambda snapshot: None)
    say: Callable[[str], None] = field(default=lambda text: None)
    """Sentences for people who watch."""
    report: Callable[[Path], None] = field(default=lambda folder: None)
    """Writes the report of a finished run."""
