"""Other people's odds and lags, held against the forecast."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np

from krzem.outlook.assumptions import Assumptions
from krzem.outlook.simulate import QUANTILES, Forecast, forecast

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
