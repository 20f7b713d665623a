"""A number with its uncertainty and the way it was got."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass


class Basis(enum.StrEnum):
    """How a number was got, from the firmest to the weakest."""

    MEASURED = "measured"
    CALIBRATED = "calibrated"
    ESTIMATED = "estimated"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A prediction: ``low`` and ``high`` bound its central 80 % interval, ``mid`` is the median.

    The unit is in the name of the field that holds the estimate (``seconds``, ``bytes``, …).
    """

    low: float
    mid: float
    high: float
    basis: Basis = Basis.ESTIMATED

    def __post_init__(self) -> None:
        if not (self.low <= self.mid <= self.high):
            raise ValueError(f"estimate out of order: {self.low}, {self.mid}, {self.high}")

    @classmethod
    def lognormal(cls, mid: float, sigma: float, basis: Basis = Basis.ESTIMATED) -> Estimate:
        """The 80 % interval of a log-normal: ``sigma`` is the standard deviation of the log."""
        spread = math.exp(1.2815515655446004 * sigma)
        return cls(mid / spread, mid, mid * spread, basis)

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit (``factor`` > 0)."""
        return Estimate(self.low * factor, self.mid * factor, self.high * factor, self.basis)

    def inverse(self, numerator: float = 1.0) -> Estimate:
        """``numerator / self``: time to rate, rate to time."""
        return Estimate(
            numerator / self.high, numerator / self.mid, numerator / self.low, self.basis
        )

    def as_dict(self) -> dict[str, float]:
        """``{"low", "mid", "high"}``, as every ``--json`` output writes it."""
        return {"low": self.low, "mid": self.mid, "high": self.high}
