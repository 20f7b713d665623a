"""Whether a checkpoint is the same run on another pool: the place where the witness is asked."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from krzem.run.launch.job import JobLauncher
from krzem.run.pool_settings import Pool
from krzem.run.settings import RunSettings


class Agreement(enum.StrEnum):
    """What a check found."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_CHECKED = "not checked"
    """There is nothing to check against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of a witness check."""

    agreement: Agreement
    message: str
    departs: tuple[str, ...] = ()
    """Layers and operators that disagree, the first one first."""
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What came of recording a witness."""

    recorded: bool
    message: str


class WitnessCheck(Protocol):
    """Asks the witness, before a pool goes on with a checkpoint that another pool made."""

    def __call__(
        self,
        settings: RunSettings,
        pool: Pool,
        launcher: JobLauncher,
        token: int,
        *,
        checkpoint: Path,
        layout: str | None,
    ) -> Verdict:
        """Under the pool's launcher, in its layout and arithmetic."""


class WitnessRecord(Protocol):
    """Records the witness of a checkpoint on the pool that made it, before the run leaves it."""

    def __call__(
        self,
        settings: RunSettings,
        pool: Pool,
        launcher: JobLauncher,
        token: int,
        *,
        checkpoint: Path,
        layouts: Sequence[str | None],
    ) -> Recorded | None:
        """``layouts`` of this pool and of those to come, None where the trainer chooses.

        None where the checkpoint has one, or can have none.
        """
