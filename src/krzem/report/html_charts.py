"""The charts of a page; each takes rows that are ready to draw and returns SVG markup."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from krzem.report.selfcontained import inline_svg, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
# Charts that follow the page: their colours are CSS variables, so dark and print just work
# -----------------------------------------------------------------------------------------

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


# The charts of a page; each takes rows that are ready to draw and returns SVG markup
# -----------------------------------------------------------------------------------

ROW = 0.3
"""Inches of one row of bars."""
GAP = "\N{EN SPACE}"
"""Between a bar and its text; ordinary spaces at the ends collapse in a browser."""
ROOM_FOR_TEXT = 0.085
"""Share of the width from which a segment can carry its own value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One labelled piece of a bar; ``tone`` names its colour in the page's style sheet."""

    label: str
    value: float
    tone: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A bar made of parts; ``text`` is its total as written."""

    label: str
    parts: Sequence[Part]
    text: str

    @property
    def value(self) -> float:
        """Length of the whole bar."""
        return sum(part.value for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """An 80 % interval as a row; ``text`` is what is written beside it."""

    label: str
    low: float
    mid: float
    high: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A layout of the front."""

    memory_gib: float
    seconds: float
    tone: str


def waterfall(name: str, total: Span, parts: Sequence[Part], unit: str) -> Any:
    """A stacked bar of the whole with its interval, and each part below at its place in it.

    A part below zero is a correction that shortens the whole; its own row runs backwards.
    """
    with style():
        figure, axes = canvas(ROW * (len(parts) + 1) + 0.7)
        left = 0.0
        for row, part in enumerate(parts, start=1):
            if part.value > 0:
                axes.barh(0, part.value, left=left, height=0.78, color=colour(part.tone))
            axes.barh(row, part.value, left=left, height=0.56, color=colour(part.tone))
            end = max(left, left + part.value)
            axes.text(end, row, GAP + part.text, va="center", color=colour("ink"))
            left += part.value
        _whisker(axes, total, 0)
        axes.text(total.high, 0, GAP + total.text, va="center", color=colour("ink"), weight="bold")
        _rows(axes, [total.label, *(part.label for part in parts)])
        axes.set_xlim(0, max(total.high, left) * 1.28)
        axes.set_xlabel(unit)
        spoken = "; ".join(f"{part.label} {part.text}" for part in parts)
        return finish(figure, name, f"{total.label}: {total.text}", spoken)


def stacks(
    name: str, title: str, rows: Sequence[Stack], unit: str, capacity: float | None = None
) -> Any:
    """One stacked bar per row with its total, against the vertical line of ``capacity``."""
    with style():
        figure, axes = canvas(ROW * 1.5 * len(rows) + 0.9)
        widest = max(capacity or 0.0, *(row.value for row in rows))
        for y, row in enumerate(rows):
            _stack(axes, y, row, widest)
        _rows(axes, [row.label for row in rows])
        spoken = "; ".join(f"{row.label}: {row.text}" for row in rows)
        if capacity is not None:
            limit = f"capacity {capacity:.4g} {unit}"
            axes.axvline(capacity, color=colour("ink"), linewidth=1.2, linestyle=(0, (4, 2)))
            axes.text(capacity, -0.6, limit + GAP, ha="right", color=colour("ink"))
            axes.set_ylim(len(rows) - 0.45, -0.95)
            spoken = f"{spoken}; {limit}"
        axes.set_xlim(0, widest * 1.22)
        axes.set_xlabel(unit)
        return finish(figure, name, title, spoken)


def _stack(axes: Axes, y: float, row: Stack, widest: float) -> None:
    left = 0.0
    for part in row.parts:
        if part.value <= 0:
            continue
        axes.barh(y, part.value, left=left, height=0.62, color=colour(part.tone))
        if part.value > ROOM_FOR_TEXT * widest:
            axes.text(left + part.value / 2, y, part.text, ha="center", va="center",
                      color=colour("card"))  # fmt: skip
        left += part.value
    axes.text(left, y, GAP + row.text, va="center", color=colour("ink"), weight="bold")


