"""A verdict as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from krzem.report.selfcontained import inline_svg, new_figure, page
from krzem.witness.text import layers_of, machine_words
from krzem.witness.verdict import Verdict

_TEMPLATE = """
<h1>krzem witness: {{ "pass" if v.passed else "fail" }}</h1>
<p><strong>{{ v.message }}.</strong></p>
<table>
<tr><th scope="row">recorded on</th><td>{{ words(v.source) }}</td></tr>
<tr><th scope="row">checked on</th><td>{{ words(v.destination) }}, in {{ v.dtype }}</td></tr>
<tr><th scope="row">noise floor from</th><td>{{ v.settings | join(", ") }}</td></tr>
<tr><th scope="row">signals judged</th><td>{{ v.findings | length }}, of which
{{ v.departures | length }} depart</td></tr>
</table>
{% if v.first %}
<h2>First departure</h2>
<p><code>{{ v.first.name }}</code> ({{ v.first.layer }}), {{ v.first.direction }}.
A fault of this kind is usually {{ v.first.hint }}.</p>
{% endif %}
{% for note in v.notes %}<p>{{ note }}.</p>{% endfor %}
<figure>{{ chart }}<figcaption>The worst error of each layer over its tolerance; above the line it
departs. Forward errors begin at the layer at fault and go on to the right, backward errors go on to
the left.</figcaption></figure>
<h2>Loss and gradient norm</h2>
{{ table(whole) }}
{% if v.departures %}<h2>Departures, in the order of the step</h2>{{ table(v.departures[:60]) }}
{% endif %}
<h2>Closest to their tolerance</h2>
{{ table(closest) }}
{% if v.not_compared %}<h2>Not compared</h2>
<ul>{% for n in v.not_compared[:40] %}<li>{{ n }}</li>{% endfor %}</ul>{% endif %}
<p class="quiet">Errors are relative: of statistics and sampled values over the root mean square, of
norms and losses over themselves. A floor is the largest error among the source's own repeats.</p>
"""

_TABLE = """<table><tr><th>what</th><th>where</th><th>batch</th><th>signal</th>
<th class="n">error</th><th class="n">tolerance</th><th class="n">floor</th></tr>
{% for f in findings %}<tr><td>{{ f.quantity.kind }}</td>
<td><code>{{ f.quantity.name or "whole model" }}</code></td>
<td>{{ "" if f.quantity.batch is none else f.quantity.batch }}</td><td>{{ f.signal }}</td>
<td class="n">{{ "%.3g" | format(f.error) }}</td>
<td class="n">{{ "%.3g" | format(f.tolerance) }}</td>
<td class="n">{{ "%.3g" | format(f.floor) }}</td></tr>{% endfor %}</table>"""


def verdict_page(verdict: Verdict) -> str:
    """The page; raises KrzemError where the extra ``report`` is missing."""
    chart = _chart(verdict)
    template = "{% macro table(findings) %}" + _TABLE + "{% endmacro %}" + _TEMPLATE
    judged = [f for f in verdict.findings if f.tolerance]
    return page(
        f"krzem witness: {verdict.model}",
        template,
        v=verdict,
        words=machine_words,
        chart=chart,
        whole=[f for f in verdict.findings if f.signal == "value"],
        closest=sorted(judged, key=lambda f: -f.severity)[:15],
    )


def _chart(verdict: Verdict) -> Any:
    layers = layers_of(verdict.findings)
    figure = new_figure(10.0, 4.0)
    axes = figure.add_subplot()
    numbers = range(len(layers))
    for side, label, marker in ((1, "forward", "o"), (2, "backward", "s")):
        values = [max(float(row[side]), 1e-6) for row in layers]
        axes.plot(numbers, values, marker=marker, markersize=4, label=label)
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle="--")
    axes.annotate("tolerance", (0, 1.0), xycoords=("axes fraction", "data"), xytext=(4, 3),
                  textcoords="offset points", fontsize=8, color="grey")  # fmt: skip
    axes.set(yscale="log", ylabel="error / tolerance")
    every = max(1, len(layers) // 16)
    axes.set_xticks(list(numbers)[::every], [row[0] for row in layers][::every], rotation=60)
    axes.legend(fontsize="small")
    worst = max(((max(row[1], row[2]), row[0]) for row in layers), default=(0.0, "no layer"))
    spoken = f"worst: {worst[0]:.3g} times the tolerance, in {worst[1]}"
    return inline_svg(figure, "Worst error over tolerance of each layer", spoken)


_CERTIFICATE = """
<h1>krzem certificate: {{ "pass" if c.passed else "fail" }}</h1>
<p><strong>{{ c.message }}.</strong></p>
<table>
{% if c.checkpoint %}<tr><th scope="row">checkpoint</th><td>{{ c.checkpoint.name }}, step
{{ "{:,}".format(c.checkpoint.step) }}, {{ c.checkpoint.files }} files with the joint hash
<code>{{ c.checkpoint.files_sha256 }}</code></td></tr>{% endif %}
<tr><th scope="row">from</th><td>{{ words(c.source) }}</td></tr>
<tr><th scope="row">to</th><td>{{ words(c.destination) }}</td></tr>
<tr><th scope="row">noise floor from</th><td>{{ c.floor_settings | join(", ") }}</td></tr>
<tr><th scope="row">made</th><td>{{ c.created }}</td></tr>
<tr><th scope="row">this certificate</th><td><code>{{ c.sha256 }}</code></td></tr>
<tr><th scope="row">the one before</th>
<td><code>{{ c.previous or "none: the first" }}</code></td></tr>
</table>
<h2>What was compared</h2>
<table><tr><th>evidence</th><th>what it says</th></tr>
{% for e in c.evidence %}<tr><td>{{ e.kind }}</td><td>
{% if e.kind == "bit-exact" %}{{ e.equal }} tensors equal in every bit
({% for kind, n in e.tensors.items() %}{{ n }} of kind {{ kind }}{{ ", " if not loop.last }}{%
endfor %}){% if e.unequal %}; unequal: {{ e.unequal | join(", ") }}{% endif %}
{% elif e.kind == "numeric" %}in {{ e.arithmetic }}: {{ e.signals }} signals, {{ e.depart }} depart,
worst error over tolerance {{ "%.3g" | format(e.worst_error_over_tolerance) }}
{% elif e.kind == "settings" %}{{ e.equal | length }} settings of the run equal
{% if e.unequal %}; {{ e.unequal | join("; ") }}{% endif %}
{% else %}{{ e.message }}{% endif %}</td></tr>{% endfor %}
</table>
<h2>What was not</h2>
{% if c.not_compared %}<ul>{% for n in c.not_compared %}<li>{{ n }}</li>{% endfor %}</ul>
{% else %}<p>Nothing was left out of what this kind of check compares.</p>{% endif %}
<p class="quiet">The hash is SHA-256 of the JSON beside this page; <code>krzem witness verify</code>
checks it, the chain and the signature.</p>
"""


def certificate_page(certificate: Mapping[str, Any]) -> str:
    """A certificate for people; raises KrzemError where the extra ``report`` is missing."""
    title = f"krzem certificate: {certificate['model']}"
    return page(title, _CERTIFICATE, c=certificate, words=machine_words)
