"""Charts that follow the page: their colours are CSS variables, so dark and print just work.

matplotlib knows no CSS, so a chart is drawn in stand-in colours and each stand-in is replaced by
``var(--name)`` in the finished SVG.  Text stays text, in the font of the page.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from krzem.report.selfcontained import inline_svg, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMES = (
    "ink", "muted", "line", "card", "accent",
    "work1", "work2", "talk1", "talk2", "talk3", "talk4", "idle", "extra1", "extra2",
    "fit1", "fit2", "fit3", "fit4",
)  # fmt: skip
_STAND_IN = {name: f"#0102{number:02x}" for number, name in enumerate(_NAMES)}
_PATTERN = re.compile("|".join(_STAND_IN.values()))
_VARIABLE = {stand_in: f"var(--{name})" for name, stand_in in _STAND_IN.items()}
WIDTH = 9.0
"""Inches of every chart: one width, so that letters are equally large in all of them."""


def colour(name: str) -> str:
    """The stand-in for the CSS variable ``--name``."""
    return _STAND_IN[name]


def style() -> AbstractContextManager[None]:
    """Settings that charts share, for the time of one drawing; names are text, never formulas."""
    import matplotlib

    return matplotlib.rc_context({"font.size": 8.5, "text.parse_math": False})


def canvas(height: float) -> tuple[Figure, Axes]:
    """A figure of the common width with one bare pair of axes."""
    figure = new_figure(WIDTH, height)
    axes = figure.add_subplot()
    figure.patch.set_alpha(0.0)
    axes.patch.set_alpha(0.0)
    axes.tick_params(colors=colour("muted"), pad=5)
    axes.set_axisbelow(True)
    return figure, axes


def finish(figure: Figure, name: str, title: str, description: str) -> Any:
    """The figure as SVG markup that a screen reader can read out; its labels are escaped.

    ``name`` makes the ids of this chart differ from those of its neighbours.
    """
    from markupsafe import Markup

    drawn = inline_svg(figure, title, description, name=name)
    return Markup(_PATTERN.sub(lambda found: _VARIABLE[found[0]], str(drawn)))
