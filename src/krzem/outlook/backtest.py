"""The model and a naive trend at four days of the past, held against what came.

What the model knows at a cut-off stands in ``facts/outlook_backtest.toml`` or is computed from the
records up to that day; nothing is taken from the assumptions of today.  Both are scored by the
continuous ranked probability score and by the logarithm of the density where the truth fell.
"""

from __future__ import annotations

import datetime as dt
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krzem.outlook import records
from krzem.outlook.assumptions import Assumptions, Evidence, Quantity, Shape, read_quantity, shipped
from krzem.outlook.model import State, draw_chunk, path_rng, simulate
from krzem.outlook.records import Normal

FILE = "outlook_backtest.toml"
PATHS = 16_384
LEVELS = (0.5, 0.8, 0.9)
STEPS_PER_YEAR = 8
FAMILIES = ("gap", "lag", "US record", "China's record", "stocks", "largest runs")

Paths = NDArray[np.floating]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How one forecast did on one target."""

    crps: float
    """Lower is better; in the target's unit."""
    log_density: float
    """Higher is better."""
    place: float
    """Share of the forecast below the actual value."""

    def inside(self, level: float) -> bool:
        """Whether the actual value lies in the central interval of that probability."""
        return abs(self.place - 0.5) <= level / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One thing that came to be known, and what model and trend had said; stocks, runs as log10."""

    cutoff: dt.date
    family: str
    what: str
    unit: str
    actual: float
    low: float
    mid: float
    high: float
    """The model's 5, 50 and 95 % points."""
    trend_mid: float
    model: Score
    trend: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Model against trend over all targets of a family."""

    family: str
    count: int
    crps: tuple[float, float]
    """Mean of the model's and of the trend's scores."""
    log_density: tuple[float, float]
    inside_80: tuple[int, int]

    @property
    def better(self) -> str:
        """``model`` or ``trend``, by the ranked probability score."""
        return "model" if self.crps[0] < self.crps[1] else "trend"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackTest:
    """All targets at all cut-offs; those of one cut-off are far from independent."""

    targets: tuple[Target, ...]

    def covered(self, level: float, cutoff: dt.date | None = None) -> tuple[int, int, int]:
        """Targets inside the model's and the trend's interval of that probability, and all."""
        some = [t for t in self.targets if cutoff in (None, t.cutoff)]
        model, trended = (
            sum(getattr(t, x).inside(level) for t in some) for x in ("model", "trend")
        )
        return model, trended, len(some)

    @property
    def cutoffs(self) -> tuple[dt.date, ...]:
        """The days from which forecasts were made."""
        return tuple(sorted({t.cutoff for t in self.targets}))

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One for each family, in the order of FAMILIES."""
        return tuple(self._verdict(name) for name in FAMILIES)

    def better(self, family: str) -> str:
        """Which of the two a forecast of this family is to be taken from."""
        return next(v.better for v in self.verdicts if v.family == family)

    def _verdict(self, family: str) -> Verdict:
        some = [t for t in self.targets if t.family == family]

        def mean(of: Callable[[Target], float]) -> float:
            return sum(map(of, some)) / len(some)

        return Verdict(
            family=family,
            count=len(some),
            crps=(mean(lambda t: t.model.crps), mean(lambda t: t.trend.crps)),
            log_density=(mean(lambda t: t.model.log_density), mean(lambda t: t.trend.log_density)),
            inside_80=(
                sum(t.model.inside(0.8) for t in some), sum(t.trend.inside(0.8) for t in some)
            ),
        )  # fmt: skip


@cache
def back_test(paths: int = PATHS) -> BackTest:
    """Forecast from every cut-off and score what has come since."""
    return BackTest(
        targets=tuple(t for day in _days() for t in _targets(day, assumptions_at(day), paths))
    )


@cache
def assumptions_at(day: dt.date) -> Assumptions:
    """What could be assumed on a cut-off day of the file; KeyError for another day."""
    data = _file()
    given = next((c for c in data["cutoff"] if c["day"] == day), None)
    if given is None:
        raise KeyError(f"{day} is no cut-off; there are {', '.join(map(str, _days()))}")
    base = shipped()
    tables = {**data["structural"], **given["quantity"]}
    quantities = {name: _quantity(name, table) for name, table in tables.items()}
    quantities |= _by_rule(day)
    return replace(
        base,
        title=f"China against the US frontier, as seen on {day}",
        origin=day,
        evidence=MappingProxyType(_evidence(day)),
        scenarios=MappingProxyType({k: MappingProxyType(v) for k, v in data["scenario"].items()}),
        quantities=MappingProxyType({name: quantities[name] for name in base.quantities}),
    )


