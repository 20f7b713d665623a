"""The page of a run: its curves, the plan beside what was measured, what happened on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from krzem.quantity import format_bytes, format_seconds
from krzem.report.selfcontained import inline_svg, new_figure, page
from krzem.train.forecast import Forecast
from krzem.train.summary import Summary

Points = Sequence[tuple[int, float]]
EVENTS_SHOWN = 100
_TEMPLATE = """
<h1>{{ name }}</h1>
<p>{{ "{:,}".format(s.tokens) }} of {{ "{:,}".format(goal) }} tokens in {{ "{:,}".format(s.step) }}
steps; the loss went from {{ "%.4f" | format(s.first_loss) }} to {{ "%.4f" | format(s.loss) }}
{%- if s.held_out %}, on held-out data to {{ "%.4f" | format(s.held_out[-1][1]) }}{% endif %}.</p>

<h2>Loss</h2>
<figure>{{ figures.loss }}<figcaption>Nats a token in training
{%- if s.held_out %}, and on held-out data (dots){% endif %}.</figcaption></figure>

<h2>Speed</h2>
<figure>{{ figures.speed }}<figcaption>Tokens per second
{%- if rows %}; dashed: as planned, shaded: the plan's 80 % interval{% endif %}.</figcaption>
</figure>

<h2>Plan and actual</h2>
{% if rows %}
<table>
<tr><th>what</th><th class="n">planned (80 % interval)</th><th class="n">measured</th>
<th class="n">of the plan</th></tr>
{% for row in rows %}
<tr><th scope="row">{{ row.what }}</th><td class="n">{{ row.planned }}</td>
<td class="n">{{ row.measured }}</td><td class="n">{{ row.share }}</td></tr>
{% endfor %}
</table>
<p class="quiet">Planned for {{ basis }}. Steps are medians of those with the full batch; memory is
planned for the fullest rank and measured on the first one.
{%- if s.mfu is not none %} Model FLOPs utilisation: {{ "{:.1%}".format(s.mfu) }}.{% endif %}</p>
{% else %}
<p>There is no plan to compare with: <code>krzem train RUN_FILE --dry-run</code> says why. A step
took {{ step_seconds }}, {{ "{:,.0f}".format(s.tokens_per_s) }} tokens per second (medians), and the
first rank held at most {{ memory }}.</p>
{% endif %}

<h2>Gradient norm and learning rate</h2>
<figure>{{ figures.pace }}</figure>
{% if figures.balance %}
<h2>Balance of experts</h2>
<figure>{{ figures.balance }}<figcaption>Tokens of the fullest expert over an even share, in the
worst layer that the first rank holds; 1 is even.</figcaption></figure>
{% endif %}

<h2>What happened on the way</h2>
{% if events %}
<table><tr><th class="n">step</th><th>kind</th><th>what it says</th></tr>
{% for e in events %}
<tr><td class="n">{{ "{:,}".format(e.step) }}</td><td>{{ e.kind }}</td><td>{{ e.message }}</td></tr>
{% endfor %}</table>
{% if hidden %}<p class="quiet">{{ "{:,}".format(hidden) }} earlier ones are in events.jsonl.</p>
{% endif %}
{% else %}<p>Nothing but ordinary steps.</p>{% endif %}

