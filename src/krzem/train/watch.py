"""Notices when a run goes wrong: numbers that are none, and spikes of the loss."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from krzem.train.engine import StepResult
from krzem.train.parallel.held import Held


@dataclass(slots=True)
class Watch:
    """Looks at each step; keeps the last losses for comparison."""

    span: int = 64
    """Steps that a loss is compared with."""
    factor: float = 8.0
    """Median absolute deviations above the median from which a loss is a spike."""
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    def spike(self, step: int, loss: float) -> str:
        """One sentence where ``loss`` stands out from the last ones; nothing where it does not."""
        sentence = self._judged(step, loss)
        self._losses.append(loss)
        return sentence

    def _judged(self, step: int, loss: float) -> str:
        if len(self._losses) < self.span // 4:
            return ""
        middle = statistics.median(self._losses)
        spread = statistics.median(abs(x - middle) for x in self._losses)
        limit = middle + self.factor * max(spread, 0.01 * abs(middle))
        if loss <= limit:
            return ""
        return (
            f"step {step}: loss {loss:.4f} is a spike: the median of the last "
            f"{len(self._losses)} is {middle:.4f}"
        )


def is_finite(result: StepResult) -> bool:
    """Whether the losses and the gradient norm are numbers."""
    return all(map(math.isfinite, [*result.losses.values(), result.gradient_norm]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """What on one rank is no number, as names of parameters."""

    parameters: tuple[str, ...]
    own_loss: bool
    """The loss of this rank's own tokens."""
    gradients: tuple[str, ...]
    """After they were summed over ranks."""

    @property
    def distance(self) -> int:
        """From the cause: parameters break losses, and sums carry these to all ranks."""
        return 0 if self.parameters else 1 if self.own_loss else 2 if self.gradients else 3


def broken(held: Sequence[Held], *, own_loss: bool) -> Broken:
    """What is no number among this rank's parameters and gradients."""
    return Broken(
        parameters=tuple(h.name for h in held if _is_broken(h.part)),
        own_loss=own_loss,
        gradients=tuple(h.name for h in held if h.grad is not None and _is_broken(h.grad)),
    )


def blame(ranks: Sequence[Broken]) -> str:
    """Where it began: the parameter or gradient, and the rank."""
    rank, found = min(enumerate(ranks), key=lambda item: item[1].distance)
    names = found.parameters or found.gradients
    what = "the parameter" if found.parameters else "the gradient of"
    return f"first in {what} {names[0]} on rank {rank}" if names else "no gradient is to blame"


def _is_broken(values: Tensor) -> bool:
    return not bool(values.isfinite().all().item())
