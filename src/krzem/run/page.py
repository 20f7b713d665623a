"""The report of a run as one HTML page: what ran where, plan and actual, what it all cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from krzem.report.selfcontained import inline_svg, new_figure, page

_TEMPLATE = """
<h1>{{ s.name }}</h1>
{% for u in s.unknown %}<p><strong>Unknown:</strong> {{ u }}</p>{% endfor %}
<p>{{ "done" if s.state == "after" else s.state }}{% if s.proof %}, {{ s.proof }}{% endif %}
{%- if s.reason %}, {{ s.reason }}{% endif %}:
{{ "{:,}".format(s.tokens) }} of {{ "{:,}".format(s.goal_tokens) }} tokens in
{{ "{:,}".format(s.step) }} steps; goodput
{% if s.goodput is none %}unknown{% else %}{{ "{:.1%}".format(s.goodput) }}{% endif %}.
{% if s.samples_exact %}Every sample was trained exactly once, as the recorded indices show.
{% else %}<strong>Samples are not exact:</strong> {{ s.sample_gaps | join("; ") }}{% endif %}</p>
{% for limit in s.limits %}<p>{% if limit.kept is false %}<strong>{{ limit.message }}</strong>
{% else %}{{ limit.message }}{% endif %}</p>{% endfor %}
{% if s.bad_lines %}<p>{{ s.bad_lines }} lines of the metrics are no record of a step:
{{ s.bad_quotes | join("; ") }}</p>{% endif %}

<h2>What ran where</h2>
<table>
<tr><th>pool</th><th class="n">tokens</th><th class="n">steps</th><th class="n">done again</th>
<th class="n">attempts</th><th class="n">faults</th><th class="n">time in steps, s</th>
<th class="n">tokens/s</th><th class="n">planned</th><th class="n">share of plan</th></tr>
{% for p in s.pools %}
<tr><th scope="row">{{ p.name }}</th><td class="n">{{ "{:,}".format(p.tokens) }}</td>
<td class="n">{{ p.steps }}</td><td class="n">{{ p.lost_steps }}</td>
<td class="n">{{ p.attempts }}</td><td class="n">{{ p.faults }}</td>
<td class="n">{{ "{:,.1f}".format(p.step_seconds) }}</td>
<td class="n">{{ p.tokens_per_s | number }}</td>
<td class="n">{{ p.planned_tokens_per_s | number }}</td>
<td class="n">{% if p.tokens_per_s and p.planned_tokens_per_s -%}
{{ "{:.0%}".format(p.tokens_per_s / p.planned_tokens_per_s) }}{% else %}unknown{% endif %}</td></tr>
{% endfor %}
</table>

{% if figures.loss %}
<figure>{{ figures.loss }}<figcaption>Loss, one colour a pool.</figcaption></figure>
<figure>{{ figures.speed }}<figcaption>Speed; dashed: what was planned for the pool.</figcaption>
</figure>
{% endif %}

<h2>What each fault and move cost</h2>
{% if s.interruptions %}
<table>
<tr><th>attempt</th><th>pool</th><th>cause</th><th>what happened</th>
<th class="n">steps done again</th><th class="n">their time, s</th>
<th class="n">to the next step, s</th><th>went on</th></tr>
{% for i in s.interruptions %}
<tr><td>{{ i.attempt }}</td><td>{{ i.pool }}</td><td>{{ i.cause }}</td><td>{{ i.detail }}</td>
<td class="n">{{ i.lost_steps }}</td><td class="n">{{ "{:,.2f}".format(i.lost_seconds) }}</td>
<td class="n">{{ i.recovery_seconds | number }}</td>
<td>{{ "in place" if i.next_pool == i.pool else (i.next_pool or "–") }}</td></tr>
{% endfor %}
</table>
{% else %}<p>Nothing interrupted the run.</p>{% endif %}

<h2>Gates</h2>
{% if s.gates %}
<table><tr><th>gate</th><th>pool</th><th>action</th><th>why</th><th class="n">rows kept</th></tr>
{% for g in s.gates %}
<tr><td>{{ g.gate }}</td><td>{{ g.pool }}</td><td>{{ g.action }}</td><td>{{ g.message }}</td>
<td class="n">{{ g.evidence | length }}</td></tr>
{% endfor %}</table>
{% else %}<p>No gate fired.</p>{% endif %}

