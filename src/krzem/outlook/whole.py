"""Everything ``krzem outlook`` shows, computed in one go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from krzem.outlook.assumptions import Assumptions
from krzem.outlook.backtest import BackTest, back_test
from krzem.outlook.reproduce import Reproduced, reproduce
from krzem.outlook.sensitivity import Beliefs, Levers, beliefs, count_of_levers, levers
from krzem.outlook.simulate import Forecast, forecast
from krzem.outlook.statements import ODDS, Comparison, compare
from krzem.plan.laws import loss_law

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
class Outlook:
    """The forecast with everything that puts it in its place."""

    forecast: Forecast
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
        comparisons=comparisons,
        reproduced=reproduce(result),
        back_test=back_test(),
        levers=moved,
        beliefs=believed,
        nats=_nats(result),
    )


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
