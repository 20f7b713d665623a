"""How far predicted peak memory may be off, and the chance that a layout fits.

The logarithm of measured over predicted bytes is taken to follow Student's distribution with four
degrees of freedom: most errors are small, and a few are of things that no formula counts.  Its
scale depends on what is known (engine measured by others, states, loss, recomputation) and on what
the peak is made of: states are certain, activations and buffers less.  It is learnt from errors on
organisations left out (:mod:`krzem.accuracy.memory_fit`), never from the spread of fitted rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from krzem.cost.coefficients import shipped
from krzem.cost.memory import MemoryBytes

Array = Any

FEATURES = (
    "base", "dynamic", "reserved", "shown", "unseen-engine", "states", "loss", "recompute",
    "experts", "adapters", "guesses",
)  # fmt: skip
PRIOR = {
    "base": -3.0, "dynamic": 1.0, "reserved": 0.3, "shown": 0.3, "unseen-engine": 0.3,
    "states": 0.3, "loss": 0.2, "recompute": 0.5, "experts": 0.3, "adapters": 0.2, "guesses": 0.2,
}  # fmt: skip
"""Weights of the logarithm of the scale that are believed before any error is seen."""
Z80_STUDENT = 1.5332062740589438
"""Scales from the middle to either end of an 80 % interval, four degrees of freedom."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStanding:
    """What is known of predictions beside their bytes; numbers or arrays ``[N]``."""

    unseen_engine: Array = 0.0
    """1 where no run of the engine was measured."""
    states: Array = 0.0
    """1 where the bytes of states are the engine's usual ones, not stated."""
    loss: Array = 0.0
    """1 where the kind of loss is open."""
    recompute: Array = 0.0
    """1 where recomputation is open."""
    experts: Array = 0.0
    adapters: Array = 0.0
    guesses: Array = 0.0
    """How many other things were assumed."""
    reserved: Array = 1.0
    """1 for what an allocator holds or a device must have, 0 for tensors."""
    shown: Array = 0.0
    """1 for what the device's own tool shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySpread:
    """The calibrated scale (its logarithm is linear in :data:`FEATURES`) and shifts."""

    weights: Mapping[str, float] = field(default_factory=lambda: dict(PRIOR))
    shifts: Mapping[str, float] = field(default_factory=dict)
    """Logarithm of measured over predicted, by kind of figure and for what must fit."""
    engines: frozenset[str] = frozenset()
    """Engines that the calibration has seen."""

    def scale(self, memory: MemoryBytes, standing: MemoryStanding) -> Array:
        """Scale of the logarithm of the peak."""
        x = columns(memory, standing)
        return np.exp(sum(self.weights.get(name, 0.0) * x[name] for name in FEATURES))

    def fits(self, memory: MemoryBytes, capacity: Array, standing: MemoryStanding) -> Array:
        """Chance that the fullest rank stays within ``capacity`` bytes."""
        middle = np.log(capacity / memory.peak) - self.shifts.get("need", 0.0)
        return student_cdf(middle / self.scale(memory, standing))


def columns(memory: MemoryBytes, standing: MemoryStanding) -> dict[str, Array]:
    """Columns of :data:`FEATURES`."""
    s = standing
    return {
        "base": 1.0,
        "dynamic": dynamic(memory),
        "reserved": s.reserved,
        "shown": s.shown,
        "unseen-engine": s.unseen_engine,
        "states": s.states,
        "loss": s.loss,
        "recompute": s.recompute,
        "experts": s.experts,
        "adapters": s.adapters,
        "guesses": np.log1p(s.guesses),
    }


def dynamic(memory: MemoryBytes) -> Array:
    """Share of the peak that is activations and buffers, on the rank that has most of them."""
    ranks = (memory.first, memory.middle, memory.last)
    most = ranks[0].activations + ranks[0].transient
    for rank in ranks[1:]:
        most = np.maximum(most, rank.activations + rank.transient)
    return most / np.maximum(memory.tensors, 1.0)


def student_cdf(t: Array) -> Array:
    """Distribution function of Student's distribution with four degrees of freedom."""
    square = 0.25 * t * t
    root = t / np.sqrt(1.0 + square)
    return 0.5 + 0.375 * root * (1.0 - square / (3.0 * (1.0 + square)))


@cache
def memory_spread() -> MemorySpread:
    """The spread shipped with krzem; the prior where none was calibrated."""
    raw = shipped().get("memory")
    if not raw:
        return MemorySpread()
    return MemorySpread(
        weights=raw["weights"], shifts=raw["shifts"], engines=frozenset(raw["engines"])
    )


PLANNED = MemoryStanding()
"""A plan that states all there is to state, of a dense model on a measured engine."""


def fits_probability(
    memory: MemoryBytes, capacity: Array, standing: MemoryStanding = PLANNED
) -> Array:
    """Chance that the fullest rank stays within ``capacity`` bytes, as shipped."""
    return memory_spread().fits(memory, capacity, standing)
