"""The same model with what was known at the end of 2024, held against 2025 and 2026."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from krzem.outlook import records
from krzem.outlook.assumptions import Assumptions, changed
from krzem.outlook.draws import draw_chunk, path_rng
from krzem.outlook.model import State, simulate

FILE = "outlook_2024.toml"
PATHS = 32_768
LEVELS = (0.5, 0.8, 0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One thing that came to be known, and what the model had said."""

    what: str
    unit: str
    actual: float
    low: float
    mid: float
    high: float
    """5, 50 and 95 % points."""
    place: float
    """Share of paths below the actual value."""

    def inside(self, level: float) -> bool:
        """Whether the actual value lies in the central interval of that probability."""
        return abs(self.place - 0.5) <= level / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BackTest:
    """All targets; several are the same thing at two dates, so they are not independent."""

    assumptions: Assumptions
    targets: tuple[Target, ...]

    def covered(self, level: float) -> int:
        """How many targets lie in the interval of that probability."""
        return sum(t.inside(level) for t in self.targets)


@cache
def assumptions_of_2024() -> Assumptions:
    """The shipped assumptions with what differs in a view from the end of 2024."""
    text = resources.files("krzem.facts").joinpath(FILE).read_text(encoding="utf-8")
    return changed(text, FILE)


def back_test(base: Assumptions | None = None, paths: int = PATHS) -> BackTest:
    """Simulate to 10 September 2026 and compare with what happened."""
    base = base or assumptions_of_2024()
    end = (records.LAST_DAY - base.origin).days / 365.25
    step = end / 20
    drawn = draw_chunk(base, 0, paths)
    states = list(simulate(drawn.draws, 20, step, path_rng(base, 0)))
    near = _picker(states)
    first, second = near(0.0, 1.0), near(1.0, end)
    at_2025, last = first[-1], states[-1]
    gap = records.daily_gap()
    y2025 = gap.within(dt.date(2025, 1, 1), dt.date(2025, 12, 31))
    y2026 = gap.within(dt.date(2026, 1, 1), records.LAST_DAY)
    day = dt.date(2025, 12, 31)
    legal = _legal(drawn.draws, 1.0)
    rows: Sequence[tuple[str, str, float, NDArray[np.floating]]] = (
        ("lag, mean of 2025", "months", y2025.months.mean(), _mean(first, "lag_months")),
        ("lag, mean of 2026", "months", y2026.months.mean(), _mean(second, "lag_months")),
        ("gap, mean of 2025", "ECI points", y2025.points.mean(), _mean(first, "gap_points")),
        ("gap, mean of 2026", "ECI points", y2026.points.mean(), _mean(second, "gap_points")),
        ("US record, end of 2025", "ECI", _level("US", day), at_2025.leader_level),
        ("US record, 10 Sept 2026", "ECI", _level("US", records.LAST_DAY), last.leader_level),
        ("China's record, end of 2025", "ECI", _level("CN", day), _follower(at_2025)),
        ("China's record, 10 Sept 2026", "ECI", _level("CN", records.LAST_DAY), _follower(last)),
        ("five US labs, end of 2025", "M H100e", records.total("used", 2025) / 1e6,
         10.0**at_2025.leader_stock / 1e6),
        ("China's legal NVIDIA, end of 2025", "k H100e", _held() / 1e3, legal / 1e3),
    )  # fmt: skip
    return BackTest(assumptions=base, targets=tuple(_target(*row) for row in rows))


def _target(what: str, unit: str, actual: float, paths: NDArray[np.floating]) -> Target:
    low, mid, high = (float(x) for x in np.quantile(paths, (0.05, 0.5, 0.95)))
    return Target(
        what=what,
        unit=unit,
        actual=float(actual),
        low=low,
        mid=mid,
        high=high,
        place=float((paths < actual).mean()),
    )


def _picker(states: list[State]) -> Callable[[float, float], list[State]]:
    def between(first: float, last: float) -> list[State]:
        return [s for s in states if first < s.years <= last + 0.01]

    return between


def _mean(states: list[State], name: str) -> NDArray[np.floating]:
    return np.asarray(np.mean([getattr(s, name) for s in states], axis=0))


def _follower(state: State) -> NDArray[np.floating]:
    return np.asarray(state.leader_level - state.gap_points)


def _level(group: str, day: dt.date) -> float:
    found = records.level(group, day)
    assert found is not None, "both record lines begin before 2025"
    return found


def _held() -> float:
    found = records.stock("held", "China NVIDIA", 2025)
    assert found is not None, "the table has this row"
    return found[1]


def _legal(draws: object, years: float) -> NDArray[np.floating]:
    """Legal stock after some years without wear, as the published count has it."""
    d = dict(draws)  # type: ignore[call-overload]
    rate = np.choose(d["export"].astype(int), [
        d["legal_per_year_tight"], d["legal_per_year_as_now"], d["legal_per_year_loose"],
    ])  # fmt: skip
    return np.asarray(d["legal_stock"] + rate * years)
