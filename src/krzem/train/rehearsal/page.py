"""The page of a rehearsal: memory over the step, what fills it, what is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from krzem.quantity import format_bytes
from krzem.report.selfcontained import inline_svg, new_figure, page

_KINDS = {
    "weights": "#1f77b4",
    "gradients": "#8c564b",
    "states": "#17becf",
    "activations": "#ff7f0e",
    "transient": "#7f7f7f",
}
_TEMPLATE = """
<h1>{{ d.model }}, rehearsed</h1>
<p><code>{{ d.layout }}</code>: {{ "{:,}".format(d.ranks_in_all) }} ranks, {{ d.micro_batches }}
micro-batches of a rank, {{ "{:,}".format(d.sequence) }} tokens a sequence, {{ d.precision }},
{{ d.optimizer }}. The fullest rank holds {{ bytes(d.peak_bytes) }} of tensors
{%- if d.capacity_bytes %} of {{ bytes(d.capacity_bytes) }}{% endif %}.</p>

<h2>Memory of each stage's first rank at its peak</h2>
<table>
<tr><th class="n">stage</th><th class="n">rank</th><th class="n">layers</th><th class="n">peak</th>
{% for kind in kinds %}<th class="n">{{ kind }}</th>{% endfor %}</tr>
{% for r in d.ranks %}
<tr><td class="n">{{ r.stage }}</td><td class="n">{{ r.rank }}</td>
<td class="n">{{ r.layers | length }}</td><td class="n">{{ bytes(r.peak_bytes) }}</td>
{% for kind in kinds %}<td class="n">{{ bytes(r.peak[kind]) }}</td>{% endfor %}</tr>
{% endfor %}
</table>

<h2>Memory of rank {{ fullest.rank }} over its step</h2>
<figure>{{ figure }}<figcaption>GiB by kind; the horizontal axis counts operators{% if room %}, the
line is the device's memory{% endif %}.</figcaption></figure>

<h2>What is largest at the peak of rank {{ fullest.rank }}</h2>
<table><tr><th class="n">bytes</th><th>kind</th><th class="n">count</th><th>shape</th>
<th>made by</th></tr>
{% for p in fullest.largest %}
<tr><td class="n">{{ bytes(p.bytes) }}</td><td>{{ p.kind }}</td><td class="n">{{ p.count }}</td>
<td><code>{{ p.shape }}</code></td><td><code>{{ p.operator }}</code></td></tr>
{% endfor %}</table>

<h2>Collectives of rank {{ fullest.rank }} in a step</h2>
<table><tr><th>operation</th><th>group</th><th class="n">ranks</th><th class="n">times</th>
<th class="n">bytes</th></tr>
{% for c in fullest.collectives %}
<tr><td>{{ c.operation }}</td><td>{{ c.group }}</td><td class="n">{{ c.ranks }}</td>
<td class="n">{{ "{:,}".format(c.count) }}</td><td class="n">{{ bytes(c.bytes) }}</td></tr>
{% endfor %}</table>

<h2>Whether the ranks meet</h2>
{% if d.faults %}<ul>{% for f in d.faults %}<li>{{ f.kind }}: {{ f.said }}</li>{% endfor %}</ul>
{% else %}<p>In every collective and message.</p>{% endif %}
<p class="quiet">The trainer's own engine was run on tensors without values, as each of these ranks;
what the driver, the collective library and fragmentation take is not in it.</p>
"""


def rehearsal_page(document: Mapping[str, Any]) -> str:
    """The whole page of a rehearsal's document.

    Raises KrzemError where the extra ``report`` is missing.
    """
    fullest = max(document["ranks"], key=lambda rank: rank["peak_bytes"])
    room = document.get("capacity_bytes")
    return page(
        f"krzem rehearsal: {document['model']}",
        _TEMPLATE,
        d=document,
        kinds=list(_KINDS),
        fullest=fullest,
        room=room,
        bytes=lambda n: format_bytes(n, 3),
        figure=_memory(fullest["timeline"], room),
    )


def _memory(timeline: Sequence[Mapping[str, float]], room: float | None) -> Any:
    figure = new_figure(10.0, 4.2)
    axes = figure.subplots()
    at = [moment["operator"] for moment in timeline]
    layers = [[moment[kind] / 2**30 for moment in timeline] for kind in _KINDS]
    axes.stackplot(at, *layers, labels=list(_KINDS), colors=list(_KINDS.values()), linewidth=0)
    if room is not None:
        axes.axhline(room / 2**30, linestyle="--", color="#808080", linewidth=1)
        axes.annotate(f"the device's memory, {format_bytes(room, 3)}", (0, room / 2**30),
                      xycoords=("axes fraction", "data"), xytext=(4, 3),
                      textcoords="offset points")  # fmt: skip
    axes.set(xlabel="operator", ylabel="GiB")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="center right", frameon=False)
    peak = max(sum(moment[kind] for kind in _KINDS) for moment in timeline)
    spoken = f"at most {format_bytes(peak, 3)}"
    if room is not None:
        spoken += f" of the device's {format_bytes(room, 3)}"
    return inline_svg(figure, "Memory by kind over the operators of a step", spoken)
