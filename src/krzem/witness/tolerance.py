"""What may differ: declared tolerances, and multiples of the floor.

Defaults and their sources: first-step loss 0.5 % relative and gradient norm 10 %, the MindSpore
Transformers precision guide; no mismatch of Inf and NaN, the msprobe operator criteria.  Everything
else is judged against the source's own noise floor.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field

from krzem.errors import InputError
from krzem.witness.quantity import RULE, Kind, Quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far a destination may be from the source."""

    loss: float = 0.005
    """Relative."""
    gradient_norm: float = 0.10
    """Relative."""
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
        if signal == "nonfinite":
            return 0.0
        if quantity.kind is Kind.GRADIENT_NORM:
            base = max(self.gradient_norm, _OWN * floor)
        elif quantity.kind is Kind.LOSS:
            base = max(self.loss, _OWN * floor)
        else:
            base = max(self.floors * floor, least(quantity, signal, dtype))
        return max([base, *(v for p, v in self.allow.items() if _matches(quantity, p))])


_OWN = 3.0
"""Multiple of the floor of loss and gradient norm: where the source differs from itself by more
than is declared, nobody else can do better."""
_RULE = 1e-4
"""Rules are applied to equal numbers in float32; near-zero gradients amplify the last digit."""
_FINE = {"float64": 1e-7, "float32": 2e-5, "float16": 1e-3, "bfloat16": 4e-3}
"""Of sampled values: some tens of roundings in float32, one in bfloat16."""
_EXTREME = {"float64": 1e-6, "float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}
"""Of the largest value, which is a single element: five roundings in bfloat16."""
_MEAN = {"float64": 5e-8, "float32": 5e-6, "float16": 5e-4, "bfloat16": 2e-3}
"""Of means and norms, in which roundings cancel."""
_BACKWARD = 5.0
"""Errors grow through backward."""


def least(quantity: Quantity, signal: str, dtype: str) -> float:
    """Errors below this are never held against anyone: vendors' libraries round differently."""
    if quantity.kind in RULE:
        return _RULE
    if quantity.kind is Kind.PARAMETER:
        return 1e-5 if signal == "norm" else 0.0
    if quantity.kind is Kind.LOAD:
        return _FINE.get(dtype, 4e-3) + 2.0 / max(float(quantity.samples.sum()), 1.0)
    if signal == "far":
        return max(0.03, 2.5 / max(quantity.samples.size, 1))
    table = {"samples": _FINE, "absmax": _EXTREME}.get(signal, _MEAN)
    scale = 1.0 if quantity.kind is Kind.ACTIVATION else _BACKWARD
    return scale * table.get(dtype, table["bfloat16"])


def rounded_parameter(signal: str, dtype: str) -> float:
    """What storing parameters in another type may change: a rounding of the largest of them."""
    return (1.0 if signal == "norm" else 5.0) * _FINE.get(dtype, 4e-3)


def _matches(quantity: Quantity, pattern: str) -> bool:
    """Whether a pattern names the quantity, or its kind and name."""
    names = (quantity.name, f"{quantity.kind} {quantity.name}".strip())
    return any(fnmatch.fnmatchcase(name, pattern) for name in names)
