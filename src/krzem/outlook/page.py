"""The outlook as one self-contained HTML page, and its plots: odds, fan, lag, tornado."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from krzem.outlook.text import sections
from krzem.outlook.whole import Outlook
from krzem.report.selfcontained import inline_svg, page
from krzem.report.text_table import cells_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
import datetime as dt
from typing import TYPE_CHECKING

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


_TEMPLATE = """
{% for title, blocks in parts %}
<h{{ 1 if loop.first else 2 }}>{{ title }}</h{{ 1 if loop.first else 2 }}>
{% for block in blocks %}
{% if block is mapping %}
<table><tr>{% for cell in block.head %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in block.rows %}<tr>{% for cell in row %}
<td{{ ' class="d"' | safe if cell | length < 12 }}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% else %}<p>{{ block | ticked }}</p>{% endif %}
{% endfor %}
{% for caption, svg in figures.get(title, []) %}
<figure>{{ svg }}<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{% endfor %}
<h2>Assumptions</h2>
<table><tr><th>Quantity</th><th class="n">5 %</th><th class="n">50 %</th><th class="n">95 %</th>
<th>Unit</th><th>Kind</th><th>Source</th></tr>
{% for q in quantities %}<tr><td>{{ q.name }}</td><td class="n">{{ q.low | short }}</td>
<td class="n">{{ q.mid | short }}</td><td class="n">{{ q.high | short }}</td><td>{{ q.unit }}</td>
<td>{{ q.kind }}</td><td>{{ q.source }}</td></tr>
{% endfor %}</table>
<p class="quiet">Data of Epoch AI are used under CC BY.</p>
"""


def outlook_page(result: Outlook) -> str:
    """The page; raises KrzemError where the extra ``report`` is missing."""
    parts = [(title, list(_blocks(body))) for title, body in sections(result)]
    f = result.forecast
    figures = {
        parts[1][0]: [_drawn("Chance of having been ahead", odds_figure(f))],
        parts[2][0]: [
            _drawn("Both record lines and their forecasts", fan_figure(f)),
            _drawn("Months behind", lag_figure(f)),
        ],
    }
    if result.levers is not None:
        title = "Each assumption alone at its 5 % and 95 % points"
        figures[parts[3][0]] = [_drawn(title, tornado_figure(result.levers))]
    return page(
        f"krzem outlook: {f.assumptions.title}",
        _TEMPLATE,
        filters={"short": lambda x: f"{x:,.4g}"},
        parts=parts,
        figures=figures,
        quantities=f.assumptions.quantities.values(),
    )


def _drawn(title: str, figure: Figure) -> tuple[str, Any]:
    """A chart under its caption."""
    return f"{title}.", inline_svg(figure, title)


def _blocks(body: str) -> list[dict[str, object] | str]:
    """Paragraphs and Markdown tables of a section as values for the template."""
    blocks: list[dict[str, object] | str] = []
    for part in body.split("\n\n"):
        lines = part.splitlines()
        if lines and lines[0].startswith("|"):
            head, _, *rows = map(cells_of, lines)
            blocks.append({"head": head, "rows": rows})
        else:
            blocks += lines
    return blocks
