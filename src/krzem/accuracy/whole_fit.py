"""Published totals against forecasts: ``python -m krzem.accuracy.whole_fit [--write]``.

Each total is planned as its row says (:mod:`krzem.accuracy.whole_runs`): once with the layout that
is published, where one is, and once with the best layout of a search, as a user without one plans.
The distance between forecast and total is fitted on both (:class:`krzem.plan.calendar.Distance`),
and every total is judged by a distance that was fitted without its organisation.  ``--write`` puts
the distance of all totals into ``facts/coefficients.json``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import krzem.facts
from krzem.accuracy.whole_runs import FROM_STEPS, Total, totals
from krzem.cost.coefficients import Z80, fitted, shipped, spread
from krzem.errors import KrzemError
from krzem.estimate import Estimate
from krzem.plan import calendar
from krzem.plan.calendar import Distance, without_distance
from krzem.plan.forecast import forecast
from krzem.plan.goal import SURE, Goal
from krzem.plan.plan import Plan, plan
from krzem.plan.request import settle
from krzem.plan.search import POSSIBLE

FILE = Path(krzem.facts.__file__).parent / "coefficients.json"
RELAXED = (("recompute",), ("mbs", "vpp"), ("zero",), ("dp", "etp", "cp"), ("tp", "pp", "ep"))
"""What is given up, one after the other, where no layout is legal and fits with all of it."""
PRIOR = ((0.15, 0.2), (0.0, 0.2))
"""Middle and standard deviation of ``searched`` and ``given`` before any total is seen: the best of
many predictions is too good by their error."""
LARGEST = 32
"""Sequences of a micro-batch that are tried; published layouts of small models have as many."""
OTHER = "other"
"""Engine of published layouts that the usual one refuses."""
LEAST = 0.05
"""Residuals below this weigh alike; the distance is never taken to be surer."""
MOST, WITHIN = 0.6827, 1.0
"""Two thirds of a normal distribution, and the standard deviations within which they lie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecasted:
    """A total with what was forecast for it before any distance."""

    total: Total
    plan: Plan
    given: bool
    """Whether the parallel degrees were held to the published ones."""
    free: bool
    """Whether nothing of the layout was held."""
    hours: Estimate
    """Device-hours without the distance, of the same kind as the total."""

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm of ``hours``."""
        return math.log(self.hours.high / self.hours.low) / (2.0 * Z80)

    @property
    def ratio(self) -> float:
        """Logarithm of published over forecast."""
        return math.log(self.total.device_hours / self.hours.mid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A total and its interval by a distance that has not seen its organisation."""

    forecasted: Forecasted
    hours: Estimate

    @property
    def inside(self) -> bool:
        """Whether the 80 % interval holds the total."""
        return self.hours.low <= self.forecasted.total.device_hours <= self.hours.high

    @property
    def error(self) -> float:
        """Logarithm of forecast over published."""
        return math.log(self.hours.mid / self.forecasted.total.device_hours)


def forecasts(found: Iterable[Total]) -> list[Forecasted]:
    """Every total planned, free and with what is published of its layout.

    What cannot be planned is left out, and so is what is published where nothing of it holds.
    """
    done = []
    for total in found:
        free = _forecasted(replace(total, held=()))
        held = _forecasted(total) if total.held else None
        done += [one for one in (free, held) if one is not None and (one is free or not one.free)]
    return done


def as_published(found: Sequence[Judged]) -> list[Judged]:
    """One of each total: with its published layout where there is one."""
    best = {one.forecasted.total.id: one for one in found}
    return [one for one in found if one is best[one.forecasted.total.id]]


def as_planned(found: Sequence[Judged]) -> list[Judged]:
    """One of each total: with the best layout of a search."""
    return [one for one in found if one.forecasted.free]


def _forecasted(total: Total) -> Forecasted | None:
    engines = dict.fromkeys((total.question.engine, OTHER))
    for held, sure in _settings(total):
        for engine in engines:
            answer = _planned(total, held, sure, engine)
            if answer is not None:
                return Forecasted(
                    total=total,
                    plan=answer,
                    given=any(name in ("tp", "pp") for name, _ in held),
                    free=not held,
                    hours=_hours(answer, total.kind),
                )
    return None


def _planned(
    total: Total, held: list[tuple[str, str]], sure: float, engine: str | None
) -> Plan | None:
    """The plan under what is held; None where there is none.

    Where the usual engine does not run a published layout, another did.
    """
    limits = tuple(condition for _, condition in held)
    try:
        asked = settle(replace(total.question, engine=engine))
        space = replace(asked.space, limits=limits, max_micro_batch=LARGEST)
        return plan(asked.task, space=space, alternatives=0, sure=sure)
    except KrzemError:
        return None


def _settings(total: Total) -> Iterator[tuple[list[tuple[str, str]], float]]:
    """What is held of the layout, less and less, and how sure it must be to fit.

    What is published ran: it is given up only where it cannot fit at all.
    """
    held = list(total.held)
    for names in ((), *RELAXED):
        held = [part for part in held if part[0] not in names]
        yield held, SURE
        if held:
            yield held, POSSIBLE


def _hours(answer: Plan, kind: str) -> Estimate:
    """Device-hours without a distance; of the steps alone where the total counts nothing else."""
    cluster = answer.task.cluster
    run = forecast(
        answer.best.step_seconds,
        goal=answer.task.goal,
        cluster=cluster,
        parameters=float(answer.parameters),
        more=without_distance(cluster.nodes),
    )
    if kind in FROM_STEPS or run.device_hours is None:
        return run.training_days.scaled(24.0 * cluster.devices)
    return run.device_hours


