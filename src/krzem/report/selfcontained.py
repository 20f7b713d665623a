"""One HTML file that opens without a network: jinja2 for the text, matplotlib for inline SVG.

Both come with the extra ``report``; without it every function here says how to install it.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krzem.errors import KrzemError, StorageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INSTALL = "HTML pages need jinja2 and matplotlib: pip install 'krzem[report]'"

_SECTIONS = """{% extends "base.html" %}
{% block head %}{{ head }}{% endblock %}
{% block main %}
{% for section in sections %}
<section>
{{ section }}
</section>
{% endfor %}
{% endblock %}
"""

_INK = {
    "#000000": "ink", "#808080": "muted", "#cccccc": "line", "#ffffff": "card",
    "#1f77b4": "work1", "#ff7f0e": "extra1", "#2ca02c": "talk1", "#d62728": "fit1",
    "#9467bd": "talk4", "#8c564b": "work2", "#e377c2": "talk3", "#7f7f7f": "extra2",
    "#bcbd22": "idle", "#17becf": "talk2",
}  # fmt: skip
"""The CSS variable of style.css for each colour of matplotlib's default cycle, and for greys."""


def need_extra() -> None:
    """Raise KrzemError where the extra ``report`` is missing: before long work, not after it."""
    if not all(importlib.util.find_spec(name) for name in ("jinja2", "markupsafe", "matplotlib")):
        raise KrzemError(INSTALL)


