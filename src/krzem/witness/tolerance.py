"""What may differ: declared tolerances, and multiples of the floor.

Defaults and their sources: first-step loss 0.5 % relative and gradient norm 10 %, the MindSpore
Transformers precision guide; no mismatch of Inf and NaN, the msprobe operator criteria.  Everything
else is judged against the source's own noise floor.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from krzem.errors import InputError
from krzem.witness.quantity import EXACT, RULE, Kind, Quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far a destination may be from the source."""

    loss: float = 0.005
    """Relative, at most; in float32 some roundings are enough."""
    gradient_norm: float = 0.10
    """Relative, at most."""
    floors: float = 10.0
    """Multiple of the floor that any other quantity may reach."""
    allow: Mapping[str, float] = field(default_factory=dict)
    """Declared differences: a pattern such as ``layers.3.*`` -> the least tolerance there."""

    def __post_init__(self) -> None:
        for name in ("loss", "gradient_norm", "floors"):
            if getattr(self, name) <= 0:
                raise InputError(f"tolerance {name} = {getattr(self, name)} has to be above 0")

    def of(self, quantity: Quantity, signal: str, floor: float, dtype: str) -> float:
        """The largest error of ``signal`` that passes."""
        if signal in ("nonfinite", "checksum") or quantity.kind in (Kind.LOADED, Kind.RATE):
            return 0.0 if signal in ("nonfinite", "checksum") else _EQUAL
        base = max(self.floors * floor, least(quantity, signal, dtype))
        declared = {Kind.GRADIENT_NORM: self.gradient_norm, Kind.LOSS: self.loss}
        if quantity.kind in declared:
            base = max(_OWN * floor, min(base, declared[quantity.kind]))
        return max([base, *(v for p, v in self.allow.items() if _matches(quantity, p))])


_EQUAL = 1e-9
"""Numbers that are computed from settings alone agree to the last digits of float64."""
_OWN = 3.0
"""Multiple of the floor of loss and gradient norm: where the source differs from itself by more
than is declared, nobody else can do better."""
_SCALAR = 20.0
"""Roundings of a loss or gradient norm over those of a mean, before what is declared counts."""
_RULE = 1e-4
"""Rules are applied to equal numbers in float32; near-zero gradients amplify the last digit."""
_FINE = {"float64": 1e-7, "float32": 2e-5, "tf32": 1e-3, "float16": 1e-3, "bfloat16": 4e-3}
"""Of sampled values: some tens of roundings in float32, one in bfloat16."""
_EXTREME = {"float64": 1e-6, "float32": 1e-4, "tf32": 5e-3, "float16": 5e-3, "bfloat16": 4e-2}
"""Of the largest value, which is a single element: five roundings in bfloat16."""
_MEAN = {"float64": 5e-8, "float32": 5e-6, "tf32": 5e-4, "float16": 5e-4, "bfloat16": 2e-3}
"""Of means and norms, in which roundings cancel."""
_BACKWARD = 5.0
"""Errors grow through backward."""
_NORMAL = 5.0
"""Sigmas of a sum of independent errors."""
_CHANCE = 1e-6
"""That a count of far samples is exceeded by an honest machine: a check judges some thousands."""
_MANY, _SIGMAS = 500.0, 4.8
"""From so many expected on, the Poisson law is the normal one; so many sigmas are 1e-6."""


def least(quantity: Quantity, signal: str, dtype: str) -> float:
    """Errors below this are never held against anyone: vendors' libraries round differently."""
    if quantity.kind in RULE:
        return _RULE
    if quantity.kind in EXACT:
        return 1e-5 if signal == "norm" else 0.0
    if quantity.kind is Kind.LOAD:
        return _FINE.get(dtype, 4e-3) + 2.0 / max(float(quantity.samples.sum()), 1.0)
    if signal == "far":
        return 0.0  # counted: see rare
    if signal == "value":
        scale = _SCALAR if quantity.kind is Kind.LOSS else _SCALAR * _BACKWARD
        return scale * _MEAN.get(dtype, _MEAN["bfloat16"])
    table = {"samples": _FINE, "absmax": _EXTREME, "ranks": _EXTREME}.get(signal, _MEAN)
    scale = 1.0 if quantity.kind is Kind.ACTIVATION else _BACKWARD
    return scale * table.get(dtype, table["bfloat16"])


def explained(quantity: Quantity, signal: str, spread: float) -> float:
    """What noise of single elements explains in a statistic over all of them.

    ``spread`` is the relative root mean square of that noise.  It changes a norm by its component
    along the tensor, a 1/sqrt(n)-th of it where n elements err independently and never more than
    all of it, and by its own square (a token that goes to another expert).  A change may be stored
    no finer than the numbers are that it is added to.  Elements next to zero are rounded either
    way: their number follows a Poisson law.
    """
    if signal == "zero":
        count = max(quantity.stats.get("count", 1.0), 1.0)
        return rare(int(count), 1.0 / count)
    grain = quantity.stats.get("grain", 0.0) if signal in ("norm", "samples") else 0.0
    if signal not in ("norm", "rms"):
        return grain
    along = min(1.0, _NORMAL / math.sqrt(max(quantity.samples.size, 1)))
    return grain + along * spread + 2 * spread * spread


def rare(samples: int, rate: float) -> float:
    """The share of ``samples`` that are far off which an honest machine all but never exceeds.

    Each sample is far off with the probability ``rate``, as the source's own repeats show; their
    number then follows a Poisson law, of which the quantile at ``1 - 1e-6`` is taken.
    """
    expected = samples * rate
    if expected > _MANY:
        return min(1.0, (expected + _SIGMAS * math.sqrt(expected)) / samples)
    term = below = math.exp(-expected)
    count = 0
    while 1.0 - below > _CHANCE and count < samples:
        count += 1
        term *= expected / count
        below += term
    return count / max(samples, 1)


def rounded_parameter(signal: str, dtype: str) -> float:
    """What storing parameters in another type may change: a rounding of the largest of them."""
    if signal == "checksum":
        return math.inf
    return (1.0 if signal == "norm" else 5.0) * _FINE.get(dtype, 4e-3)


def _matches(quantity: Quantity, pattern: str) -> bool:
    """Whether a pattern names the quantity, or its kind and name."""
    names = (quantity.name, f"{quantity.kind} {quantity.name}".strip())
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)
