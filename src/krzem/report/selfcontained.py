"""One HTML file that opens without a network: jinja2 for the text, matplotlib for inline SVG.

Both come with the extra ``report``; without it every function here says how to install it.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Mapping
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
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
th { background: var(--soft); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
code { background: var(--soft); padding: .1rem .3rem; border-radius: 3px; }
figure { margin: 1.5rem 0; background: white; padding: .5rem; }
figure svg { width: 100%; height: auto; }
figcaption { color: #444; font-size: .9rem; }
.quiet { opacity: .75; font-size: .9rem; }
</style>
</head>
<body>
{{ body }}
</body>
</html>
"""


def page(
    title: str,
    template: str,
    *,
    filters: Mapping[str, Callable[..., Any]] | None = None,
    **context: Any,
) -> str:
    """The whole page: ``template`` (jinja2, values escaped) filled and set in the common frame.

    Raises KrzemError where the extra is missing.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError:
        raise KrzemError(INSTALL) from None
    frame = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    frame.filters.update(filters or {})
    body = frame.from_string(template).render(**context)
    return frame.from_string(_FRAME).render(title=title, body=Markup(body))


def new_figure(width: float = 8.0, height: float = 4.5) -> Figure:
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
    """The figure as markup for a template."""
    from markupsafe import Markup

    text = save_svg(figure)
    return Markup(text[text.index("<svg") :])


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
