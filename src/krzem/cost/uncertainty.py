"""How far a predicted step time may be off: a standard deviation of its logarithm.

The posterior of the coefficients is not what limits a prediction: published runs differ from the
model by software, clusters and recipes that no column names.  So the spread is learnt from errors
on *held-back* rows: sources left out, accelerators left out, families left out.  It depends on what
is known of device and engine, on what a row leaves to guess, and on what the step is made of,
because communication, bubbles and experts are less certain than matrix products.  Engines and
families have their own, shrunk, offsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from krzem.cost.shipped import shipped
from krzem.cost.step import StepSeconds
from krzem.layout.layout import Layout

Array = Any

FEATURES = (
    "base", "unseen-device", "unseen-family", "unseen-engine", "guesses", "communication",
    "bubble", "experts", "experts-unseen", "unseen-combination", "low-precision", "small-step",
)  # fmt: skip
Z80 = 1.2815515655446004
"""Standard deviations from the middle to either end of a normal 80 % interval."""


def combination(engine: str, layout: Layout) -> str:
    """``megatron-core zero1 tp pp ep``: what is cut how, on the engine of this factor."""
    parts = [name for name in ("tp", "cp", "pp", "ep") if getattr(layout, name) > 1]
    return " ".join([engine, f"zero{layout.zero}", *parts])


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is known of N predictions beside their time (lists of N, or one entry for all)."""

    device: Sequence[str]
    family: Sequence[str]
    engine: Sequence[str]
    combination: Sequence[str]
    """What of parallelism is combined on which engine (:func:`combination`)."""
    guesses: Array
    """How many things had to be assumed."""
    experts: Array
    """1 for mixtures of experts."""
    low_precision: Array
    """1 where products run in 8 bits or fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The calibrated spread (logarithms of it are linear in :data:`FEATURES`)."""

    weights: Mapping[str, float]
    engines: Mapping[str, float] = field(default_factory=dict)
    families: Mapping[str, float] = field(default_factory=dict)
    combinations: frozenset[str] = frozenset()
    """Combinations of engine and parallelism that the calibration has seen."""
    devices: frozenset[str] = frozenset()
    """Accelerators that the calibration has seen (engines and families: those with an offset)."""

    def log_sigma(self, step: StepSeconds, standing: Standing) -> Array:
        """Standard deviation of the logarithm of each step time."""
        x = features(step, standing, self)
        eta = sum(self.weights.get(name, 0.0) * x[name] for name in FEATURES)
        eta = eta + np.array([self.engines.get(n, 0.0) for n in standing.engine])
        eta = eta + np.array([self.families.get(n, 0.0) for n in standing.family])
        return np.exp(eta)


def features(step: StepSeconds, standing: Standing, seen: Spread) -> dict[str, Array]:
    """Columns of :data:`FEATURES`; ``seen`` says what calibration knew."""
    total = step.total
    experts = np.asarray(standing.experts, dtype=float)
    new = np.array([float(n not in seen.devices) for n in standing.device])
    moved = step.tensor_parallel + step.expert_parallel + step.data_parallel
    return {
        "base": np.ones_like(total),
        "unseen-device": new,
        "unseen-family": np.array([float(n not in seen.families) for n in standing.family]),
        "unseen-engine": np.array([float(n not in seen.engines) for n in standing.engine]),
        "guesses": np.log1p(np.asarray(standing.guesses, dtype=float)),
        "communication": (moved + step.pipeline_transfer) / total,
        "bubble": step.bubble / total,
        "experts": experts,
        "experts-unseen": experts * new,
        "unseen-combination": np.array(
            [float(n not in seen.combinations) for n in standing.combination]
        ),
        "low-precision": np.asarray(standing.low_precision, dtype=float),
        "small-step": 1.0 / (1.0 + total / step.micro_batches / 0.1),
    }


@cache
def spread() -> Spread:
    """The spread shipped with krzem."""
    raw = shipped()["spread"]
    return Spread(
        weights=raw["weights"],
        engines=raw["engines"],
        families=raw["families"],
        combinations=frozenset(raw.get("combinations", ())),
        devices=frozenset(raw["devices"]),
    )


def log_sigma(step: StepSeconds, standing: Standing) -> Array:
    """Standard deviation of the logarithm of each step time, as shipped.

    An 80 % interval reaches from ``total * exp(-Z80 * sigma)`` to ``total * exp(Z80 * sigma)``.
    """
    return spread().log_sigma(step, standing)


def between(experts: bool) -> float:
    """What the errors of layouts of one model on one cluster do not share.

    A standard deviation of the logarithm of each layout's own part, as runs left out had it.
    """
    return float(shipped()["between"]["moe" if experts else "dense"])