<h2>The run</h2>
<table>
{% for what, value in facts.items() %}
<tr><th scope="row">{{ what }}</th><td>{{ value }}</td></tr>
{% endfor %}
</table>
<p class="quiet">Everything here is from metrics.jsonl, events.jsonl and the run file.</p>
"""


def run_page(
    name: str, goal: int, facts: Mapping[str, str], plan: Forecast | None, summary: Summary
) -> str:
    """The whole page of a run towards ``goal`` tokens; ``facts`` say what was run.

    Raises KrzemError where the extra ``report`` is missing.
    """
    shown = summary.events[-EVENTS_SHOWN:]
    memory, seconds = summary.memory_bytes, summary.step_seconds
    return page(
        f"krzem train: {name}",
        _TEMPLATE,
        name=name,
        goal=goal,
        s=summary,
        facts=facts,
        figures=_figures(summary, plan),
        rows=[] if plan is None else _rows(plan, summary),
        basis="" if plan is None else plan.basis,
        step_seconds="an unknown time" if seconds is None else format_seconds(seconds, 3),
        memory="an unknown amount" if memory is None else format_bytes(memory, 3),
        events=shown,
        hidden=len(summary.events) - len(shown),
    )


def _rows(plan: Forecast, summary: Summary) -> list[dict[str, str]]:
    """Planned and measured, side by side."""
    step = plan.step_seconds
    speed = step.inverse(plan.tokens_per_step)
    whole = step.scaled(summary.tokens / plan.tokens_per_step)
    memory = summary.memory_bytes
    table = [
        ("one step", step, summary.step_seconds, lambda x: format_seconds(x, 3)),
        ("tokens per second", speed, summary.tokens_per_s, lambda x: f"{x:,.0f}"),
        ("time in steps so far", whole, summary.seconds, lambda x: format_seconds(x, 3)),
        ("memory of a rank", plan.memory_bytes, memory, lambda x: format_bytes(x, 3)),
    ]
    return [
        {
            "what": what,
            "planned": f"{form(planned.mid)} ({form(planned.low)} to {form(planned.high)})",
            "measured": "unknown" if measured is None else form(measured),
            "share": "unknown" if measured is None else f"{measured / planned.mid:.0%}",
        }
        for what, planned, measured, form in table
    ]


def _figures(summary: Summary, plan: Forecast | None) -> dict[str, Any]:
    curves = summary.curves
    return {
        "loss": _loss(curves["loss"], summary.held_out),
        "speed": _speed(curves["tokens_per_s"], plan),
        "pace": _pair(curves["grad_norm"], curves["rate"]),
        "balance": _balance(curves["peak_load"]) if curves["peak_load"] else None,
    }


def _loss(training: Points, held_out: Points) -> Any:
    figure = new_figure(10.0, 3.6)
    axes = figure.subplots()
    axes.plot(*_columns(training), linewidth=1.2, label="training", **_dotted(training))
    if held_out:
        axes.plot(*_columns(held_out), "o", markersize=4, label="held out")
        axes.legend()
    axes.set(xlabel="step", ylabel="loss")
    return inline_svg(figure, "Loss by step", _spoken(training))


def _speed(points: Points, plan: Forecast | None) -> Any:
    figure = new_figure(10.0, 3.2)
    axes = figure.subplots()
    if plan is not None:
        planned = plan.step_seconds.inverse(plan.tokens_per_step)
        axes.axhspan(planned.low, planned.high, color="#cccccc", alpha=0.5, linewidth=0)
        axes.axhline(planned.mid, linestyle="--", color="#808080", linewidth=1)
    axes.plot(*_columns(points), linewidth=1.2, **_dotted(points))
    axes.set(xlabel="step", ylabel="tokens/s")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return inline_svg(figure, "Tokens per second by step", _spoken(points))


def _pair(norms: Points, rates: Points) -> Any:
    figure = new_figure(10.0, 2.8)
    left, right = figure.subplots(1, 2)
    for axes, points, label in ((left, norms, "gradient norm"), (right, rates, "learning rate")):
        axes.plot(*_columns(points), linewidth=1.2, **_dotted(points))
        axes.set(xlabel="step", ylabel=label)
        axes.set_ylim(bottom=0)
    return inline_svg(
        figure,
        "Gradient norm and learning rate by step",
        f"gradient norm: {_spoken(norms)}; learning rate: {_spoken(rates)}",
    )


def _balance(points: Points) -> Any:
    figure = new_figure(10.0, 2.8)
    axes = figure.subplots()
    axes.plot(*_columns(points), linewidth=1.2, **_dotted(points))
    axes.axhline(1.0, linestyle="--", color="#808080", linewidth=1)
    axes.set(xlabel="step", ylabel="fullest expert")
    axes.set_ylim(bottom=0)
    return inline_svg(figure, "Balance of experts by step", _spoken(points))


def _spoken(points: Points) -> str:
    """A curve in words: its ends."""
    if not points:
        return "no steps"
    (first, start), (last, end) = points[0], points[-1]
    return f"{start:,.4g} at step {first:,}, {end:,.4g} at step {last:,}"


def _columns(points: Points) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _dotted(points: Points) -> dict[str, Any]:
    """A line of one point is none: it needs a mark."""
    return {"marker": "o", "markersize": 4} if len(points) == 1 else {}
