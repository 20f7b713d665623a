"""Everything ``krzem outlook`` shows, computed in one go."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from krzem.outlook import records
from krzem.outlook.assumptions import Assumptions
from krzem.outlook.backtest import LEVELS, BackTest, back_test
from krzem.outlook.reproduce import ODDS, Comparison, Reproduced, arena, compare, reproduce
from krzem.outlook.sensitivity import Beliefs, Levers, beliefs, count_of_levers, levers
from krzem.outlook.simulate import QUANTILES, Forecast, forecast
from krzem.plan.goodput import loss_law

STRONGEST = 8
"""Levers that are solved for."""

Advance = Callable[[str, float], None]
"""Called with the part at work and the share of it that was just finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nats:
    """The median gap at a time, as a difference of loss under one law."""

    law: str
    years: float
    leader_loss: float
    follower_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One meaning of "ahead" and its odds."""

    means: str
    index: str
    """Whose measure says so."""
    source: str
    odds: tuple[tuple[float, float], ...]
    """Years from the origin, and the chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The forecast with everything that puts it in its place."""

    forecast: Forecast
    definitions: tuple[Definition, ...]
    comparisons: tuple[Comparison, ...]
    reproduced: tuple[Reproduced, ...]
    back_test: BackTest
    levers: Levers | None
    """None where they were not asked for."""
    beliefs: tuple[Beliefs, ...]
    nats: tuple[Nats, ...]


def _quiet(part: str, share: float) -> None:
    return None


def outlook(
    assumptions: Assumptions,
    *,
    lever_years: float | None = 5.0,
    workers: int | None = None,
    advance: Advance = _quiet,
) -> Outlook:
    """Simulate, compare, back-test; with ``lever_years`` also the levers of those odds."""
    paths = assumptions.run.paths
    result = forecast(assumptions, workers=workers, progress=lambda n: advance("paths", n / paths))
    test = back_test()
    if test.better("US record") == "trend" and assumptions.origin == records.LAST_DAY:
        result = _with_level_by_trend(result)
    comparisons = compare(result)
    moved: Levers | None = None
    believed: tuple[Beliefs, ...] = ()
    if lever_years is not None:
        years = min(lever_years, float(result.years[-1]))
        ticks = count_of_levers(assumptions)
        moved = levers(assumptions, years, lambda: advance("levers", 1 / ticks))
        believed = _beliefs(assumptions, comparisons, moved, years, advance)
    return Outlook(
        forecast=result,
        definitions=definitions(result),
        comparisons=comparisons,
        reproduced=reproduce(result),
        back_test=test,
        levers=moved,
        beliefs=believed,
        nats=_nats(result),
    )


TESTED_YEARS = 2.0
"""How far ahead the back-test has tried the trend."""


def _with_level_by_trend(f: Forecast) -> Forecast:
    """The forecast with the leader's record from the trend, and the follower's below it by the gap.

    The back-test found the trend the better of the two for the record's level, up to two years
    ahead; from there the model's own growth is added.
    """
    fan = f.fans["leader_level"]
    middle = QUANTILES.index(0.5)
    z = np.array([-1.6449, -1.2816, -0.6745, 0.0, 0.6745, 1.2816, 1.6449])
    last = int(np.searchsorted(f.years, TESTED_YEARS, side="right")) - 1
    leader = np.array(fan)
    for k, years in enumerate(f.years):
        said = records.trend_level("US", f.assumptions.origin, float(min(years, f.years[last])))
        assert said is not None, "the records hold more than four models"
        grown = fan[k] - fan[k, middle] if k > last else np.zeros_like(z)
        start = fan[last, middle] if k > last else fan[k, middle]
        mean = said.mean + fan[k, middle] - start
        leader[k] = mean + np.sign(z) * np.hypot(z * said.sd, grown)
    below = f.fans["gap_points"][:, middle, None]
    spread = (f.fans["gap_points"] - below) ** 2 + (leader - leader[:, middle, None]) ** 2
    follower = leader[:, middle, None] - below + np.sign(z) * np.sqrt(spread)
    return replace(f, fans={**f.fans, "leader_level": leader, "follower_level": follower})


def definitions(f: Forecast) -> tuple[Definition, ...]:
    """The odds by what "ahead" is taken to mean."""
    years = [y for y in (1.0, 3.0, 5.0, 10.0) if y <= f.years[-1]]
    index, ours = "Epoch's capability index (ECI)", "this model"
    gap = f.assumptions.quantities["gap_points"].mid
    walk = records.wander(records.daily_gap().points)
    votes, wanders = arena()
    since = dt.date(2024, 1, 1)
    drift = records.record_slope("US", since).per_year - records.record_slope("CN", since).per_year

    def curve(values: object) -> tuple[tuple[float, float], ...]:
        array = np.asarray(values, dtype=np.float64)
        return tuple((y, float(np.interp(y, f.years, array))) for y in years)

    def walked(start: float, sd: float, rate: float) -> tuple[tuple[float, float], ...]:
        return tuple((y, records.ever_ahead(start, sd, rate, y)) for y in years)

    return (
        Definition(means="a released model has led at some time until then", index=index,
                   source=ours, odds=curve(f.ever)),
        Definition(means="the same, by a random walk of the gap and nothing else", index=index,
                   source=f"gap {gap:.1f}, wandering {walk:.1f} points per root year",
                   odds=walked(gap, walk, 0.0)),
        Definition(means="the same walk, widening as since 2024", index=index,
                   source=f"{drift:+.1f} points a year", odds=walked(gap, walk, drift)),
        Definition(means="ahead in trend on that day, luck of release dates left out", index=index,
                   source=ours, odds=curve(f.ahead)),
        Definition(means="the larger training run on that day", index="FLOP of the largest run",
                   source=ours, odds=curve(f.larger_run)),
        *(Definition(means="a model has led at some time until then", index="votes on Arena text",
                     source=f"a walk from {votes:.0f} points (March 2026, Stanford AI Index), "
                            f"{sd:.0f} per root year: judgement", odds=walked(votes, sd, 0.0))
          for sd in wanders),
    )  # fmt: skip


def _beliefs(
    assumptions: Assumptions,
    comparisons: tuple[Comparison, ...],
    moved: Levers,
    years: float,
    advance: Advance,
) -> tuple[Beliefs, ...]:
    """For every stated chance its nearest bound, and an even chance for scale."""
    names = [lever.name for lever in moved.levers[:STRONGEST]]
    if "gap_points" not in names:
        names.append("gap_points")
    targets = {(0.5, years)}
    for c in comparisons:
        if c.statement.measure in ODDS:
            stated = c.statement.high if c.mid <= c.statement.high else c.statement.low
            if c.mid < c.statement.low:
                stated = c.statement.low
            targets.add((stated, c.statement.years))
    ticks = len({y for _, y in targets}) * (len(names) + 1)
    return beliefs(
        assumptions, sorted(targets), names, lambda: advance("beliefs", 1 / ticks)
    )  # fmt: skip


def _nats(result: Forecast) -> tuple[Nats, ...]:
    """Median runs and gaps, the leader's algorithms of the origin counted as one."""
    quantities = result.assumptions.quantities
    median = result.fans["leader_run"].shape[1] // 2
    rows = []
    for law in ("besiroglu_2024", "hoffmann_2022"):
        for k in range(0, len(result.years), max(1, len(result.years) // 4)):
            progress = quantities["frontier_algorithms"].mid ** float(result.years[k])
            leader = 10 ** float(result.fans["leader_run"][k, median]) * progress
            behind = float(result.fans["gap_points"][k, median]) / quantities["points_per_oom"].mid
            rows.append(
                Nats(
                    law=law,
                    years=float(result.years[k]),
                    leader_loss=loss_law(law).best_loss(leader),
                    follower_loss=loss_law(law).best_loss(leader / 10**behind),
                )
            )
    return tuple(rows)


# The outlook as plain values for ``--json`` (schema ``krzem.outlook/1``)
# -----------------------------------------------------------------------

SCHEMA = "krzem.outlook/1"


def document(result: Outlook) -> dict[str, Any]:
    """Everything, the assumptions included; odds between 0 and 1, unknown as null."""
    return {
        "schema": SCHEMA,
        "assumptions": assumptions(result.forecast.assumptions),
        "forecast": _forecast(result.forecast),
        "definitions": plain(result.definitions),
        "levers": plain(result.levers),
        "beliefs": plain(result.beliefs),
        "statements": [
            {**plain(c), "agrees": c.agrees, "overlaps": c.overlaps} for c in result.comparisons
        ],
        "back_test": back_test_document(result.back_test),
        "reproduced": plain(result.reproduced),
        "nats": plain(result.nats),
    }


def back_test_document(test: BackTest) -> dict[str, Any]:
    """Targets with both scores, verdicts by family and coverage (model, trend, targets)."""
    return {
        "targets": [
            {**plain(t), "inside": {str(p): t.model.inside(p) for p in LEVELS}}
            for t in test.targets
        ],
        "verdicts": [{**plain(v), "better": v.better} for v in test.verdicts],
        "covered": {str(p): list(test.covered(p)) for p in LEVELS},
        "covered_by_cutoff": {
            str(day): {str(p): list(test.covered(p, day)) for p in LEVELS} for day in test.cutoffs
        },
    }


def assumptions(a: Assumptions) -> dict[str, Any]:
    """Every assumption with its source."""
    return {**plain(a), "origin": a.origin.isoformat()}


def plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as JSON values; NaN and infinities as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if not isinstance(value, str | int | bool | None) else value


def _forecast(f: Forecast) -> dict[str, Any]:
    return {
        "paths": f.paths,
        "effective_draws": f.effective,
        "years": f.years.tolist(),
        "ever_ahead": f.ever.tolist(),
        "ahead_in_trend": f.ahead.tolist(),
        "larger_run": f.larger_run.tolist(),
        "by_option": [
            {"scenario": name, "option": option, "ever_ahead": plain(curve.tolist())}
            for (name, option), curve in f.by_option.items()
        ],
        "quantiles": list(QUANTILES),
        "fans": {name: np.round(fan, 6).tolist() for name, fan in f.fans.items()},
    }