def environment(filters: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """A jinja2 environment over ``report/templates``: values are escaped, none may be missing.

    Raises KrzemError where the extra is missing.
    """
    try:
        import jinja2
        import markupsafe  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError:
        raise KrzemError(INSTALL) from None
    folder = files("krzem.report") / "templates"
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update({"ticked": _ticked} | dict(filters or {}))
    return made


def framed(template: Any, *, kicker: str, title: str, **context: Any) -> str:
    """The whole page of a template that extends ``base.html``, as keyboards and readers need it."""
    from markupsafe import Markup

    return accessible(
        template.render(css=Markup(style_sheet()), kicker=kicker, title=title, **context)
    )


def page(
    title: str,
    template: str,
    *,
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **context: Any,
) -> str:
    """The whole page: ``template`` (jinja2, values escaped) filled and set in the common frame.

    What stands before the first figure, table, list or ``<h2>`` is the head of the page; each
    ``<h2>`` begins a section. Raises KrzemError where the extra is missing.
    """
    made = environment(filters)
    from markupsafe import Markup

    head, *sections = _parts(made.from_string(template).render(**context))
    return framed(
        made.from_string(_SECTIONS),
        kicker=title.partition(":")[0],
        title=title,
        head=Markup(head),
        sections=[Markup(section) for section in sections],
    )


def accessible(text: str) -> str:
    """Tables, charts and listings in named regions that a keyboard can scroll; cells with a scope.

    ``text`` is a whole page; what stands in it is escaped, so a tag is one of a template.
    """
    start = text.index("<body>")
    names: Counter[str] = Counter()
    heading = ""

    def region(found: re.Match[str]) -> str:
        nonlocal heading
        if found["heading"]:
            heading = " ".join(re.sub(r"<[^>]*>", "", found["heading"]).split())
            return found[0]
        kind = {"t": "table", "s": "chart", "p": "listing"}[found[0][1]]
        name = f"{heading}: {kind}".replace('"', "&quot;")
        names[name] += 1
        label = name if names[name] == 1 else f"{name} {names[name]}"
        focus = f'tabindex="0" role="region" aria-label="{label}"'
        if kind == "listing":
            return f"<pre {focus}{found[0][4:]}"
        body = _scoped(found[0]) if kind == "table" else found[0]
        return f'<div class="scroll" {focus}>{body}</div>'

    return text[:start] + _REGIONS.sub(region, text[start:])


_REGIONS = re.compile(
    r"<h[123][^>]*>(?P<heading>.*?)</h[123]>|<table>.*?</table>|<svg.*?</svg>|<pre[^>]*>", re.DOTALL
)


_DENSE = 8
"""Columns from which a table is set in smaller letters."""


def _scoped(table: str) -> str:
    """The table with its first row of headings as its head, and a scope at every heading."""
    if "<thead>" not in table:
        table = re.sub(
            r"<table>\s*(<tr>(?:(?!<td|</tr>).)*</tr>)(.*)</table>",
            r"<table><thead>\1</thead><tbody>\2</tbody></table>",
            table,
            flags=re.DOTALL,
        )
    head, mark, body = table.rpartition("</thead>")
    if head.count("<th") >= _DENSE:
        head = head.replace("<table>", '<table class="dense">')
    head = re.sub(r"<th(?![^>]*scope=)(?=[ >])", '<th scope="col"', head)
    return head + mark + re.sub(r"<th(?![^>]*scope=)(?=[ >])", '<th scope="row"', body)


def _ticked(text: object) -> Any:
    """Escaped text in which what stands between back-ticks is code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def style_sheet() -> str:
    """The style of every page."""
    return (files("krzem.report") / "templates" / "style.css").read_text(encoding="utf-8")


def _parts(body: str) -> list[str]:
    """The head and the sections of a filled template; values are escaped, so a tag is ours."""
    first, *rest = re.split(r"(?=<h2)", body)
    at = re.search(r"<(figure|table|ul|ol|dl)", first)
    head, opening = (first[: at.start()], first[at.start() :]) if at else (first, "")
    return [part for part in (head, opening, *rest) if part.strip()]


def new_figure(width: float = 10.0, height: float = 5.0) -> Figure:
    """An empty matplotlib figure that needs no display; raises KrzemError without the extra."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise KrzemError(INSTALL) from None
    return Figure(figsize=(width, height), layout="constrained")


def save_svg(figure: Figure) -> str:
    """The figure as an SVG document; the same figure gives the same text."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "krzem", "svg.fonttype": "none"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def inline_svg(figure: Figure, title: str, description: str = "", *, name: str = "") -> Any:
    """The figure as markup for a template, in the colours and the face of the page.

    A reader of screens reads ``title`` and ``description`` out. ``name`` makes the ids of this
    chart differ from those of its neighbours; without one it is made from the title.
    """
    from markupsafe import Markup, escape

    _plain_axes(figure)
    with warnings.catch_warnings():
        # Text stays text: letters that matplotlib's own font lacks are drawn by the reader's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        text = save_svg(figure)
    text = text[text.index("<svg") :]
    text = re.sub("|".join(_INK), lambda found: f"var(--{_INK[found[0]]})", text)
    text = re.sub(r"font-family: [^;\"]*|font: ([\d.]+px) [^;\"]*", _font, text)
    name = name or f"chart-{zlib.crc32(title.encode()):x}"
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index(">") + 1 :], flags=re.DOTALL)
    return Markup(
        f'<svg role="img" aria-labelledby="{name}-title {name}-desc"'
        f' viewBox="{_view_box(text)}" xmlns="http://www.w3.org/2000/svg"'
        f' xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description or title)}</desc>'
    ) + Markup(body)


def _view_box(svg: str) -> str:
    found = re.search(r'viewBox="([\d. -]+)"', svg)
    assert found is not None
    return found[1]


def _plain_axes(figure: Figure) -> None:
    """Axes as on every page: two spines, no tick marks, labels that stand back."""
    for axes in figure.axes:
        for side, spine in axes.spines.items():
            spine.set_color("#cccccc")
            spine.set_visible(spine.get_visible() and side in ("left", "bottom"))
        axes.tick_params(which="both", length=0)
        axes.xaxis.label.set_color("#808080")
        axes.yaxis.label.set_color("#808080")


def _font(found: re.Match[str]) -> str:
    """The size stays; the face is the page's."""
    return f"font-size: {found[1]}" if found[1] else "font-family: inherit"


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: a temporary file beside it, synced, then renamed.

    Raises StorageError where the disk does not take it.
    """
    if path.exists() and not path.is_file():
        raise StorageError(f"{path} is not a regular file: give another name for the page.")
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {error.strerror or error}.") from None
