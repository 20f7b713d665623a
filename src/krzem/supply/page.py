"""HTML pages of fleets, inverse questions, inferences and proposals, from their documents."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from krzem.report.selfcontained import inline_svg, new_figure, page
from krzem.report.text_table import cells_of
from krzem.supply import text
from krzem.supply.proposal_text import proposal_markdown

Document = Mapping[str, Any]

_TABLE = """{% macro grid(rows) %}<table>
{% set numeric = rows | numeric %}
{% for row in rows %}<tr>{% for cell in row %}
{% set tag = "th" if rows[0] is sameas row else "td" %}
<{{ tag }}{{ ' class="n"' | safe if numeric[loop.index0] }}>{{ cell }}</{{ tag }}>
{% endfor %}</tr>
{% endfor %}</table>{% endmacro %}
"""

_FLEET = (
    _TABLE
    + """
<h1>{{ d.name }}: {{ d.model }}</h1>
<p>From {{ d.start }}, to be done by {{ d.deadline }}.</p>
{% if not d.feasible %}
<h2>No plan keeps every limit</h2>
<p>Relaxing one of them, the others held:</p>
<ul>{% for r in d.relaxations %}<li><strong>{{ r.limit }}</strong>: {{ r.words }}</li>{% endfor %}
</ul>
{% else %}
<figure>{{ gantt }}<figcaption>Where the run is, and when. Hatched: moves and
requalification.</figcaption></figure>
{% for key in ("cheapest", "fastest", "most_certain", "sure") if d[key] %}
<h2>{{ titles[key] or d[key].label }}</h2>
<p>{{ headline(d[key])[:1] | upper }}{{ headline(d[key])[1:] }}</p>
{{ grid(rows(stages(d[key]))) }}
<ul>{% for line in extras(d[key]) %}<li>{{ line }}</li>{% endfor %}</ul>
{% endfor %}
<h2>What an earlier date costs</h2>
<figure>{{ front }}<figcaption>Each point is the cheapest plan for its date; the percentage is the
chance of meeting the deadline.</figcaption></figure>
{{ grid(rows(fronts(d))) }}
{% endif %}
<h2>Every pool alone</h2>
{{ grid(rows(speeds(d))) }}
{% if d.rules %}<h2>Rules</h2><ul>{% for name, r in d.rules.items() %}
<li>{{ name }}: {{ r.words }}</li>{% endfor %}</ul>{% endif %}
{% if d.left_out %}<h2>Left out</h2><ul>{% for words in left_out %}
<li>{{ words }}</li>{% endfor %}</ul>{% endif %}
<h2>Assumptions</h2>
<ul>{% for name, value in d.assumptions.items() if value is not mapping or value %}
<li>{{ name.replace("_", " ") }}:
{% if value is mapping %}{% for key, part in value.items() %}{{ key.replace("_", " ") }}
{{ part | number }}{{ "" if loop.last else ", " }}{% endfor %}
{% else %}{{ value | number }}{% endif %}</li>
{% endfor %}</ul>
<h2>Notes</h2><ul>{% for note in d.notes %}<li>{{ note | ticked }}</li>{% endfor %}</ul>
"""
)

_PLAIN = (
    _TABLE
    + """
