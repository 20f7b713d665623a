"""The outlook as one self-contained HTML page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from krzem.outlook.figures import fan_figure, lag_figure, odds_figure, tornado_figure
from krzem.outlook.text import sections
from krzem.outlook.whole import Outlook
from krzem.report.selfcontained import inline_svg, page
from krzem.report.text_table import cells_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
