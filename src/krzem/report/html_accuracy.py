"""The report on a table of runs as one HTML page: predicted against measured, and who is off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from krzem.accuracy.evaluate import Outcome, Report
from krzem.report.selfcontained import inline_svg, new_figure, page
from krzem.report.text_table import ACCURACY_HEAD, accuracy_cells, memory_words, opening_words

_TEMPLATE = """
{% macro figures_of(title, groups) %}
<table>
<tr><th>{{ title }}</th>{% for name in head[1:] %}<th class="n">{{ name }}</th>{% endfor %}</tr>
{% for name, figures in groups.items() %}
<tr><th scope="row">{{ name.replace("_", " ") }}</th>
{% for cell in cells(figures) %}<td class="n">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% endmacro %}
<h1>Predicted against measured</h1>
{% for words in opening %}<p>{{ words }}</p>{% endfor %}
{% if chart %}<figure>{{ chart }}<figcaption>Seconds of a step, one dot a row; the line is where
both are equal, dotted: 25 % slower and 25 % faster than measured.</figcaption></figure>{% endif %}
<h2>Seconds of a step</h2>
{{ figures_of("calibration", time) }}
<h2>Peak memory</h2>
<p>{{ memory }}</p>
{% for title, groups in by.items() %}
<h2>By {{ title }}</h2>
{{ figures_of(title, groups) }}
{% endfor %}
{% if worst %}
<h2>Rows that are furthest off</h2>
<table><tr><th>row</th><th>accelerator</th><th>layout</th><th class="n">measured, s</th>
<th class="n">predicted, s</th><th class="n">80 % interval, s</th><th class="n">error</th>
<th>assumed</th></tr>
{% for r in worst %}
<tr><th scope="row">{{ r.id }}</th><td>{{ r.accelerator }}</td><td>{{ r.layout }}</td>
<td class="n">{{ "%.4g" | format(r.measured_s) }}</td>
<td class="n">{{ "%.4g" | format(r.mid_s) }}</td>
<td class="n">{{ "%.4g" | format(r.low_s) }} to {{ "%.4g" | format(r.high_s) }}</td>
<td class="n">{{ "%+.1f" | format(100 * (r.mid_s / r.measured_s - 1)) }} %</td>
<td>{{ r.guesses | join("; ") or "nothing" }}</td></tr>
{% endfor %}</table>
{% endif %}
{% if skipped %}
<h2>Rows that are skipped</h2>
<table><tr><th class="n">rows</th><th>because</th></tr>
{% for reason, count in skipped.items() %}
<tr><td class="n">{{ "{:,}".format(count) }}</td><td>{{ reason }}</td></tr>
{% endfor %}</table>
{% endif %}
"""

_WORST = 20
"""Rows listed as furthest off."""
_BAND = 1.25
"""Predicted over measured at the dotted lines of the chart, and the inverse."""
_GROUPS = {"by_accelerator": "accelerator", "by_family": "family", "by_source": "source"}


def accuracy_page(report: Report) -> str:
    """The whole page; raises KrzemError where the extra is missing."""
    document = report.as_dict()
    timed = [r for r in report.outcomes if r.measured_s and not r.reason]
    return page(
        "krzem accuracy",
        _TEMPLATE,
        head=ACCURACY_HEAD,
        cells=accuracy_cells,
        opening=opening_words(document),
        chart=_chart(timed) if timed else "",
        time={"as calibrated": document["time"], **document["held_back"]},
        memory=memory_words(document["memory"]),
        by={
            title: _timed(document[key]) for key, title in _GROUPS.items() if len(document[key]) > 1
        },
        worst=sorted(timed, key=_distance, reverse=True)[:_WORST],
        skipped=document["skipped"],
    )


def _timed(groups: Mapping[str, Any]) -> dict[str, Any]:
    return {name: figures for name, figures in groups.items() if figures["n"]}


def _distance(row: Outcome) -> float:
    """Size of the logarithm of predicted over measured: too slow and too fast count alike."""
    assert row.measured_s is not None
    return abs(math.log(row.mid_s / row.measured_s))


def _chart(rows: Sequence[Outcome]) -> Any:
    """Dots of (measured, predicted) seconds, a colour each for the families with most rows."""
    figure = new_figure(10.0, 6.0)
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlabel="measured, s", ylabel="predicted, s")
    families = [r.family for r in rows]
    named = sorted(set(families), key=lambda f: (-families.count(f), f))[:8]
    for name in [*named, None]:
        some = [r for r in rows if (r.family if r.family in named else None) == name]
        if some:
            measured = [r.measured_s or r.mid_s for r in some]
            axes.scatter(measured, [r.mid_s for r in some], s=9, alpha=0.6, linewidths=0,
                         label=name or "others")  # fmt: skip
    measured = [r.measured_s or r.mid_s for r in rows]
    ends = [min(measured), max(measured)]
    for factor, line in ((1.0, "-"), (_BAND, ":"), (1.0 / _BAND, ":")):
        axes.plot(ends, [factor * end for end in ends], color="grey", linewidth=0.8, linestyle=line)
    figure.legend(loc="outside lower center", ncols=5, fontsize="small", frameon=False)
    return inline_svg(figure, "Predicted against measured seconds of a step", _spoken(rows))


def _spoken(rows: Sequence[Outcome]) -> str:
    ratios = [r.mid_s / (r.measured_s or r.mid_s) for r in rows]
    slow = sum(ratio > _BAND for ratio in ratios)
    fast = sum(ratio < 1.0 / _BAND for ratio in ratios)
    return (
        f"{len(rows):,} rows; {len(rows) - slow - fast:,} lie within the dotted lines,"
        f" {slow:,} above (predicted too slow), {fast:,} below (predicted too fast)."
    )