def fit(found: Sequence[Forecasted]) -> Distance:
    """The distance between forecasts and totals.

    Least absolute residuals, so that totals nobody can explain pull little; an organisation with
    many totals weighs as the root of their number.  The spread is what two thirds of the
    residuals show beside the errors of their forecasts.
    """
    y = np.array([one.ratio for one in found])
    x = np.array([(not one.given, one.given) for one in found], dtype=float)
    names = [one.total.organisation for one in found]
    weight = np.array([names.count(name) ** -0.5 for name in names])
    middle, sigma = np.array(PRIOR).T
    theta = middle.copy()
    for _ in range(80):
        pull = weight / np.maximum(np.abs(y - x @ theta), LEAST)
        normal = (x * pull[:, None]).T @ x + np.diag(sigma**-2.0)
        theta = np.linalg.solve(normal, x.T @ (pull * y) + middle * sigma**-2.0)
    away, steps = np.abs(y - x @ theta), np.array([one.sigma for one in found])
    return Distance(
        searched=_round(theta[0]),
        given=_round(theta[1]),
        sigma=_round(_spread(away, steps)),
    )


def _spread(away: np.ndarray, steps: np.ndarray) -> float:
    """What beside ``steps`` lets :data:`MOST` of ``away`` lie within :data:`WITHIN`."""
    low, high = LEAST, 2.0
    for _ in range(40):
        trial = 0.5 * (low + high)
        within = away <= WITHIN * np.hypot(steps, trial)
        low, high = (low, trial) if np.mean(within) >= MOST else (trial, high)
    return high


def _round(value: Any) -> float:
    return round(float(value), 4)


def judged(found: Sequence[Forecasted]) -> list[Judged]:
    """Every total by a distance fitted without its organisation."""
    without = {
        name: fit([one for one in found if one.total.organisation != name])
        for name in {one.total.organisation for one in found}
    }
    return [_judged(one, without[one.total.organisation]) for one in found]


def _judged(one: Forecasted, far: Distance) -> Judged:
    answer, cluster = one.plan, one.plan.task.cluster
    more = without_distance(cluster.nodes, far.estimate(one.given))
    goal: Goal = answer.task.goal
    run = forecast(
        answer.best.step_seconds, goal=goal, cluster=cluster,
        parameters=float(answer.parameters), more=more,
    )  # fmt: skip
    hours = run.device_hours
    if hours is None:
        plain = answer.best.step_seconds.scaled(run.steps * cluster.devices / 3600.0)
        middle = plain.mid * more.distance.mid
        hours = Estimate.lognormal(middle, math.hypot(one.sigma, far.sigma))
    return Judged(forecasted=one, hours=hours)


def figures(found: Sequence[Judged]) -> dict[str, float]:
    """Share inside, sharpness and error of totals."""
    if not found:
        return {"n": 0}
    error = np.array([one.error for one in found])
    width = np.array([one.hours.high / one.hours.low for one in found])
    return {
        "n": len(found),
        "organisations": len({one.forecasted.total.organisation for one in found}),
        "inside80": _round(np.mean([one.inside for one in found])),
        "high_over_low": _round(np.median(width)),
        "forecast_over_published": _round(np.exp(np.median(error))),
        "median_log_error": _round(np.median(np.abs(error))),
        "interval_score": _round(np.mean([_score(one) for one in found])),
    }


def _score(one: Judged) -> float:
    """Interval score of the logarithm at 80 %: width, and ten times what lies outside."""
    low, high = math.log(one.hours.low), math.log(one.hours.high)
    total = math.log(one.forecasted.total.device_hours)
    return high - low + 10.0 * (max(low - total, 0.0) + max(total - high, 0.0))


def whole_run_part(found: Sequence[Forecasted] | None = None) -> dict[str, Any]:
    """What ``facts/coefficients.json`` holds under ``whole_run``, from the shipped coefficients."""
    found = forecasts(totals()) if found is None else found
    far = fit(found)
    part: dict[str, Any] = {name: getattr(far, name) for name in Distance.__slots__}
    seen = judged(found)
    return {
        **part,
        "without_organisation": {
            "published_layouts": figures(as_published(seen)),
            "planned_layouts": figures(as_planned(seen)),
        },
    }


def write(path: Path = FILE) -> Mapping[str, Any]:
    """Fit to the coefficients that ``path`` holds by now and merge ``whole_run`` into it."""
    for cached in (shipped, fitted, spread, calendar.distance):
        cached.cache_clear()
    document = json.loads(path.read_text(encoding="utf-8"))
    document["whole_run"] = whole_run_part()
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for cached in (shipped, calendar.distance):
        cached.cache_clear()
    return dict(document["whole_run"])


def lines(found: Sequence[Judged]) -> Iterable[str]:
    """One line a total, the largest error first."""
    for one in sorted(found, key=lambda j: -abs(j.error)):
        total, hours = one.forecasted.total, one.hours
        yield (
            f"{total.id}  {total.model:<18.18} {total.organisation:<16.16} {total.kind:<10}"
            f" {total.device_hours:>11,.0f}  {hours.mid:>11,.0f}"
            f" ({hours.low:,.0f}–{hours.high:,.0f})  {math.exp(one.error):.2f}"
            f"  {'inside' if one.inside else 'OUTSIDE'}  {one.forecasted.plan.best.layout}"
        )


def main() -> None:
    """Print every total and the figures; ``--write`` merges the fit into the coefficients."""
    found = forecasts(totals())
    print(*lines(as_published(judged(found))), sep="\n")
    part = write() if "--write" in sys.argv[1:] else whole_run_part(found)
    json.dump(part, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
