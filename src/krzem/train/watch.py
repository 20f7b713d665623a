"""Notices when a run goes wrong: numbers that are none, and spikes of the loss."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

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


def broken_gradients(held: Sequence[Held]) -> list[str]:
    """Names of the parameters whose gradient on this rank holds a value that is no number."""
    return [h.name for h in held if h.grad is not None and not bool(h.grad.isfinite().all().item())]
