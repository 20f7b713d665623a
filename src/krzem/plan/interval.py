"""How far a prediction of the planner may be off."""

from __future__ import annotations

import math

import numpy as np

from krzem.cost.memory_error import Z80_STUDENT, memory_spread
from krzem.cost.step import StepSeconds
from krzem.cost.uncertainty import Z80, Standing, combination, log_sigma
from krzem.layout.layout import Layout
from krzem.plan.price import Task

_LOW = ("fp8", "fp4")


def step_sigma(task: Task, layout: Layout, step: StepSeconds, guesses: float = 0.0) -> float:
    """Standard deviation of the logarithm of one step time, as held-back published runs had it."""
    fits = task.setup.design(()).fits
    standing = Standing(
        device=[task.cluster.device.id],
        family=[task.cluster.device.family],
        engine=[fits],
        combination=[combination(fits, layout)],
        guesses=guesses,
        experts=float(task.architecture.is_moe),
        low_precision=float(task.goal.precision.arithmetic in _LOW),
    )
    return float(np.ravel(log_sigma(step, standing))[0]) * narrowing(task)


def narrowing(task: Task) -> float:
    """What a local calibration leaves of the spread; 1 without one."""
    return 1.0 if task.local is None else task.local.narrowing(task.setup.design(()).fits)


def memory_sigma(peak_bytes: float, scale: float | None = None) -> float:
    """Standard deviation of the logarithm of the peak memory, as its 80 % interval has it.

    ``scale`` is that of the layout (``Pricer.memory_scale``); without it that of an average one.
    """
    if scale is None:
        weights = memory_spread().weights
        scale = math.exp(weights["base"] + weights["reserved"] + 0.5 * weights["dynamic"])
    return scale * Z80_STUDENT / Z80 if peak_bytes > 0 else 0.0
