"""Notices when a run goes wrong: numbers that are none, spikes, collapsed routers."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from krzem.train.engine import StepResult
from krzem.train.optim.balancing import ExpertLoad
from krzem.train.parallel.held import Held

_IDLE = 0.5
"""Share of experts without a token, from which a router counts as collapsed."""


@dataclass(slots=True)
class Watch:
    """Looks at each step; keeps the last losses for comparison."""

    span: int = 64
    """Steps that a loss is compared with."""
    factor: float = 8.0
    """Median absolute deviations above the median from which a loss is a spike."""
    _losses: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    def faults(self, step: int, result: StepResult, loads: Sequence[ExpertLoad]) -> list[str]:
        """One sentence for each thing that is out of the ordinary in this step."""
        found = [self._spike(step, result.losses["loss"]), *(_collapse(step, x) for x in loads)]
        self._losses.append(result.losses["loss"])
        return [sentence for sentence in found if sentence]

    def _spike(self, step: int, loss: float) -> str:
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


def _collapse(step: int, load: ExpertLoad) -> str:
    if load.idle < _IDLE:
        return ""
    return (
        f"step {step}: router {load.layer} has collapsed: {load.idle:.0%} of its experts got no "
        f"token, the fullest {load.peak:.1f} times its share"
    )


def is_finite(result: StepResult) -> bool:
    """Whether the losses and the gradient norm are numbers."""
    return all(map(math.isfinite, [*result.losses.values(), result.gradient_norm]))


def broken_gradients(held: Sequence[Held]) -> list[str]:
    """Names of the parameters whose gradient on this rank holds a value that is no number."""
    return [h.name for h in held if h.grad is not None and not bool(h.grad.isfinite().all().item())]
