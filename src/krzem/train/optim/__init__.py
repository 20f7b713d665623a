"""Optimizers, schedules and the balancing update."""

from __future__ import annotations

from krzem.train.optim.optimizer import ExpertLoad, Optimizer, OptimizerConfig, update_biases
from krzem.train.optim.schedule import Schedule

__all__ = ["ExpertLoad", "Optimizer", "OptimizerConfig", "Schedule", "update_biases"]