def dated(day: dt.date) -> Mapping[str, dt.date]:
    """The last day that each dated quantity of a cut-off speaks of."""
    given = next(c for c in _file()["cutoff"] if c["day"] == day)
    return {name: table["dated"] for name, table in given["quantity"].items()}


def _quantity(name: str, table: Mapping[str, Any]) -> Quantity:
    """The shape and unit are those of the name; the numbers are the table's alone."""
    stated = {k: v for k, v in table.items() if k != "dated"}
    kind = "published" if table["source"].split(":")[0] not in ("judgement", "structural") else (
        "judgement"
    )  # fmt: skip
    return read_quantity(name, {"kind": kind, **stated}, shipped().quantities[name])


def _by_rule(day: dt.date) -> dict[str, Quantity]:
    """Where both stand, from the records; before these begin, a gap and a level of no meaning."""
    gap = records.daily_gap(last=day)
    level = records.level("US", day)
    points = float(gap.points[-182:].mean()) if len(gap.points) else 10.0
    return {
        name: Quantity(name=name, low=mid - 2.1, mid=mid, high=mid + 2.1, shape=Shape.PLAIN,
                       unit="ECI points", kind="computed", source=f"records up to {day}, by rule")
        for name, mid in (("gap_points", points), ("leader_level", level or 100.0))
    }  # fmt: skip


def _evidence(day: dt.date) -> dict[str, Evidence]:
    """Lag of the last year and slope of the last two, with the spread of each; none before 2023."""
    gap = records.daily_gap(last=day)
    if not len(gap.months):
        return {}
    lag = gap.months[-365:]
    first = max(day - dt.timedelta(days=730), records.records("US")[0].date)
    source = f"records up to {day}, by rule"
    found = {
        "lag_months": Evidence(value=float(lag.mean()), deviation=max(float(lag.std()), 2.0),
                               source=source),
    }  # fmt: skip
    if sum(first <= r.date <= day for r in records.records("US")) >= 4:
        slope = records.record_slope("US", first, day)
        found["frontier_points_per_year"] = Evidence(
            value=slope.per_year, deviation=2 * slope.error, source=source
        )
    return found


def _targets(day: dt.date, base: Assumptions, paths: int) -> Iterable[Target]:
    end = (records.LAST_DAY - day).days / 365.25
    steps = math.ceil(end * STEPS_PER_YEAR)
    drawn = draw_chunk(base, 0, paths)
    states = list(simulate(drawn.draws, steps, end / steps, path_rng(base, 0)))
    for row in (*_index_rows(day, states), *_stock_rows(day, states, drawn.draws)):
        yield _target(day, *row)


Row = tuple[str, str, str, float, Paths, Normal]


def _index_rows(day: dt.date, states: Sequence[State]) -> Iterable[Row]:
    """Gap and lag of each following year, and both records at its end."""
    if not len(records.daily_gap(last=day).days):
        return
    for first, last in _years(day):
        a, b = (_years_after(day, x) for x in (first, last))
        some = [s for s in states if a < s.years <= b + 0.01]
        seen = records.daily_gap().within(first, last)
        for family, unit, name in (("gap", "points", "points"), ("lag", "months", "months")):
            said = records.behind(name, day, a, b)
            ours = np.mean([getattr(s, f"{family}_{unit}") for s in some], axis=0)
            truth = float(getattr(seen, name).mean())
            if said is not None:
                yield family, f"mean to {last}", unit, truth, ours, said
        for family, group in (("US record", "US"), ("China's record", "CN")):
            said, truth_at = records.trend_level(group, day, b), records.level(group, last)
            at = some[-1]
            ours = at.leader_level if group == "US" else at.leader_level - at.gap_points
            if said is not None and truth_at is not None:
                yield family, f"on {last}", "ECI", truth_at, ours, said


