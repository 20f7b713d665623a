"""An uncertain quantity of the assumptions: three points and a shape, drawn from a normal.

The draw is a function of a standard normal ``z``, so that the same ``z`` gives the same quantile
whatever the numbers are: two runs that differ in one assumption differ in nothing else.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krzem.errors import DataError, shorten

Array = NDArray[np.float32]

_Z95 = NormalDist().inv_cdf(0.95)


class Shape(enum.StrEnum):
    """How a quantity spreads around its median."""

    LOG = "log"
    PLAIN = "plain"
    SHARE = "share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """``low``, ``mid`` and ``high`` are the 5, 50 and 95 % points; equal where it is fixed."""

    name: str
    low: float
    mid: float
    high: float
    shape: Shape = Shape.LOG
    unit: str = ""
    kind: str = "judgement"
    source: str = ""

    def __post_init__(self) -> None:
        points = (self.low, self.mid, self.high)
        shown = f"{self.name}: low {self.low:g}, mid {self.mid:g}, high {self.high:g}"
        if not all(math.isfinite(x) for x in points):
            raise DataError(f"{shown}; all three must be finite numbers.")
        if not (self.low <= self.mid <= self.high):
            raise DataError(f"{shown}; they must not decrease.")
        if self.shape is Shape.LOG and self.low <= 0:
            raise DataError(f"{shown}; a quantity of shape log must be above zero.")
        if self.shape is Shape.SHARE and not (self.low > 0 and self.high < 1):
            raise DataError(f"{shown}; a share must lie between 0 and 1, both excluded.")

    @property
    def fixed(self) -> bool:
        """Whether it has no uncertainty."""
        return self.low == self.high

    def draw(self, z: Array) -> Array:
        """The values at standard normal quantiles ``z``; each side has its own width."""
        if self.fixed:
            return np.full(z.shape, self.mid, dtype=np.float32)
        low, mid, high = (self._inner(x) for x in (self.low, self.mid, self.high))
        below, above = (mid - low) / _Z95, (high - mid) / _Z95
        inner = mid + z * np.where(z < 0, np.float32(below), np.float32(above))
        return self._outer(np.asarray(inner, dtype=np.float32))

    def at(self, z: float) -> float:
        """The value at one standard normal quantile."""
        return float(self.draw(np.asarray([z], dtype=np.float32))[0])

    def fixed_at(self, value: float) -> Quantity:
        """The same quantity without uncertainty."""
        return Quantity(
            name=self.name, low=value, mid=value, high=value, shape=self.shape, unit=self.unit,
            kind=self.kind, source=self.source,
        )  # fmt: skip

    def _inner(self, x: float) -> float:
        if self.shape is Shape.LOG:
            return math.log(x)
        return math.log(x / (1 - x)) if self.shape is Shape.SHARE else x

    def _outer(self, y: Array) -> Array:
        if self.shape is Shape.LOG:
            return np.asarray(np.exp(y), dtype=np.float32)
        return (
            np.asarray(1 / (1 + np.exp(-y)), dtype=np.float32) if self.shape is Shape.SHARE else y
        )


def read_quantity(name: str, table: Any, known: Quantity | None = None) -> Quantity:
    """A quantity from TOML: a table, or a number for a fixed one; gaps are filled from ``known``.

    Raises DataError.
    """
    if _is_number(table):
        table = {"low": table, "mid": table, "high": table, "kind": "given", "source": "given"}
    if not isinstance(table, dict):
        raise DataError(f"{name} must be a number or a table with low, mid and high.")
    keys = {"low", "mid", "high", "shape", "unit", "kind", "source"}
    if extra := sorted(set(table) - keys):
        raise DataError(f"{name} has {', '.join(extra)}; allowed: {', '.join(sorted(keys))}.")
    if any(k in table for k in ("low", "mid", "high")) and "mid" not in table:
        raise DataError(f"{name} gives an end of its range without mid: give low, mid and high.")
    mid = table.get("mid", known.mid if known else None)
    if mid is None:
        raise DataError(f"{name} has no mid: give low, mid and high.")
    own = "mid" in table or known is None
    low = _number(name, "low", table.get("low", mid if own or known is None else known.low))
    high = _number(name, "high", table.get("high", mid if own or known is None else known.high))
    shape = table.get("shape", known.shape.value if known else "log")
    if shape not in list(Shape):
        raise DataError(f"{name}.shape is {shape!r}; it must be one of {', '.join(Shape)}.")
    return Quantity(
        name=name,
        low=low,
        mid=_number(name, "mid", mid),
        high=high,
        shape=Shape(shape),
        unit=str(table.get("unit", known.unit if known else "")),
        kind=str(table.get("kind", known.kind if known else "given")),
        source=str(table.get("source", known.source if known else "given")),
    )


def _number(name: str, key: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise DataError(f"{name}.{key} must be a number, not {shorten(repr(value))}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
