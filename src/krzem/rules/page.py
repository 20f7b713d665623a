"""Verdicts as one self-contained HTML page with the chips drawn against the thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from krzem.report.selfcontained import inline_svg, new_figure, page
from krzem.rules.disagreement import Alternative
from krzem.rules.ruleset import RuleSet, Side
from krzem.rules.text import SIDES, age, mark, outcome_words, to_whom, with_figures
from krzem.rules.verdicts import WORDS, Verdict

_TEMPLATE = """
<h1>Trade rules on accelerators</h1>
<p>{{ whom }}. {{ age }}</p>
<p><strong>{{ ruleset.disclaimer }}</strong></p>
<figure>{{ chart }}<figcaption>Total processing performance against performance density; lines are
the thresholds of the October 2023 rule. Chips without a published die area are
missing here.</figcaption></figure>
<h2>Verdicts</h2>
<table><tr><th>Chip</th><th class="n">TPP</th><th class="n">PD</th>
<th class="n">DRAM GB/s</th><th class="n">I/O GB/s</th>
{% for name in sides.values() %}<th>{{ name }}</th>{% endfor %}</tr>
{% for v, _ in verdicts %}
<tr><td>{{ v.chip.id }}</td><td class="n">{{ v.chip.tpp | figure }}</td>
<td class="n">{{ v.chip.performance_density | figure }}</td>
<td class="n">{{ v.chip.dram_gb_per_s | figure }}</td>
<td class="n">{{ v.chip.io_gb_per_s | figure }}</td>
{% for side in sides %}<td>{{ words(v.outcomes[side]) }}</td>{% endfor %}</tr>
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
<table><tr><th>Rule</th><th>From</th><th>Test</th><th>Sources</th></tr>
{% for r in rules %}<tr><td>{{ r.title }}{% if r.bill %} (no law yet){% endif %}
{% if r.note %}<br><span class="quiet">{{ r.note }}</span>
{% endif %}</td><td>{{ r.period.first }}</td>
<td>{% if r.test %}<code>{{ r.test.text }}</code>{% endif %}</td>
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
        chart=_chart([v for v, _ in verdicts]),
    )


def _figure(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def _chart(verdicts: Sequence[Verdict]) -> Any:
    figure = new_figure()
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlabel=WORDS["tpp"], ylabel="performance density")
    placed = [
        (v.chip.tpp, v.chip.performance_density, _mark(v))
        for v in verdicts
        if v.chip.tpp and v.chip.performance_density
    ]
    words = sorted({word for _, _, word in placed})
    for word in words:
        points = [(tpp, density) for tpp, density, mark in placed if mark == word]
        axes.scatter([tpp for tpp, _ in points], [d for _, d in points], label=word)
    for tpp in (1600, 2400, 4800):
        axes.axvline(tpp, color="grey", linewidth=0.6, linestyle=":")
    for density in (1.6, 3.2, 5.92):
        axes.axhline(density, color="grey", linewidth=0.6, linestyle=":")
    if words:
        figure.legend(
            loc="outside lower center", ncols=2, fontsize="small", title="export", frameon=False
        )
    return inline_svg(figure)


def _mark(verdict: Verdict) -> str:
    """Short words for a legend; what an open verdict depends on stands in the table."""
    outcome = verdict.outcomes[Side.EXPORT]
    return "depends on what is unknown" if outcome.status is None else outcome_words(outcome)
