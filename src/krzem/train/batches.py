"""Sequences per step over a run: constant, or growing with the tokens seen.

The size of a step is a function of the samples before it and of nothing else: neither layout nor
rank count nor the number of steps or restarts enter, so that a run resumed inside its ramp takes
the same samples in the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from krzem.errors import GoalError


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """``full`` sequences a step; before ``ramp_samples`` samples fewer, from ``first`` on.

    The ramp has ``ceil((full - first) / by)`` stages of equally many samples; a stage ends with
    the first step that reaches its end.
    """

    full: int
    first: int = 0
    """Sequences of the first step; 0 means no ramp."""
    by: int = 0
    """Sequences by which a stage is larger than the one before; 0 means ``first``."""
    ramp_samples: int = 0
    """Samples over which the batch grows."""

    def __post_init__(self) -> None:
        if self.full < 1:
            raise GoalError(f"a global batch of {self.full} sequences is no batch")
        if bool(self.first) != bool(self.ramp_samples) or (self.by and not self.first):
            raise GoalError(
                "a batch ramp needs schedule.ramp_from (sequences of the first step) and "
                "schedule.ramp_tokens (tokens over which it grows); schedule.ramp_by is the stride"
            )
        if self.first > self.full:
            raise GoalError(
                f"the batch ramp begins with {self.first:,} sequences, more than "
                f"goal.global_batch = {self.full:,}"
            )

    @property
    def stages(self) -> int:
        """Sizes before the full one."""
        return -(-(self.full - self.first) // (self.by or self.first)) if self.first else 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every size that occurs, in order."""
        return (*(self.first + i * (self.by or self.first) for i in range(self.stages)), self.full)

    def at(self, sample: int) -> int:
        """Sequences of the step whose first sample is ``sample``."""
        if sample >= self.ramp_samples or not self.stages:
            return self.full
        return self.sizes[sample * self.stages // self.ramp_samples]

    def steps(self, start: int, stop: int) -> int:
        """Steps from sample ``start`` until ``stop`` samples are reached, the last one whole."""
        steps, sample = 0, start
        for number, size in enumerate(self.sizes):
            end = stop
            if number < self.stages:
                end = min(stop, -(-(number + 1) * self.ramp_samples // self.stages))
            if sample < end:
                taken = -(-(end - sample) // size)
                steps, sample = steps + taken, sample + taken * size
        return steps
