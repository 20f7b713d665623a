"""Calibrated coefficients: what physics leaves open, fitted on published runs.

Every coefficient is a logarithm, so that a fitted 0 leaves the stated prior value untouched.
Names are ``kind`` or ``kind/member``: ``matmul`` is common to all chips, ``matmul/nvidia-hopper``
is that family's deviation from it and is shrunk towards 0, so that a family nobody has measured
is predicted by the common part, with a wider interval.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np

from krzem.cost.stages import StepSeconds
from krzem.layout.layout import Layout

# The calibration shipped with krzem, read once
# ---------------------------------------------


@cache
def shipped() -> Mapping[str, Any]:
    """``facts/coefficients.json``, as ``python -m krzem.accuracy.calibrate`` wrote it."""
    path = resources.files("krzem.facts").joinpath("coefficients.json")
    return MappingProxyType(json.loads(path.read_text(encoding="utf-8")))


# Calibrated coefficients: what physics leaves open, fitted on published runs
# ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What is believed before any run is seen."""

    value: float
    """Value that a logarithm of 0 stands for."""
    sigma: float
    """Standard deviation of the logarithm."""
    meaning: str


COMMON: Mapping[str, Prior] = MappingProxyType(
    {
        "matmul": Prior(value=0.80, sigma=0.10, meaning="share of the 16-bit peak that large"
                        " products sustain at 1 W per TFLOP/s"),
        "matmul-power": Prior(value=1.0, sigma=0.15, meaning="exponent of watts per TFLOP/s in"
                              " that share (added to 0.15)"),
        "low": Prior(value=0.85, sigma=0.15, meaning="the same share in fp8, relative to 16 bits"),
        "low4": Prior(value=0.62, sigma=0.2, meaning="the same share in fp4, relative to 16 bits"),
        "cast": Prior(value=3.0, sigma=0.5, meaning="bytes moved per operand element to quantise"),
        "attention": Prior(value=0.55, sigma=0.2, meaning="share of the 16-bit peak that a fused"
                           " attention forward kernel sustains"),
        "memory": Prior(value=0.80, sigma=0.1, meaning="share of memory bandwidth"),
        "up": Prior(value=0.80, sigma=0.08, meaning="share of scale-up bandwidth"),
        "out": Prior(value=0.70, sigma=0.25, meaning="share of network bandwidth"),
        "up-latency": Prior(value=4e-6, sigma=0.5, meaning="seconds per hop, scale-up"),
        "out-latency": Prior(value=1.5e-5, sigma=0.5, meaning="seconds per hop, network"),
        "up-start": Prior(value=1.5e-5, sigma=0.4, meaning="seconds before a collective inside a"
                          " scale-up domain flows at its rate"),
        "out-start": Prior(value=6e-5, sigma=0.6, meaning="seconds before a collective between"
                           " nodes flows: half of its rate is reached at this many seconds' worth"),
        "exchange-out": Prior(value=0.75, sigma=0.25, meaning="rate of all-to-all between nodes"
                             " without kernels made for it, relative to rings"),
        "beside": Prior(value=0.15, sigma=0.4, meaning="computation lost while communication runs"
                        " beside it, per second of it (compute units and memory that it takes)"),
        "attention-half": Prior(value=160.0, sigma=0.4, meaning="keys of a row at which attention"
                                " kernels reach half of their rate"),
        "young": Prior(value=0.15, sigma=0.5, meaning="share of its later rate that a chip lacks on"
                       " the day it comes out, kernels being written for it"),
        "depth": Prior(value=96.0, sigma=0.5, meaning="inner dimension of half rate"),
        "tail": Prior(value=0.35, sigma=0.2, meaning="filling lost at the end of a product"),
        "host": Prior(value=1.0, sigma=0.15, meaning="host time per launch, relative"),
        "moe-launches": Prior(value=1.8, sigma=0.2, meaning="launches of routed experts, relative"),
        "moe-year": Prior(value=1.0, sigma=0.15, meaning="time of expert layers' own work, change"
                          " per year since the middle of 2025"),
        "elementwise": Prior(value=1.0, sigma=0.3, meaning="element-wise traffic, relative"),
        "jitter": Prior(value=0.008, sigma=0.7, meaning="slow-down per doubling of nodes"),
        "imbalance": Prior(value=0.10, sigma=0.4, meaning="excess load of the busiest experts"),
        "grouped": Prior(value=0.85, sigma=0.2, meaning="rate of grouped products, relative"),
        "flash2": Prior(value=0.62, sigma=0.06, meaning="rate of FlashAttention-2 on chips after"
                        " Ampere, relative to kernels written for them"),
        "unfused": Prior(value=12.0, sigma=0.3, meaning="bytes per score, unfused attention"),
        "tp-hide": Prior(value=1.0, sigma=0.5, meaning="hidden tensor-parallel share, relative"),
        "ep-hide": Prior(value=0.6, sigma=0.4, meaning="hidden share where all-to-all overlaps"),
        "pp-exposed": Prior(value=0.7, sigma=0.5, meaning="exposed share of pipeline transfers"),
        "turn": Prior(value=1.0, sigma=0.5, meaning="pipeline host time per turn, relative"),
        "maker": Prior(value=1.0, sigma=0.3, meaning="time of runs that the chip's maker"
                       " publishes, relative to a user's: best of many tries, balanced routing,"
                       " no other work on the machine; plans are for users"),
        "fixed": Prior(value=0.02, sigma=0.7, meaning="fixed seconds per step"),
    }
)  # fmt: skip

