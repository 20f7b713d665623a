"""A plan as launch arguments of the engine that is to run it."""

from __future__ import annotations

from krzem.plan.emit.batch import SCHEDULERS, batch
from krzem.plan.emit.engines import ENGINES, emit
from krzem.plan.emit.launch import Flag, Launch, Section
from krzem.plan.emit.render import render

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
