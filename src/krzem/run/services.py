"""What the controller asks of the rest of the world, and the answers as values."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from krzem.estimate import Estimate
from krzem.rules import Standing
from krzem.run.clock import DAY, duration
from krzem.run.launch.job import JobLauncher
from krzem.run.pool_settings import Pool
from krzem.run.rows import Attempt
from krzem.run.settings import RunSettings
from krzem.run.verdict import WitnessCheck, WitnessRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """What is expected of a pool for the tokens that are left."""

    pool: str
    tokens_per_s: Estimate | None
    """Of the whole pool; None where nobody can say."""
    basis: str
    """Where that comes from: plan, stated, or why it is unknown."""
    layout: str | None = None
    days: Estimate | None = None
    """Of wall clock, for what is left."""
    in_time: float | None = None
    """Chance of keeping the deadline; None without a deadline or without a forecast."""
    wall: str | None = None
    """The resource that binds."""
    refused: str | None = None
    """Why the pool cannot take the run."""
    warnings: tuple[str, ...] = ()
    rules: Standing | None = None
    """What trade rules say of it today; None where its country is not stated."""

    @property
    def sentence(self) -> str:
        """What is expected, and from what."""
        if self.tokens_per_s is None:
            return self.basis
        x = self.tokens_per_s
        parts = [f"{x.mid:,.0f} ({x.low:,.0f} to {x.high:,.0f}) tokens/s"]
        if self.days is not None:
            parts.append(f"{duration(self.days.mid * DAY)} for what is left")
        if self.in_time is not None:
            parts.append(f"{self.in_time:.0%} chance of meeting the deadline")
        if self.wall is not None:
            parts.append(f"wall: {self.wall}")
        return f"{self.basis}: {', '.join(parts)}"

    def as_dict(self) -> dict[str, Any]:
        """For the ledger and ``--json``."""
        return {
            "pool": self.pool,
            "tokens_per_s": self.tokens_per_s and self.tokens_per_s.as_dict(),
            "basis": self.basis,
            "layout": self.layout,
            "days": self.days and self.days.as_dict(),
            "in_time": self.in_time,
            "wall": self.wall,
            "refused": self.refused,
            "warnings": list(self.warnings),
            "rules": self.rules and asdict(self.rules),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Qualified:
    """What the measurement of a pool showed."""

    passed: bool
    message: str
    faults: tuple[str, ...] = ()
    measured: Mapping[str, float] = field(default_factory=dict)
    """Numbers in base units by their names in ``Cluster.measured``."""
    exclude: tuple[str, ...] = ()
    """Hosts that are not to be used."""
    evidence: Mapping[str, Any] = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything the controller asks of the rest of the world, so that each can be exchanged."""

    launcher: Callable[[Pool], JobLauncher]
    plan: PlanPool
    qualify: QualifyPool
    witness: WitnessCheck
    record_witness: WitnessRecord
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    """Seconds that never jump, for stalls and waits."""
    on_look: Callable[[Snapshot], None] = field(default=lambda snapshot: None)
    say: Callable[[str], None] = field(default=lambda text: None)
    """Sentences for people who watch."""
    report: Callable[[Path], None] = field(default=lambda folder: None)
    """Writes the report of a finished run."""