def _stock_rows(day: dt.date, states: Sequence[State], draws: Any) -> Iterable[Row]:
    """Chips at the ends of years, and the largest runs known then; log10 throughout."""
    for year in (2023, 2024, 2025):
        end = dt.date(year, 12, 31)
        years = _years_after(day, end)
        if not 0.2 < years <= 2.01:
            continue
        at = min(states, key=lambda s: abs(s.years - years))
        legal = np.log10(draws["legal_stock"] + draws["legal_per_year_as_now"] * years)
        for what, values, ours in (
            ("labs", _used(), at.leader_stock),
            ("China NVIDIA", _held(), legal),
        ):
            known = {y: v for y, v in values.items() if dt.date(y, 12, 31) <= day}
            if year in values and len(known) >= 2:
                last = max(known)
                span = float(year - last)
                said = records.growth(known[last - 1], known[last], span)
                unit = "log10 H100e"
                yield "stocks", f"{what}, end of {year}", unit, math.log10(values[year]), ours, said
        for group, ours in (("other", at.leader_run), ("CN", at.follower_run)):
            said_run = records.run(group, day, years)
            truth = max(f for d, f in records.training_runs(group) if d <= end)
            where = "China" if group == "CN" else "elsewhere"
            if said_run is not None:
                yield "largest runs", f"{where}, {year}", "log10 FLOP", truth, ours, said_run


def _target(
    day: dt.date, family: str, what: str, unit: str, actual: float, paths: Paths, said: Normal
) -> Target:
    low, mid, high = (float(x) for x in np.quantile(paths, (0.05, 0.5, 0.95)))
    return Target(
        cutoff=day,
        family=family,
        what=what,
        unit=unit,
        actual=actual,
        low=low,
        mid=mid,
        high=high,
        trend_mid=said.mean,
        model=sample_score(np.asarray(paths, dtype=np.float64), actual),
        trend=Score(
            crps=said.crps(actual),
            log_density=said.log_density(actual),
            place=said.cdf(actual),
        ),
    )


def sample_score(paths: NDArray[np.float64], actual: float) -> Score:
    """Scores of a forecast given by equally likely paths.

    CRPS = E|X - y| - E|X - X'| / 2; the density is a normal kernel's of Silverman's width.
    """
    x = np.sort(paths)
    n = len(x)
    spread = 2 * float(((2 * np.arange(1, n + 1) - n - 1) * x).sum()) / n**2
    width = max(0.9 * float(x.std()) * n**-0.2, 1e-9)
    density = float(np.exp(-0.5 * ((x - actual) / width) ** 2).mean()) / (
        width * math.sqrt(2 * math.pi)
    )
    return Score(
        crps=float(np.abs(x - actual).mean()) - spread / 2,
        log_density=math.log(max(density, 1e-12)),
        place=float((x < actual).mean()),
    )


def _years(day: dt.date) -> Iterable[tuple[dt.date, dt.date]]:
    """The first and second year after a day, as far as the records go."""
    first = day + dt.timedelta(days=1)
    for _ in range(2):
        last = min(first.replace(year=first.year + 1) - dt.timedelta(days=1), records.LAST_DAY)
        if (last - first).days > 150:
            yield first, last
        first = last + dt.timedelta(days=1)


def _years_after(day: dt.date, later: dt.date) -> float:
    return (later - day).days / 365.25


def _held() -> dict[int, float]:
    found = {y: records.stock("held", "China NVIDIA", y) for y in (2022, 2023, 2024, 2025)}
    return {y: v[1] for y, v in found.items() if v is not None}


def _used() -> dict[int, float]:
    """Five labs; for 2023 one of them is known, and the others are taken in its proportion."""
    one = [records.stock("used", "OpenAI", y) for y in (2023, 2024)]
    assert one[0] is not None, "the table has OpenAI at both year ends"
    assert one[1] is not None, "the table has OpenAI at both year ends"
    now = records.total("used", 2024)
    return {2023: now * one[0][1] / one[1][1], 2024: now, 2025: records.total("used", 2025)}


@cache
def _file() -> Mapping[str, Any]:
    text = resources.files("krzem.facts").joinpath(FILE).read_text(encoding="utf-8")
    return MappingProxyType(tomllib.loads(text))


def _days() -> tuple[dt.date, ...]:
    return tuple(c["day"] for c in _file()["cutoff"])
