"""How far a prediction of the planner may be off."""

from __future__ import annotations

import math

from krzem.cost.memory import RESERVE_SPREAD, SPREAD
from krzem.layout.arrays import Layouts
from krzem.plan.price import Pricer


def step_sigma(pricer: Pricer, layouts: Layouts) -> float:
    """Standard deviation of the logarithm of the step time of the first layout."""
    return 0.12


def memory_sigma(pricer: Pricer, peak_bytes: float) -> float:
    """Standard deviation of the logarithm of the peak memory."""
    return math.hypot(SPREAD, RESERVE_SPREAD / max(peak_bytes, 1.0))
