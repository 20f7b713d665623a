"""Verdicts as one self-contained HTML page with the chips drawn against the thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from krzem.report.selfcontained import inline_svg, new_figure, page
from krzem.rules.ruleset import Rule, RuleSet, Side
from krzem.rules.text import SIDES, age, mark, outcome_words, to_whom, with_figures
from krzem.rules.verdicts import WORDS, Alternative, Verdict, turns_of

_TEMPLATE = """
<h1>Trade rules on accelerators</h1>
<p>{{ whom }}. {{ age }}</p>
<p><strong>{{ ruleset.disclaimer }}</strong></p>
<figure>{{ chart }}<figcaption>Total processing performance against performance density; lines are
the thresholds of the rules in force that day. Chips without a published die area are
missing here; a few dots in a crowd have no name, the table has all.</figcaption></figure>
<h2>Verdicts</h2>
<table><tr><th>Chip</th><th class="n">TPP</th><th class="n">PD</th>
<th class="n">DRAM GB/s</th><th class="n">I/O GB/s</th>
{% for name in sides.values() %}<th>{{ name }}</th>{% endfor %}</tr>
{% for v, _ in verdicts %}
<tr><th scope="row" class="d">{{ v.chip.id }}</th><td class="n">{{ v.chip.tpp | figure }}</td>
<td class="n">{{ v.chip.performance_density | figure }}</td>
<td class="n">{{ v.chip.dram_gb_per_s | figure }}</td>
<td class="n">{{ v.chip.io_gb_per_s | figure }}</td>
{% for side in sides %}{% set said = words(v.outcomes[side]) %}
<td{{ ' class="d"' | safe if said | length < 23 }}>{{ said }}</td>{% endfor %}</tr>
{% endfor %}
</table>
{% if verdicts | length == 1 %}
{% for v, others in verdicts %}
<h2>{{ v.chip.name }}</h2>
<ul>{% for line in v.chip.arithmetic %}<li>{{ line }}</li>{% endfor %}</ul>
{% for f in v.findings if f.rule.test and not f.rule.side == "context" %}
<h3>{{ f.rule.title }}: {{ mark(f) }}</h3>
<p><code>{{ figures(f.rule.test.text, v.chip) }}</code></p>
{% if f.out_of_scope %}<p>{{ f.out_of_scope }}</p>
{% elif f.effect and f.meets != false %}<p>{{ f.effect.text }}</p>
<ul>{% for c in f.rule.conditions %}<li>{{ c }}</li>{% endfor %}</ul>{% endif %}
{% endfor %}
{% if others %}<h2>Where sources disagree</h2><ul>
{% for a in others %}<li>{{ a.disagreement.who }}: {{ a.disagreement.value | figure }}.
{{ a.disagreement.explanation }}
{% if a.changes %}<strong>The verdict would change.</strong>{% endif %}</li>
{% endfor %}</ul>{% endif %}
{% endfor %}
{% endif %}
<h2>Rules in force that day</h2>
<table><tr><th>Rule and test</th><th>From</th><th>Sources</th></tr>
{% for r in rules %}<tr><th scope="row">{{ r.title }}{% if r.bill %} (no law yet){% endif %}
{% if r.test %}<br><code>{{ r.test.text }}</code>{% endif %}
{% if r.note %}<br><span class="quiet">{{ r.note }}</span>{% endif %}</th>
<td class="d">{{ r.period.first }}</td>
<td>{{ r.source | join("; ") }} ({{ r.confidence }}, read {{ r.read }})</td></tr>{% endfor %}
</table>
<h2>Not covered</h2>
<ul>{% for line in ruleset.not_covered %}<li>{{ line }}</li>{% endfor %}</ul>
<p class="quiet">Compiled {{ ruleset.compiled }}; newest text {{ ruleset.newest_text }}, newest
report {{ ruleset.newest_report }}, last searched {{ ruleset.searched }}.</p>
"""


def rules_page(verdicts: Sequence[tuple[Verdict, Sequence[Alternative]]], ruleset: RuleSet) -> str:
    """The page for one chip or many; raises KrzemError where the extra is missing."""
    first = verdicts[0][0]
    return page(
        "krzem rules",
        _TEMPLATE,
        filters={"figure": _figure},
        whom=to_whom(first),
        age=age(first),
        ruleset=ruleset,
        rules=ruleset.in_force(first.buyer.on),
        verdicts=verdicts,
        sides=SIDES,
        words=outcome_words,
        mark=mark,
        figures=with_figures,
        chart=_chart([v for v, _ in verdicts], ruleset.in_force(first.buyer.on)),
    )


def _figure(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def _chart(verdicts: Sequence[Verdict], rules: Sequence[Rule]) -> Any:
    from matplotlib.ticker import LogLocator, NullLocator

    figure = new_figure(10.0, 6.0)
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlabel=WORDS["tpp"], ylabel="performance density")
    for axis, plain in ((axes.xaxis, "{x:,.0f}"), (axes.yaxis, "{x:g}")):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(plain)
        axis.set_minor_locator(NullLocator())
    placed = [
        (v.chip.tpp, v.chip.performance_density, _mark(v))
        for v in verdicts
        if v.chip.tpp and v.chip.performance_density
    ]
    words = sorted({word for _, _, word in placed})
    for word in words:
        points = [(tpp, density) for tpp, density, mark in placed if mark == word]
        axes.scatter([tpp for tpp, _ in points], [d for _, d in points], label=word)
    _limits(axes, rules)
    if words:
        figure.legend(
            loc="outside lower center", ncols=2, fontsize="small", title="export", frameon=False
        )
    _names(axes, verdicts)
    return inline_svg(figure, "Chips against the thresholds", _spoken(verdicts))


def limits(rules: Iterable[Rule], figure: str) -> tuple[float, ...]:
    """Where tests of export rules turn on a figure of the chip, ascending."""
    return tuple(turns_of(figure, (rule for rule in rules if rule.side is Side.EXPORT), {}, None))


def _limits(axes: Any, rules: Sequence[Rule]) -> None:
    """The thresholds of the rules in force, each with its figure; near ones share a label."""
    style = {"textcoords": "offset points", "fontsize": 7.5, "color": "grey"}
    for turns in _near(limits(rules, "tpp")):
        for tpp in turns:
            axes.axvline(tpp, color="grey", linewidth=0.6, linestyle=":")
        axes.annotate(_span(turns), (turns[-1], 1.0), xycoords=("data", "axes fraction"),
                      xytext=(2, -2), va="top", **style)  # fmt: skip
    for turns in _near(limits(rules, "performance_density")):
        for density in turns:
            axes.axhline(density, color="grey", linewidth=0.6, linestyle=":")
        axes.annotate(_span(turns), (1.0, turns[-1]), xycoords=("axes fraction", "data"),
                      xytext=(-2, 2), ha="right", **style)  # fmt: skip


def _near(turns: Iterable[float]) -> list[list[float]]:
    """Ascending figures, those that follow within a fifth together."""
    groups: list[list[float]] = []
    for turn in turns:
        if groups and turn < 1.2 * groups[-1][-1]:
            groups[-1].append(turn)
        else:
            groups.append([turn])
    return groups


def _span(turns: Sequence[float]) -> str:
    return " to ".join(f"{turn:,g}" for turn in dict.fromkeys((turns[0], turns[-1])))


def _names(axes: Any, verdicts: Sequence[Verdict]) -> None:
    """The name of each chip beside its dot; dots in one place share one label."""
    there: dict[tuple[float, float], list[str]] = {}
    for v in verdicts:
        if v.chip.tpp and v.chip.performance_density:
            name = v.chip.id.partition("-")[2] or v.chip.id
            there.setdefault((v.chip.tpp, v.chip.performance_density), []).append(name)
    axes.figure.draw_without_rendering()  # places are those after the layout
    inches = axes.transData.transform(list(there) or [(1.0, 1.0)]) / axes.figure.dpi
    taken = [(x - 0.05, x + 0.05, y) for x, y in inches]
    for (place, names), (x, y) in zip(there.items(), inches, strict=False):
        label = names[0] if len(names) == 1 else f"{names[0]} +{len(names) - 1}"
        width = 0.058 * len(label)
        for dx, dy in ((0.07, 0.0), (-width - 0.07, 0.0), (-width / 2, 0.12), (-width / 2, -0.12),
                       (0.05, 0.12), (0.05, -0.12), (-width - 0.05, 0.12)):  # fmt: skip
            left, at = x + dx, y + dy
            if all(abs(at - b) > 0.1 or left > r or left + width < a for a, r, b in taken):
                taken.append((left, left + width, at))
                axes.annotate(label, place, xytext=(72 * dx, 72 * dy), va="center", fontsize=7,
                              textcoords="offset points")  # fmt: skip
                break


def _spoken(verdicts: Sequence[Verdict]) -> str:
    parts = [
        f"{v.chip.id}: TPP {_figure(v.chip.tpp)}, density {_figure(v.chip.performance_density)}"
        for v in verdicts
        if v.chip.tpp and v.chip.performance_density
    ]
    return "; ".join(parts) or "no chip has both figures"


def _mark(verdict: Verdict) -> str:
    """Short words for a legend; what an open verdict depends on stands in the table."""
    outcome = verdict.outcomes[Side.EXPORT]
    return "depends on what is unknown" if outcome.status is None else outcome_words(outcome)
