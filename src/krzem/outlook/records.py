"""Published figures behind the forecast, and what is computed from them.

``lags`` follows Epoch's day-by-day method: the follower is behind, on a day, by the time since
the leader's record first reached what is the follower's record that day.
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from krzem.facts.table import read_table

CAPABILITY = "outlook_capability.csv"
RUNS = "outlook_training_runs.csv"
COMPUTE = "outlook_compute.csv"

LAST_DAY = dt.date(2026, 9, 10)
"""The capability table ends here."""

_DAYS_PER_MONTH = 365.25 / 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A model that beat all earlier ones of its group."""

    date: dt.date
    model: str
    eci: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DailyGap:
    """The follower behind the leader, one value per day."""

    days: tuple[dt.date, ...]
    months: NDArray[np.float64]
    points: NDArray[np.float64]

    def within(self, first: dt.date, last: dt.date) -> DailyGap:
        """The part from ``first`` to ``last``, both included."""
        keep = np.array([first <= day <= last for day in self.days])
        return DailyGap(
            days=tuple(d for d, k in zip(self.days, keep, strict=True) if k),
            months=self.months[keep],
            points=self.points[keep],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """A straight line through records: units per year and its standard error."""

    per_year: float
    error: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Times per year, with a 90 % bootstrap interval."""

    low: float
    mid: float
    high: float
    count: int


@cache
def records(group: str) -> tuple[Record, ...]:
    """The record line of a group (``US``, ``CN``), by date."""
    rows = (row for row in read_table(CAPABILITY) if row["group"] == group)
    return tuple(
        Record(date=dt.date.fromisoformat(r["date"]), model=r["model"], eci=float(r["eci"]))
        for r in rows
    )


def level(group: str, day: dt.date) -> float | None:
    """A group's record on a day; None before its first model."""
    past = [r.eci for r in records(group) if r.date <= day]
    return past[-1] if past else None


@cache
def daily_gap(leader: str = "US", follower: str = "CN", last: dt.date = LAST_DAY) -> DailyGap:
    """Months and points behind for every day on which both groups have a record."""
    ahead, behind = records(leader), records(follower)
    first = max(ahead[0].date, behind[0].date)
    days = tuple(first + dt.timedelta(i) for i in range((last - first).days + 1))
    months, points = [], []
    for day in days:
        best = max(r.eci for r in behind if r.date <= day)
        reached = min((r.date for r in ahead if r.eci >= best and r.date <= day), default=day)
        months.append((day - reached).days / _DAYS_PER_MONTH)
        points.append(max(r.eci for r in ahead if r.date <= day) - best)
    return DailyGap(days=days, months=np.array(months), points=np.array(points))


def record_slope(group: str, first: dt.date, last: dt.date = LAST_DAY) -> Slope:
    """Least squares through the records between two days."""
    rows = [r for r in records(group) if first <= r.date <= last]
    years = np.array([(r.date - first).days / 365.25 for r in rows])
    scores = np.array([r.eci for r in rows])
    slope, start = np.polyfit(years, scores, 1)
    spread = float(((scores - slope * years - start) ** 2).sum()) / (len(rows) - 2)
    error = np.sqrt(spread / ((years - years.mean()) ** 2).sum())
    return Slope(per_year=float(slope), error=float(error), count=len(rows))


def run_growth(group: str, draws: int = 2000, seed: int = 0) -> Growth:
    """Growth of training compute over the group's largest language models (``CN``, ``other``)."""
    rows = [row for row in read_table(RUNS) if row["group"] == group]
    start = dt.date(2021, 10, 1)
    years = np.array([(dt.date.fromisoformat(r["date"]) - start).days / 365.25 for r in rows])
    size = np.log10([float(r["flop"]) for r in rows])
    picks = np.random.default_rng(seed).integers(0, len(rows), (draws, len(rows)))
    slopes = [np.polyfit(years[p], size[p], 1)[0] for p in picks]
    low, high = 10 ** np.quantile(slopes, (0.05, 0.95))
    mid = 10 ** np.polyfit(years, size, 1)[0]
    return Growth(low=float(low), mid=float(mid), high=float(high), count=len(rows))


def stock(what: str, who: str, year: int) -> tuple[float, float, float] | None:
    """Low, mid and high H100e at the end of a year; None where nobody says."""
    for row in read_table(COMPUTE):
        if (row["what"], row["who"], row["date"]) == (what, who, f"{year}-12-31"):
            return float(row["low"]), float(row["mid"]), float(row["high"])
    return None


def total(what: str, year: int) -> float:
    """The sum of the medians of all makers (``sold``) or labs (``used``) at the end of a year."""
    rows = read_table(COMPUTE)
    return sum(float(r["mid"]) for r in rows if r["what"] == what and r["date"][:4] == str(year))


# The naive trend: what a ruler and the records before a day give, without any model
# ----------------------------------------------------------------------------------

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


def trend_level(group: str, day: dt.date, years: float) -> Normal | None:
    """A group's record ``years`` after ``day``; None where fewer than four records are known."""
    known = [r for r in records(group) if r.date <= day]
    recent = [r for r in known if r.date >= day - _LONG]
    rows = recent if len(recent) >= 4 else known
    if len(rows) < 4:
        return None
    line = record_slope(group, rows[0].date, day)
    scatter = line.error * _lever(rows)
    sd = math.sqrt((line.error * years) ** 2 + scatter**2 * (1 + years))
    return Normal(mean=known[-1].eci + line.per_year * years, sd=sd)


def _lever(rows: list[Record]) -> float:
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
    gap = daily_gap(last=day)
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
        for row in read_table(RUNS)
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
