"""How far a prediction of the planner may be off."""

from __future__ import annotations

import math

import numpy as np

from krzem.cost.memory import RESERVE_SPREAD, SPREAD
from krzem.cost.step import StepSeconds
from krzem.cost.uncertainty import Standing, log_sigma
from krzem.plan.price import Task

_LOW = ("fp8", "fp4")


def step_sigma(task: Task, step: StepSeconds) -> float:
    """Standard deviation of the logarithm of one step time, as held-back published runs had it."""
    standing = Standing(
        device=[task.cluster.device.id],
        family=[task.cluster.device.family],
        engine=[task.setup.design(()).fits],
        guesses=0.0,
        experts=float(task.architecture.is_moe),
        low_precision=float(task.goal.precision.arithmetic in _LOW),
    )
    return float(np.ravel(log_sigma(step, standing))[0]) * narrowing(task)


def narrowing(task: Task) -> float:
    """What a local calibration leaves of the spread; 1 without one."""
    return 1.0 if task.local is None else task.local.narrowing(task.setup.design(()).fits)


def memory_sigma(peak_bytes: float) -> float:
    """Standard deviation of the logarithm of the peak memory."""
    return math.hypot(SPREAD, RESERVE_SPREAD / max(peak_bytes, 1.0))