def scatter(name: str, title: str, points: Sequence[Point], chosen: Point, limit: float) -> Any:
    """Step time over memory of the layouts on the front, the chosen one ringed."""
    with style():
        figure, axes = canvas(3.6)
        line = sorted(points, key=lambda p: p.memory_gib)
        axes.step([p.memory_gib for p in line], [p.seconds for p in line], where="post",
                  color=colour("line"), linewidth=1.2)  # fmt: skip
        for point in line:
            axes.scatter(point.memory_gib, point.seconds, s=34, color=colour(point.tone), zorder=3)
        axes.scatter(chosen.memory_gib, chosen.seconds, s=150, facecolors="none",
                     edgecolors=colour("accent"), linewidths=2.0, zorder=4)  # fmt: skip
        place = (chosen.memory_gib, chosen.seconds)
        axes.annotate("chosen", place, xytext=(0, 12), textcoords="offset points", ha="center",
                      color=colour("accent"), weight="bold")  # fmt: skip
        axes.axvline(limit, color=colour("ink"), linewidth=1.2, linestyle=(0, (4, 2)))
        axes.text(limit, 1.0, f"capacity {limit:.4g} GiB{GAP}", color=colour("ink"), va="top",
                  ha="right", transform=axes.get_xaxis_transform())  # fmt: skip
        _ends(axes, line, chosen)
        axes.grid(color=colour("line"), linewidth=0.5)
        axes.set_xlabel("peak memory of the fullest device, GiB")
        axes.set_ylabel("seconds per step")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.05)
        spoken = f"{len(points)} layouts; chosen: {chosen.memory_gib:.4g} GiB"
        return finish(figure, name, title, f"{spoken}, {chosen.seconds:.4g} s per step")


def _ends(axes: Axes, line: Sequence[Point], chosen: Point) -> None:
    """Name the leanest and the fastest layout that are drawn, where neither is the chosen one."""
    for point, word, ha in ((line[0], "leanest", "left"), (line[-1], "fastest", "center")):
        if abs(point.memory_gib - chosen.memory_gib) > 0.08 * line[-1].memory_gib:
            axes.annotate(word, (point.memory_gib, point.seconds), xytext=(5, 7), ha=ha,
                          textcoords="offset points", color=colour("muted"))  # fmt: skip


def bars(name: str, title: str, parts: Sequence[Part], unit: str) -> Any:
    """One bar per part, from zero."""
    with style():
        figure, axes = canvas(ROW * len(parts) + 0.6)
        for y, part in enumerate(parts):
            axes.barh(y, part.value, height=0.58, color=colour(part.tone))
            axes.text(max(part.value, 0.0), y, GAP + part.text, va="center", color=colour("ink"))
        _rows(axes, [part.label for part in parts])
        axes.set_xlim(min(0.0, *(part.value for part in parts)),
                      max(1e-9, *(part.value for part in parts)) * 1.18)  # fmt: skip
        axes.set_xlabel(unit)
        spoken = "; ".join(f"{part.label} {part.text}" for part in parts)
        return finish(figure, name, title, spoken)


def intervals(
    name: str, title: str, spans: Sequence[Span], unit: str, form: Callable[[float], str]
) -> Any:
    """A dot with its 80 % interval per row, from zero."""
    with style():
        figure, axes = canvas(ROW * 1.4 * len(spans) + 0.6)
        for y, span in enumerate(spans):
            _whisker(axes, span, y, "accent")
            axes.scatter(span.mid, y, s=48, color=colour("accent"), zorder=3)
            axes.text(span.high, y, GAP + span.text, va="center", color=colour("ink"))
        _rows(axes, [span.label for span in spans])
        axes.set_xlim(0, max(span.high for span in spans) * 1.5)
        axes.xaxis.set_major_formatter(lambda value, _: form(value))
        axes.grid(axis="x", color=colour("line"), linewidth=0.5)
        axes.set_xlabel(unit)
        spoken = "; ".join(f"{span.label}: {span.text}" for span in spans)
        return finish(figure, name, title, spoken)


def _whisker(axes: Axes, span: Span, y: float, tone: str = "ink") -> None:
    axes.errorbar(
        span.mid, y, xerr=[[span.mid - span.low], [span.high - span.mid]], color=colour(tone),
        linewidth=1.6, capsize=4, capthick=1.6, fmt="none",
    )  # fmt: skip


def _rows(axes: Axes, labels: Sequence[str]) -> None:
    """Name the rows, first on top."""
    wrapped = [textwrap.fill(label, 30) for label in labels]
    axes.set_yticks(range(len(labels)), wrapped, color=colour("ink"))
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.spines["left"].set_visible(False)
