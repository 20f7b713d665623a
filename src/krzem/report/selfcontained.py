"""One HTML file that opens without a network: jinja2 for the text, matplotlib for inline SVG.

Both come with the extra ``report``; without it every function here says how to install it.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krzem.errors import KrzemError, StorageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INSTALL = "HTML pages need jinja2 and matplotlib: pip install 'krzem[report]'"

_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="krzem">
<title>{{ title }}</title>
<style>
{{ css }}
</style>
</head>
<body>
<header>
<p class="kicker">{{ title.partition(":")[0] }}</p>
{{ head }}
</header>
<main>
{% for section in sections %}
<section>
{{ section }}
</section>
{% endfor %}
</main>
<footer><p>Made by krzem. This page is one file and loads nothing.</p></footer>
</body>
</html>
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
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError:
        raise KrzemError(INSTALL) from None
    frame = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    frame.filters.update({"ticked": _ticked} | dict(filters or {}))
    head, *sections = _parts(frame.from_string(template).render(**context))
    return frame.from_string(_FRAME).render(
        title=title,
        css=Markup(style_sheet()),
        head=Markup(head),
        sections=[Markup(section) for section in sections],
    )


def _ticked(text: object) -> Any:
    """Escaped text in which what stands between back-ticks is code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def style_sheet() -> str:
    """The style of every page."""
    return (files("krzem.report") / "templates" / "style.css").read_text(encoding="utf-8")


def _parts(body: str) -> list[str]:
    """The head and the sections of a filled template; values are escaped, so a tag is ours."""
    wide = body.replace("<table>", '<div class="scroll"><table>').replace(
        "</table>", "</table></div>"
    )
    first, *rest = re.split(r"(?=<h2)", wide)
    at = re.search(r"<(figure|div|ul)", first)
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


def inline_svg(figure: Figure) -> Any:
    """The figure as markup for a template, in the colours and the face of the page."""
    from markupsafe import Markup

    _plain_axes(figure)
    text = save_svg(figure)
    text = re.sub("|".join(_INK), lambda found: f"var(--{_INK[found[0]]})", text)
    text = re.sub(r"font-family: [^;\"]*|font: ([\d.]+px) [^;\"]*", _font, text)
    return Markup(text[text.index("<svg") :])


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
