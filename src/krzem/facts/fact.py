"""A published figure with its range and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """``low`` and ``high`` bound what is published, ``mid`` is the working value."""

    what: str
    low: float
    mid: float
    high: float
    unit: str
    source: str
    date: str = ""
    """Year-month of the source."""
    confidence: str = "low"
    """high, medium, low (as in the catalogue) or given (by the user)."""
    notes: str = ""
    basis: str = ""
    """measured, vendor, derived, assumed, class (nobody published one: the range of a kind of
    system) or given; empty where a table does not say."""

    def __post_init__(self) -> None:
        if not (0 <= self.low <= self.mid <= self.high):
            raise ValueError(f"{self.what}: {self.low}, {self.mid}, {self.high} are out of order")

    @classmethod
    def given(cls, what: str, value: float, unit: str, source: str) -> Fact:
        """What the user states: no range."""
        return cls(
            what=what, low=value, mid=value, high=value, unit=unit, source=source,
            confidence="given", basis="given",
        )  # fmt: skip

    def scaled(self, factor: float) -> Fact:
        """The same for ``factor`` of the thing (half a card)."""
        return replace(self, low=self.low * factor, mid=self.mid * factor, high=self.high * factor)

    def inverse(self, what: str, unit: str, numerator: float = 1.0) -> Fact:
        """``numerator`` over this: days between failures to failures a day."""
        return replace(
            self,
            what=what,
            unit=unit,
            low=numerator / self.high,
            mid=numerator / self.mid,
            high=numerator / self.low,
        )
