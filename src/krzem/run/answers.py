"""What the controller asks others, as values: plans and qualifications of pools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from krzem.estimate import Estimate
from krzem.rules import Standing
from krzem.run.clock import DAY, duration


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
