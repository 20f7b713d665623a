"""What the planner expects of a run: the trainer shows it and computes none of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from krzem.estimate import Estimate
from krzem.layout.layout import Layout
from krzem.train.config import ModelSpec
from krzem.train.settings import TrainSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A planned layout with its step time and memory, on a device that is known."""

    layout: Layout
    step_seconds: Estimate
    """Of a step with the full global batch."""
    tokens_per_step: int
    """Of such a step."""
    memory_bytes: Estimate
    """Peak on the fullest rank."""
    capacity_bytes: float
    """Memory of one device."""
    peak_flops: float
    """Of one device in this run's arithmetic, FLOP/s: MFU is measured against it."""
    basis: str
    """What was planned for, and from what: a data sheet or measurements."""


class Planner(Protocol):
    """The planner, as the command hands it to the trainer."""

    def __call__(
        self, settings: TrainSettings, spec: ModelSpec, layout: Layout | None, ranks: int | None
    ) -> Forecast:
        """The forecast of ``layout``, or of the best that the trainer runs where it is None.

        ``ranks`` None means as many as the run file's cluster has.

        Raises:
            UnknownFactError: no device is named, or something about it is not published.
            KrzemError: the planner refuses the run.
        """
