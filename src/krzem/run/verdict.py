"""Whether a checkpoint is the same run on another pool: the place where the witness is asked."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krzem.run.settings import Pool


class Agreement(enum.StrEnum):
    """What a check found."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_CHECKED = "not checked"
    """There is nothing to check against, or nothing that could check it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The outcome of a witness check."""

    agreement: Agreement
    message: str
    departs: tuple[str, ...] = ()
    """Layers and operators that disagree, the first one first."""
    evidence: Mapping[str, Any] = field(default_factory=dict)


WitnessCheck = Callable[[Path, Pool], Verdict]
"""``witness_check(checkpoint, pool) -> Verdict``, run before a pool goes on with a checkpoint."""


def witness_check(checkpoint: Path, pool: Pool) -> Verdict:
    """The default check: says openly that nothing was compared."""
    return Verdict(
        agreement=Agreement.NOT_CHECKED,
        message=f"no witness check is set up: {checkpoint.name} is not compared on {pool.name}",
    )
