"""The naive trend: what a ruler and the records before a day give, without any model.

Record levels go on along their line of the last two years; the gap and the lag stay where they were
and wander as they have wandered; stocks and training runs go on growing at the rate seen last.  All
are normal distributions, of points and months as they are and of stocks and runs as log10.
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from krzem.facts.table import read_table
from krzem.outlook import records

_LONG = dt.timedelta(days=730)
_HALF = 182
_UNSEEN_WANDER = 5.0
"""Points or months per square root of a year, where less than a year of gaps has been seen."""
_UNSURE_GROWTH = 0.5
"""Standard deviation of a growth rate seen once, as a share of its logarithm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normal:
    """A forecast by mean and standard deviation."""

    mean: float
    sd: float

    def cdf(self, y: float) -> float:
        """Probability of a value up to ``y``."""
        return 0.5 * (1 + math.erf((y - self.mean) / (self.sd * math.sqrt(2))))

    def log_density(self, y: float) -> float:
        """Natural logarithm of the density at ``y``."""
        z = (y - self.mean) / self.sd
        return -0.5 * z * z - math.log(self.sd * math.sqrt(2 * math.pi))

    def crps(self, y: float) -> float:
        """Continuous ranked probability score (Gneiting and Raftery 2007); lower is better."""
        z = (y - self.mean) / self.sd
        density = math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        wide = z * (2 * self.cdf(y) - 1) + 2 * density - 1 / math.sqrt(math.pi)
        return self.sd * wide


def level(group: str, day: dt.date, years: float) -> Normal | None:
    """A group's record ``years`` after ``day``; None where fewer than four records are known."""
    known = [r for r in records.records(group) if r.date <= day]
    recent = [r for r in known if r.date >= day - _LONG]
    rows = recent if len(recent) >= 4 else known
    if len(rows) < 4:
        return None
    line = records.record_slope(group, rows[0].date, day)
    scatter = line.error * _lever(rows)
    sd = math.sqrt((line.error * years) ** 2 + scatter**2 * (1 + years))
    return Normal(mean=known[-1].eci + line.per_year * years, sd=sd)


def _lever(rows: list[records.Record]) -> float:
    """What turns the error of a slope into the scatter around it."""
    t = np.array([r.date.toordinal() / 365.25 for r in rows])
    return float(np.sqrt(((t - t.mean()) ** 2).sum()))


def wander(values: NDArray[np.float64]) -> float:
    """Units per square root of a year, from changes of a daily series over half a year."""
    if len(values) < 2 * _HALF:
        return _UNSEEN_WANDER
    change = values[_HALF:] - values[:-_HALF]
    return float(np.sqrt((change**2).mean() * 365.25 / _HALF))


def behind(measure: str, day: dt.date, first: float, last: float) -> Normal | None:
    """The mean gap (``points``) or lag (``months``) between two times after ``day``, in years."""
    gap = records.daily_gap(last=day)
    values: NDArray[np.float64] = getattr(gap, measure)
    if not len(values):
        return None
    now = values[-365:] if measure == "months" else values[-_HALF:]
    grown = first + (last - first) / 3  # variance of the mean of a random walk over a window
    sd = math.sqrt(float(now.std()) ** 2 + wander(values) ** 2 * grown)
    return Normal(mean=float(now.mean()), sd=max(sd, 0.1))


def growth(before: float, now: float, years: float) -> Normal:
    """log10 of a stock that goes on as it grew over one year."""
    rate = math.log10(now / before)
    return Normal(
        mean=math.log10(now) + rate * years, sd=max(_UNSURE_GROWTH * abs(rate), 0.05) * years
    )


def run(group: str, day: dt.date, years: float) -> Normal | None:
    """log10 FLOP of a group's largest run ``years`` after ``day``."""
    rows = [(d, f) for d, f in training_runs(group) if d <= day]
    if len(rows) < 4:
        return None
    t = np.array([(d - day).days / 365.25 for d, _ in rows])
    size = np.array([f for _, f in rows])
    slope, start = np.polyfit(t, size, 1)
    scatter = float(np.sqrt(((size - slope * t - start) ** 2).sum() / (len(rows) - 2)))
    error = scatter / float(np.sqrt(((t - t.mean()) ** 2).sum()))
    sd = math.sqrt((error * years) ** 2 + (0.5 * scatter) ** 2 * years)
    return Normal(mean=float(size.max() + max(slope, 0.0) * years), sd=max(sd, 0.05))


def training_runs(group: str) -> list[tuple[dt.date, float]]:
    """Days and log10 FLOP of the large language models of a group (``CN``, ``other``)."""
    return [
        (dt.date.fromisoformat(row["date"]), math.log10(float(row["flop"])))
        for row in read_table(records.RUNS)
        if row["group"] == group
    ]


def ever_ahead(gap: float, wanders: float, drift: float, years: float) -> float:
    """Chance that a gap of so many points has been closed within ``years``.

    A random walk with drift (points per year, positive: widening), by its first passage of zero:
    ``Phi((-g - m t) / (s sqrt t)) + exp(-2 m g / s^2) Phi((-g + m t) / (s sqrt t))``.
    """
    spread = wanders * math.sqrt(years)
    unit = Normal(mean=0.0, sd=1.0)
    first = unit.cdf((-gap - drift * years) / spread)
    return first + math.exp(-2 * drift * gap / wanders**2) * unit.cdf(
        (-gap + drift * years) / spread
    )
