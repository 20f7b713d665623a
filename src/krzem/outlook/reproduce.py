"""Published figures that follow from the inputs, recomputed."""

from __future__ import annotations

import datetime as dt
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krzem.outlook import records
from krzem.outlook.assumptions import Assumptions
from krzem.outlook.simulate import QUANTILES, Forecast, forecast


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduced:
    """A published figure and ours; an interval is (low, mid, high), a single number thrice it."""

    what: str
    unit: str
    published: tuple[float, float, float]
    ours: tuple[float, float, float]
    source: str


def reproduce(result: Forecast | None = None) -> tuple[Reproduced, ...]:
    """From data alone, and with a forecast also what its draws imply for the origin."""
    return (*_lags(), *_slopes(), *_growth(), *_stocks(), *_arithmetic(), *_draws(result))


def _lags() -> tuple[Reproduced, ...]:
    published = {
        2024: (3.0, 11.2, 18.2), 2025: (1.1, 5.0, 8.5), 2026: (4.4, 6.5, 9.4),
    }  # fmt: skip
    points = {2024: (2.5, 7.1, 12.9), 2025: (2.9, 5.8, 9.6), 2026: (5.9, 9.0, 11.4)}
    gap = records.daily_gap()
    rows = []
    for year, known in published.items():
        part = gap.within(dt.date(year, 1, 1), dt.date(year, 12, 31))
        span = f"{year}" if year < 2026 else "2026 to 10 September"
        for what, unit, values, expected in (
            (f"China behind the US, {span}", "months (least, mean, greatest)", part.months, known),
            (f"China behind the US, {span}", "ECI points", part.points, points[year]),
        ):
            ours = (float(values.min()), float(values.mean()), float(values.max()))
            rows.append(_row(what, unit, expected, ours, "Epoch's method on ECI, September 2026"))
    return tuple(rows)


def _slopes() -> tuple[Reproduced, ...]:
    cases = (("US", 2024, 15.8, 0.4), ("US", 2025, 15.0, 0.7),
             ("CN", 2024, 14.0, 0.6), ("CN", 2025, 11.8, 0.9))  # fmt: skip
    rows = []
    for group, year, mid, error in cases:
        slope = records.record_slope(group, dt.date(year, 1, 1))
        known = (mid - error, mid, mid + error)
        ours = (slope.per_year - slope.error, slope.per_year, slope.per_year + slope.error)
        what = f"record line since {year}, {group}"
        rows.append(_row(what, "ECI points per year (one s.e.)", known, ours, "ECI, least squares"))
    return tuple(rows)


def _growth() -> tuple[Reproduced, ...]:
    cases = (("CN", "China", (2.38, 3.40, 5.34)), ("other", "elsewhere", (4.14, 5.08, 6.23)))
    source = "Epoch notable models, January 2026; method of Epoch's China notebook"
    rows = []
    for group, where, known in cases:
        growth = records.run_growth(group)
        ours = (growth.low, growth.mid, growth.high)
        what = f"training compute, ten largest LLMs since Oct 2021, {where}"
        rows.append(_row(what, "times per year (90 %)", known, ours, source))
    return tuple(rows)


def _stocks() -> tuple[Reproduced, ...]:
    world = {year: records.total("sold", year) for year in (2023, 2024, 2025)}
    source = "Epoch ai-chip-counts, April 2026"
    rows = [
        _row(
            f"world's chips, end of {year}",
            "M H100e",
            _same(known),
            _same(world[year] / 1e6),
            source,
        )
        for year, known in ((2023, 1.60), (2024, 6.53), (2025, 19.74))
    ]
    for year, known in ((2024, 4.1), (2025, 3.0)):
        ours = _same(world[year] / world[year - 1])
        rows.append(_row(f"growth of it in {year}", "times", _same(known), ours, source))
    for year, known in ((2023, 11.0), (2024, 4.9), (2025, 2.0)):
        held = records.stock("held", "China NVIDIA", year)
        assert held is not None, "the table has these years"
        ours = _same(100 * held[1] / world[year])
        what = f"China's legal NVIDIA in it, end of {year}"
        rows.append(_row(what, "%", _same(known), ours, source))
    return tuple(rows)


def _arithmetic() -> tuple[Reproduced, ...]:
    def years(rate: float) -> float:
        return math.log(20) / math.log(rate)

    source = "arithmetic on a 20-fold gap between the largest known runs"
    return (
        _row("20-fold in compute at 3 per year", "years", _same(2.7), _same(years(3)), source),
        _row("20-fold at 10 per year", "months", _same(16), _same(12 * years(10)), source),
        _row("20-fold at 60 per year", "months", _same(9), _same(12 * years(60)), source),
        _row("20-fold at 16 per year", "months", _same(13), _same(12 * years(16)), source),
    )  # fmt: skip