<h1>{{ about }}</h1>
{% if chart %}<figure>{{ chart }}<figcaption>{{ caption }}</figcaption></figure>{% endif %}
{% for block in blocks %}
{% if block.rows %}{{ grid(block.rows) }}
{% elif block.heading %}<h2>{{ block.heading }}</h2>
{% elif block.points %}<ul class="notes">{% for item in block.points %}<li>{{ item | ticked }}</li>
{% endfor %}</ul>
{% elif block.line %}<p>{{ block.line | ticked }}</p>{% endif %}
{% endfor %}
"""
)


def fleet_page(document: Document) -> str:
    """The page of ``krzem fleet``; raises KrzemError where the extra is missing."""
    feasible = document["feasible"]
    return page(
        "krzem fleet",
        _FLEET,
        filters={"numeric": _numeric, "number": _number},
        d=document,
        gantt=_gantt(document) if feasible else "",
        front=_front(document) if feasible else "",
        headline=text.headline,
        titles=text.TITLES,
        stages=text.stages_table,
        extras=text.extras,
        fronts=text.front_table,
        speeds=text.speeds_table,
        left_out=text.left_out_words(document["left_out"]),
        rows=_rows,
    )


def infer_page(document: Document) -> str:
    """The page of ``krzem infer``."""
    return page(
        "krzem infer",
        _PLAIN,
        filters={"numeric": _numeric},
        about=f"Which fleet trained {document['model']}?",
        blocks=_blocks(text.infer_text(document).partition("\n")[2]),
        chart=_odds_chart(document),
        caption="Odds of each kind of device that counts.",
    )


def text_page(title: str, markdown: str) -> str:
    """Headings, paragraphs, lists and tables of simple Markdown as a page."""
    return page(
        "krzem", _PLAIN, filters={"numeric": _numeric}, about=title, blocks=_blocks(markdown),
        chart="", caption="",
    )  # fmt: skip


def proposal_page(document: Document) -> str:
    """The page of ``krzem proposal``."""
    return page(
        "krzem proposal", _PLAIN, filters={"numeric": _numeric}, about=document["title"],
        blocks=_blocks(proposal_markdown(document)), chart=_scaling_chart(document),
        caption="Tokens per second by number of nodes, with 80 % intervals; the dashed line is"
        " perfect scaling from the smallest size, squares are measured.",
    )  # fmt: skip


def _scaling_chart(document: Document) -> Any:
    """Strong and weak scaling against the ideal, both axes logarithmic."""
    from matplotlib.ticker import NullLocator

    figure = new_figure(10.0, 4.0)
    axes = figure.add_subplot()
    for name, key, line in (("strong", "scaling", "-"), ("weak", "weak_scaling", ":")):
        rows = document[key]
        nodes = [row["nodes"] for row in rows]
        per_s = [row["tokens_per_s"] for row in rows]
        low = [v["mid"] - v["low"] for v in per_s]
        high = [v["high"] - v["mid"] for v in per_s]
        axes.errorbar(
            nodes,
            [v["mid"] for v in per_s],
            yerr=[low, high],
            capsize=3,
            label=name,
            linestyle=line,
            linewidth=2.5,
        )
        own = [(n, v["mid"]) for n, v, row in zip(nodes, per_s, rows, strict=True)
               if row["measured"]]  # fmt: skip
        axes.scatter(*zip(*own, strict=True), marker="s") if own else None
    first, last = document["scaling"][0], document["scaling"][-1]
    ideal = first["tokens_per_s"]["mid"] * last["nodes"] / first["nodes"]
    axes.plot([first["nodes"], last["nodes"]], [first["tokens_per_s"]["mid"], ideal],
              linestyle="--", color="grey", label="perfect scaling")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="nodes", ylabel="tokens per second")
    ticks = sorted({row["nodes"] for row in document["scaling"] + document["weak_scaling"]})
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("{x:,.0f}")
    axes.legend(frameon=False)
    spoken = "; ".join(
        f"{row['nodes']} nodes: {row['tokens_per_s']['mid']:,.0f} tokens/s"
        for row in document["scaling"]
    )
    return inline_svg(figure, "Strong and weak scaling", spoken)


def _rows(markdown: str) -> list[list[str]]:
    """Cells of a Markdown table, the rule left out."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [cells_of(line) for i, line in enumerate(lines) if i != 1]