<h2>Parity between pools</h2>
{% if s.witness %}
<table><tr><th>check</th><th>outcome</th><th>what it says</th></tr>
{% for w in s.witness %}
<tr><td>{{ w.subject }}</td><td>{{ w.choice }}</td><td>{{ w.reason }}
{% if w.evidence and w.evidence.get("page") %}
<a href="{{ w.evidence.page.removeprefix(s.folder + "/") }}">layer by layer</a>{% endif %}</td></tr>
{% endfor %}</table>
{% for w in s.witness if w.evidence and w.evidence.get("whole_model") %}
<table><tr><th>{{ w.subject }}</th><th class="n">batch</th><th class="n">relative error</th>
<th class="n">tolerance</th><th class="n">noise floor</th></tr>
{% for f in w.evidence.whole_model %}
<tr><td>{{ f.kind }}</td><td class="n">{{ f.batch }}</td><td class="n">{{ f.error | small }}</td>
<td class="n">{{ f.tolerance | small }}</td><td class="n">{{ f.floor | small }}</td></tr>
{% endfor %}
<tr><td>worst layer, error over tolerance</td><td></td>
<td class="n">{{ w.evidence.layers | worst }}</td><td class="n">1</td><td></td></tr>
</table>
{% endfor %}
{% else %}<p>The run did not change its pool, so there was nothing to compare.</p>{% endif %}

<h2>Decisions</h2>
<table><tr><th class="n">at, s</th><th>about</th><th>decision</th><th>reason</th></tr>
{% for d in s.decisions %}
<tr><td class="n">{{ "{:,.1f}".format(d.at) }}</td><td>{{ d.subject }}</td><td>{{ d.choice }}</td>
<td>{{ d.reason }}</td></tr>
{% endfor %}</table>
<p class="quiet">{{ s.folder }}: everything here is from ledger.sqlite and metrics.jsonl.</p>
"""


_RANKS = """
<h2>Ranks of the newest attempt</h2>
{% if ranks %}
<table><tr><th class="n">rank</th><th>host</th><th>phase</th><th class="n">step</th>
<th class="n">silent, s</th><th class="n">own work in a step, s</th>
<th class="n">against the others</th><th class="n">memory, GiB</th></tr>
{% for r in ranks %}
<tr><th scope="row" class="n">{{ r.rank }}</th><td>{{ r.host }}</td><td>{{ r.phase }}</td>
<td class="n">{{ "{:,}".format(r.step) }}</td>
<td class="n">{{ "{:,.1f}".format(r.silent_seconds) }}</td>
<td class="n">{{ r.own_seconds | number }}</td>
<td class="n">{% if r.against_others is none %}unknown{% else %}
{{ "{:.0%}".format(r.against_others) }}{% if r.is_slow %} <strong>slow</strong>{% endif %}
{% endif %}</td>
<td class="n">{{ (r.memory_bytes / 2**30 if r.memory_bytes else none) | number }}</td></tr>
{% endfor %}</table>
{% else %}<p>No rank has told where it is.</p>{% endif %}
"""

_RUNS = """
<h1>Runs below {{ folder }}</h1>
<p>{{ counted }}; as of {{ now }}.</p>
<h2>All runs</h2>
<table>
<tr><th>run</th><th>state</th><th>pool</th><th class="n">tokens</th><th class="n">share</th>
<th class="n">step</th><th class="n">loss</th><th class="n">tokens/s</th>
<th class="n">of the plan</th><th class="n">goodput</th><th class="n">stops</th>
<th class="n">left</th><th>how it stands</th></tr>
{% for r in runs %}
{% if r.state == "unreadable" %}
<tr><th scope="row">{{ r.folder }}</th><td>unreadable</td><td colspan="10"></td>
<td>{{ r.reason }}</td></tr>
{% else %}
<tr><th scope="row">{% if r.link %}<a href="{{ r.link }}">{{ r.name }}</a>{% else %}{{ r.name }}
{%- endif %}<br><span class="quiet">{{ r.folder }}</span></th>
<td>{{ r.state }}{% if r.is_orphan %}, <strong>no controller</strong>{% endif %}</td>
<td>{{ r.pool or "–" }}</td>
<td class="n">{{ "{:,}".format(r.tokens) }}</td><td class="n">{{ "{:.0%}".format(r.share) }}</td>
<td class="n">{{ "{:,}".format(r.step) }}</td><td class="n">{{ r.loss | number }}</td>
<td class="n">{{ r.tokens_per_s | number }}</td>
<td class="n">{% if r.tokens_per_s and r.planned_tokens_per_s -%}
{{ "{:.0%}".format(r.tokens_per_s / r.planned_tokens_per_s) }}{% else %}unknown{% endif %}</td>
<td class="n">{% if r.goodput is none %}unknown{% else %}{{ "{:.0%}".format(r.goodput) }}
{%- endif %}</td>
<td class="n">{{ r.interruptions }}</td>
<td class="n">{{ r.left }}</td>
<td>{{ r.end }}</td></tr>
{% endif %}
{% endfor %}
</table>
"""


def report_page(
    status: Mapping[str, Any],
    pool_of: Mapping[int, str],
    ranks: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The whole page for a status as JSON; ``pool_of`` names the pool of each attempt.

    ``ranks`` are the rows of a table of its processes; None leaves the table out.
    Raises KrzemError without the extra ``report``.
    """
    return page(
        f"krzem run: {status['name']}",
        _TEMPLATE if ranks is None else _TEMPLATE + _RANKS,
        filters={"number": _number, "small": _small, "worst": _worst},
        s=status,
        figures=_figures(status, pool_of),
        ranks=ranks,
    )


