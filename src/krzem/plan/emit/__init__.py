"""A plan as launch arguments of the engine that is to run it."""

from __future__ import annotations

from krzem.plan.emit.batch import SCHEDULERS, batch, render
from krzem.plan.emit.engines import ENGINES, emit
from krzem.plan.emit.launch import Flag, Launch, Section

__all__ = [
    "ENGINES",
    "SCHEDULERS",
    "Flag",
    "Launch",
    "Section",
    "batch",
    "emit",
    "render",
]