def _numeric(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold figures: no cell below the head has a word of more than two letters."""
    return [not any(re.search(r"[A-Za-z]{3}", cell) for cell in column[1:])
            for column in zip(*rows, strict=True)]  # fmt: skip


def _number(value: float) -> str:
    return f"{value:,.4g}" if value < 1e6 else f"{value:.3g}"


def _blocks(markdown: str) -> list[dict[str, Any]]:
    """Headings, items, lines and tables in order; the title is the page's own."""
    blocks: list[dict[str, Any]] = []
    pending: list[str] = []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            pending.append(line)
            continue
        if pending:
            blocks.append(_block(rows=_rows("\n".join(pending))))
            pending = []
        if line.startswith("##"):
            blocks.append(_block(heading=line.lstrip("# ")))
        elif line.startswith("- "):
            if not (blocks and blocks[-1]["points"]):
                blocks.append(_block(points=[]))
            blocks[-1]["points"].append(line[2:])
        elif line.strip() and not line.startswith("#"):
            blocks.append(_block(line=line))
    return blocks


def _block(**kind: Any) -> dict[str, Any]:
    return {"rows": None, "heading": "", "points": [], "line": ""} | kind


def _gantt(document: Document) -> Any:
    """Bars of the named plans over the calendar."""
    import datetime as dt

    figure = new_figure(10.0, 3.2)
    axes = figure.add_subplot()
    keys = [key for key in text.TITLES if document[key]]
    pools = list(dict.fromkeys(s["pool"] for k in keys for s in document[k]["stages"]))
    for y, key in enumerate(keys):
        for stage in document[key]["stages"]:
            first = dt.date.fromisoformat(stage["from"])
            length = (dt.date.fromisoformat(stage["to"]) - first).days + 1
            color = f"C{pools.index(stage['pool']) % 10}"
            left = first.toordinal()
            axes.barh(y, length, left=left, color=color, label=stage["pool"])
            axes.barh(y, min(stage["move_days"], length), left=left, color="none", hatch="///",
                      edgecolor="white")  # fmt: skip
    deadline = dt.date.fromisoformat(document["deadline"]).toordinal()
    axes.axvline(deadline, color="black", ls=":")
    axes.annotate("deadline ", (deadline, 1.0), xycoords=("data", "axes fraction"), ha="right",
                  va="bottom", fontsize="small")  # fmt: skip
    axes.set_yticks(range(len(keys)), [text.TITLES[k] or document[k]["label"] for k in keys])
    axes.invert_yaxis()
    ticks = [int(t) for t in axes.get_xticks() if t > 0]
    axes.set_xticks(ticks, [dt.date.fromordinal(t).isoformat() for t in ticks], fontsize="small")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), fontsize="small", frameon=False,
                  loc="outside lower center", ncols=4)  # fmt: skip
    spoken = "; ".join(
        f"{text.TITLES[k] or document[k]['label']}: "
        + ", ".join(f"{s['pool']} from {s['from']} to {s['to']}" for s in document[k]["stages"])
        for k in keys
    )
    return inline_svg(figure, "Calendar of the plans", spoken)


def _front(document: Document) -> Any:
    """Cost by date; the line joins the plans that no earlier one undercuts."""
    figure = new_figure()
    axes = figure.add_subplot()
    points = sorted(document["front"], key=lambda p: p["finish_day"])
    costs = [p["cost_usd"] / 1e6 for p in points]
    days = [p["finish_day"] for p in points]
    frontier = [i for i in range(len(points)) if costs[i] <= min(costs[: i + 1])]
    axes.plot([days[i] for i in frontier], [costs[i] for i in frontier])
    axes.scatter(days, costs)
    labelled = -1e9
    for point, day, cost in zip(points, days, costs, strict=True):
        label = ", ".join(filter(None, (point["label"], text.percent(point["odds"]["meets_date"]))))
        if point["label"] or day - labelled > 0.12 * (days[-1] - days[0]):
            axes.annotate(label, (day, cost), xytext=(0, 7), ha="center",
                          textcoords="offset points")  # fmt: skip
            labelled = day
    axes.margins(x=0.1)
    axes.set(xlabel=f"days after {document['start']}", ylabel="million US dollars",
             ylim=(0, 1.1 * max(costs) or 1))  # fmt: skip
    spoken = "; ".join(f"{d:.0f} days: {c:,.3g} million" for d, c in zip(days, costs, strict=True))
    return inline_svg(figure, "Cost of the cheapest plan for each date", spoken)


def _odds_chart(document: Document) -> Any:
    kinds = text.likely(document)
    figure = new_figure(10.0, 1.0 + 0.3 * len(kinds))
    axes = figure.add_subplot()
    axes.barh([k["device"] for k in kinds], [k["probability"] for k in kinds])
    axes.invert_yaxis()
    axes.set(xlabel="probability", xlim=(0, 1))
    spoken = "; ".join(f"{k['device']}: {text.percent(k['probability'])}" for k in kinds)
    return inline_svg(figure, "Odds of each kind of device", spoken)