def _draws(result: Forecast | None) -> tuple[Reproduced, ...]:
    """What the draws that fit the evidence imply at the origin."""
    if result is None:
        return ()
    ours = _fan(result, "run_ratio")
    back = 10.0 ** (_fan_log(result, "leader_run") - 1.2 * math.log10(5.08))
    theirs = 10.0 ** (_fan_log(result, "follower_run") - 1.2 * math.log10(3.40))
    return (
        _row("largest US run over largest Chinese run", "times", _same(20), ours,
             "Grok 4 5e26 over Doubao-pro 2.5e25"),
        _row("largest US run, carried back to mid 2025 at 5.08 per year", "1e25 FLOP",
             (6.6, 38, 50), _three(back / 1e25), "GPT-5 6.6e25, GPT-4.5 3.8e26, Grok 4 5e26"),
        _row("largest Chinese run, carried back to mid 2025 at 3.40 per year", "1e25 FLOP",
             (0.5, 1.5, 2.5), _three(theirs / 1e25),
             "Qwen3 4.8e24, Qwen3-Max 1.5e25, Doubao-pro 2.5e25"),
    )  # fmt: skip


def _fan(result: Forecast, name: str) -> tuple[float, float, float]:
    return _three(result.fans[name][0][[0, 3, 6]])


def _fan_log(result: Forecast, name: str) -> NDArray[np.float64]:
    assert QUANTILES[3] == 0.5, "the median is the fourth"
    return np.asarray(result.fans[name][0][[0, 3, 6]])


def _three(values: NDArray[np.float64]) -> tuple[float, float, float]:
    low, mid, high = (float(v) for v in values)
    return low, mid, high


def _same(value: float) -> tuple[float, float, float]:
    return value, value, value


def _row(
    what: str,
    unit: str,
    published: tuple[float, float, float],
    ours: tuple[float, float, float],
    source: str,
) -> Reproduced:
    return Reproduced(what=what, unit=unit, published=published, ours=ours, source=source)


# Other people's odds and lags, held against the forecast
# -------------------------------------------------------

FILE = "outlook_statements.toml"

ODDS = ("ever", "ahead", "larger_run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What somebody said, as a range of a measure at a time."""

    who: str
    said: str
    words: str
    measure: str
    years: float
    low: float
    high: float
    fits: str
    source: str
    scenario: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A statement and the forecast's view of the same measure.

    Odds have low = mid = high; other measures their 5, 50 and 95 % points.
    """

    statement: Statement
    low: float
    mid: float
    high: float

    @property
    def agrees(self) -> bool:
        """The stated range holds our median."""
        return self.statement.low <= self.mid <= self.statement.high

    @property
    def overlaps(self) -> bool:
        """The stated range and our 90 % interval have values in common."""
        return self.low <= self.statement.high and self.statement.low <= self.high


@cache
def statements() -> tuple[Statement, ...]:
    """All statements that a forecast can be held against."""
    return tuple(
        Statement(**{**row, "scenario": MappingProxyType(row.get("scenario", {}))})
        for row in _file()["statement"]
    )


@cache
def not_comparable() -> tuple[Mapping[str, str], ...]:
    """Known statements without a number for this question, each with the reason."""
    return tuple(MappingProxyType(row) for row in _file()["not_comparable"])


@cache
def arena() -> tuple[float, tuple[float, ...]]:
    """The gap on Arena text in points, and how far it may wander per square root of a year."""
    table = _file()["arena"]
    return float(table["gap"]), tuple(map(float, table["wander"]))


def compare(result: Forecast) -> tuple[Comparison, ...]:
    """Every statement against the forecast; a stated condition is simulated as such."""
    last = float(result.years[-1])
    return tuple(_compare(s, _under(result, s.scenario)) for s in statements() if s.years <= last)


def _under(result: Forecast, scenario: Mapping[str, str]) -> Forecast:
    if not scenario:
        return result
    changed = result.assumptions
    for name, option in scenario.items():
        changed = changed.with_scenario(name, option)
    return forecast(_fewer(changed))


def _fewer(assumptions: Assumptions) -> Assumptions:
    paths = min(assumptions.run.paths, assumptions.run.lever_paths)
    return assumptions.with_run(paths=paths, fan_paths=paths)


def _compare(statement: Statement, result: Forecast) -> Comparison:
    low, mid, high = view(result, statement.measure, statement.years)
    return Comparison(statement=statement, low=low, mid=mid, high=high)


def view(result: Forecast, measure: str, years: float) -> tuple[float, float, float]:
    """The forecast's 5, 50 and 95 % points of a measure at a time; odds three times the same."""
    if measure in ODDS:
        odds = float(np.interp(years, result.years, getattr(result, measure)))
        return odds, odds, odds
    name = "leader_stock" if measure == "top_stock" else measure
    factor = 1.0
    if measure == "top_stock":
        factor = result.assumptions.quantities["leader_top_share"].mid
    fan = result.fans[name]
    low, mid, high = (
        factor * float(np.interp(years, result.years, fan[:, QUANTILES.index(q)]))
        for q in (0.05, 0.5, 0.95)
    )
    return low, mid, high


@cache
def _file() -> Mapping[str, Any]:
    text = resources.files("krzem.facts").joinpath(FILE).read_text(encoding="utf-8")
    return MappingProxyType(tomllib.loads(text))
