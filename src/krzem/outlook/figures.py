"""The plots: odds, fan, lag over time, tornado."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from krzem.outlook import records
from krzem.outlook.sensitivity import Levers
from krzem.outlook.simulate import Forecast
from krzem.report.selfcontained import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BANDS = ((0, 6, 0.15), (1, 5, 0.2), (2, 4, 0.3))
"""Outer and inner columns of QUANTILES: 5-95, 10-90 and 25-75 %."""
_MEDIAN = 3
_BARS = 15


def odds_figure(f: Forecast) -> Figure:
    """The chance of having been ahead, in all and by scenario."""
    figure = new_figure()
    axes = figure.add_subplot()
    for (name, option), curve in f.by_option.items():
        label = f"{name}: {option}".replace("_", " ")
        axes.plot(f.years, 100 * curve, linewidth=0.9, linestyle="--", label=label)
    axes.plot(f.years, 100 * f.ever, color="black", linewidth=2, label="all, ever ahead")
    axes.plot(f.years, 100 * f.ahead, color="grey", linewidth=2, label="all, ahead in trend")
    axes.set(xlabel=f"years from {f.assumptions.origin}", ylabel="chance, %", ylim=(0, None))
    axes.legend(fontsize="small")
    return figure


def fan_figure(f: Forecast) -> Figure:
    """Both groups' level on the index."""
    figure = new_figure()
    axes = figure.add_subplot()
    days = _days(f)
    pairs = (("leader_level", f.assumptions.leader, "tab:blue", "US"),
             ("follower_level", f.assumptions.follower, "tab:red", "CN"))  # fmt: skip
    for name, label, colour, group in pairs:
        _fan(axes, days, f.fans[name], colour, label)
        past = [r for r in records.records(group) if r.date.year >= 2024]
        _days_axis(axes).step(
            [r.date for r in past], [r.eci for r in past], where="post", color=colour
        )
    axes.set(ylabel="capability index (ECI)")
    axes.legend(loc="upper left", fontsize="small")
    return figure


def lag_figure(f: Forecast) -> Figure:
    """Months behind: measured day by day until the origin, forecast after it."""
    figure = new_figure()
    axes = figure.add_subplot()
    gap = records.daily_gap()
    _days_axis(axes).plot(
        gap.days[::7], gap.months[::7], color="black", linewidth=1, label="measured"
    )
    _fan(axes, _days(f), f.fans["lag_months"], "tab:red", "forecast, 50, 80 and 90 %")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(ylabel="months behind")
    axes.legend(loc="upper left", fontsize="small")
    return figure


def tornado_figure(levers: Levers) -> Figure:
    """The odds at both ends of the strongest assumptions."""
    figure = new_figure(10.0, 6.0)
    axes = figure.add_subplot()
    rows = levers.levers[:_BARS][::-1]
    for i, lever in enumerate(rows):
        for value, odds, colour in ((lever.low, lever.at_low, "tab:orange"),
                                    (lever.high, lever.at_high, "tab:blue")):  # fmt: skip
            axes.barh(i, 100 * (odds - levers.base), left=100 * levers.base, color=colour)
            side = "left" if odds >= levers.base else "right"
            axes.annotate(f" {value:,.3g} ", (100 * odds, i), ha=side, va="center", fontsize=7)
    axes.axvline(100 * levers.base, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [lever.name for lever in rows], fontsize=8)
    axes.margins(x=0.12)
    axes.set(xlabel=f"chance within {levers.within_years:g} years, % (orange: low end, blue: high)")
    return figure


def _fan(axes: Any, days: list[dt.date], fan: Any, colour: str, label: str) -> None:
    for low, high, alpha in _BANDS:
        axes.fill_between(days, fan[:, low], fan[:, high], color=colour, alpha=alpha, linewidth=0)
    axes.plot(days, fan[:, _MEDIAN], color=colour, linewidth=1.5, label=label)


def _days_axis(axes: Any) -> Any:
    """The same axes: matplotlib takes dates, its type hints do not."""
    return axes


def _days(f: Forecast) -> list[dt.date]:
    return [f.assumptions.origin + dt.timedelta(days=round(y * 365.25)) for y in f.years]