GROUPED: Mapping[str, Prior] = MappingProxyType(
    {
        "matmul": Prior(value=1.0, sigma=0.12, meaning="a family's own share"),
        "attention": Prior(value=1.0, sigma=0.2, meaning="a family's own share"),
        "attention-half": Prior(value=1.0, sigma=0.4, meaning="a family's own length"),
        "memory": Prior(value=1.0, sigma=0.08, meaning="a family's own share"),
        "low": Prior(value=1.0, sigma=0.15, meaning="a family's own share"),
        "up": Prior(value=1.0, sigma=0.1, meaning="a family's own share"),
        "out": Prior(value=1.0, sigma=0.2, meaning="a family's own share"),
        "engine": Prior(value=1.08, sigma=0.15, meaning="an engine's overhead factor"),
        "engine-year": Prior(value=1.0, sigma=0.06, meaning="its change per year"),
    }
)


class Coefficients:
    """A point in coefficient space: logarithms by name, 0 where a name is absent.

    ``years`` bounds, for each engine, the years it was measured in: an engine's change per year is
    not carried beyond them.
    """

    __slots__ = ("_logs", "_years")

    def __init__(
        self, logs: Mapping[str, float], years: Mapping[str, tuple[float, float]] | None = None
    ) -> None:
        self._logs = dict(logs)
        self._years = dict(years or {})

    def engine_overhead(self, engine: str, year: float) -> float:
        """What an engine of ``year`` adds to, or takes from, the time of an average one."""
        first, last = self._years.get(engine, (year, year))
        since = min(max(year, first), last) - 2024.0
        change = self.member("engine-year", engine)
        return self.member("engine", engine) * math.exp(since * math.log(change))

    def common(self, name: str) -> float:
        """Value of a common coefficient."""
        return COMMON[name].value * math.exp(self._logs.get(name, 0.0))

    def member(self, kind: str, member: str) -> float:
        """Value of a member's own factor (its prior value where it was never fitted)."""
        return GROUPED[kind].value * math.exp(self._logs.get(f"{kind}/{member}", 0.0))

    def log(self, name: str) -> float:
        """The logarithm itself."""
        return self._logs.get(name, 0.0)

    def as_dict(self) -> dict[str, float]:
        """All logarithms by name."""
        return dict(self._logs)


@cache
def fitted() -> Coefficients:
    """The coefficients shipped with krzem (``facts/coefficients.json``)."""
    raw = shipped()
    years = {str(k): (float(v[0]), float(v[1])) for k, v in raw["years"].items()}
    return Coefficients({str(k): float(v) for k, v in raw["logs"].items()}, years)


# How far a predicted step time may be off: a standard deviation of its logarithm
# -------------------------------------------------------------------------------

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