def runs_page(folder: str, runs: Sequence[Mapping[str, Any]], now: str) -> str:
    """The page of all runs below ``folder``: a row each, with a link to its report if it has one.

    Each row is as ``krzem status --json`` lists it, with ``left`` and ``link`` as texts.
    Raises KrzemError without the extra ``report``.
    """
    states = Counter(str(run["state"]) for run in runs)
    counted = f"{len(runs)} runs: " + ", ".join(f"{n} {state}" for state, n in states.most_common())
    return page(
        f"krzem runs: {folder}", _RUNS, filters={"number": _number},
        folder=folder, runs=runs, counted=counted, now=now,
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def _small(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2g}"


def _worst(layers: Sequence[Mapping[str, Any]]) -> str:
    """The layer closest to its tolerance."""
    severity, layer = max((max(x["forward"], x["backward"]), x["layer"]) for x in layers)
    return f"{severity:.2g} ({layer})"


def _figures(status: Mapping[str, Any], pool_of: Mapping[int, str]) -> dict[str, Any]:
    curve = status["curve"]
    if not curve:
        return {"loss": None, "speed": None}
    return {
        "loss": _figure(curve, pool_of, 1, "loss", {}),
        "speed": _figure(curve, pool_of, 2, "tokens/s", _planned(status)),
    }


def _planned(status: Mapping[str, Any]) -> dict[str, float | None]:
    return {p["name"]: p["planned_tokens_per_s"] for p in status["pools"]}


def _figure(
    curve: Sequence[Sequence[float]],
    pool_of: Mapping[int, str],
    column: int,
    label: str,
    planned: Mapping[str, float | None],
) -> Any:
    figure = new_figure(10.0, 3.4)
    axes = figure.subplots()
    names = list(dict.fromkeys(pool_of.values()))
    for pool, part in groupby(curve, key=lambda point: pool_of.get(int(point[3]), "?")):
        points = list(part)
        colour = f"C{names.index(pool) if pool in names else 9}"
        steps = [p[0] for p in points]
        axes.plot(steps, [p[column] for p in points], color=colour, label=pool, linewidth=1)
        level = planned.get(pool)
        if level:
            axes.plot([steps[0], steps[-1]], [level, level], "--", color=colour, linewidth=1)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    legend = axes.legend(handles.values(), handles.keys())
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name is no formula
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0 if column == 2 else None)
    ends = [curve[0], curve[-1]]
    spoken = ", ".join(f"{p[column]:,.4g} at step {p[0]:,.0f}" for p in ends)
    return inline_svg(figure, f"{label[0].upper()}{label[1:]} by step", spoken)
