"""Plain-text tables and paragraphs in the columns of the terminal: 60 to 100."""

from __future__ import annotations

import itertools
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from krzem.quantity import format_count, format_money, format_seconds

WIDTH, NARROWEST = 100, 60
GAP = "  "
_LEAST_CUT = 8
"""Columns below which a cell that may be cut is left out."""


def columns() -> int:
    """Columns to fill: the terminal's, from 60 to 100; 100 where nothing says how wide it is."""
    return min(max(shutil.get_terminal_size((WIDTH, 24)).columns, NARROWEST), WIDTH)


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], align: str, width: int | None = None
) -> list[str]:
    """Lines of a table; ``align`` has a letter per column.

    ``l`` left, ``r`` right, ``w`` left and wrapped into what the other columns leave, ``c`` left
    and cut there, ``b`` left and dropped where it has no room (one column of ``w``, ``c`` and ``b``
    at most).  Columns that do not fit stand below the others, beside the first one again.
    """
    width = width or columns()
    cells = [list(map(printable, row)) for row in (head, *rows)]
    sizes = [max(len(row[i]) for row in cells) for i in range(len(align))]
    flexible = next((i for i, kind in enumerate(align) if kind in "wcb"), None)
    kept = list(range(len(align)))
    if flexible is not None:
        others = sum(sizes) - sizes[flexible] + len(GAP) * (len(align) - 1)
        room = width - others
        least = {"b": sizes[flexible], "c": _LEAST_CUT}.get(align[flexible], 0)
        if room < least:
            kept.remove(flexible)
        elif align[flexible] != "b":
            sizes[flexible] = max(min(sizes[flexible], room), _LEAST_CUT)
    lines = [
        line
        for group in _side_by_side(kept, sizes, width)
        for row in cells
        for line in _row([row[i] for i in group], [sizes[i] for i in group],
                         [align[i] for i in group])
    ]  # fmt: skip
    return [line[:width].rstrip() for line in lines]


def _side_by_side(kept: Sequence[int], sizes: Sequence[int], width: int) -> list[list[int]]:
    """The columns that stand beside each other, each group with the first column."""
    groups = [[kept[0]]]
    for i in kept[1:]:
        wanted = [*groups[-1], i]
        if sum(sizes[k] for k in wanted) + len(GAP) * (len(wanted) - 1) > width > 0:
            groups.append([kept[0]])
        groups[-1].append(i)
    return groups


def _row(row: Sequence[str], sizes: Sequence[int], align: Sequence[str]) -> Iterator[str]:
    """The lines of one row: more than one where a cell wraps."""
    parts = [
        _wrapped(cell, size) if kind == "w" else [cell[:size] if kind == "c" else cell]
        for cell, size, kind in zip(row, sizes, align, strict=True)
    ]
    for i in range(max(map(len, parts))):
        cells = [part[i] if i < len(part) else "" for part in parts]
        yield GAP.join(
            cell.rjust(size) if kind == "r" else cell.ljust(size)
            for cell, size, kind in zip(cells, sizes, align, strict=True)
        )


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of ``text``; a layout may be broken after its commas."""
    if len(text) <= width:
        return [text]
    spaced = text.replace(",", ",\0").split("\0")
    lines = [""]
    for word in spaced if " " not in text else text.split(" "):
        joined = f"{lines[-1]} {word}" if " " in text and lines[-1] else f"{lines[-1]}{word}"
        if len(joined) <= width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    return [line[:width] for line in lines]


def paragraph(
    text: str, first: str = "", rest: str | None = None, width: int | None = None
) -> list[str]:
    """``text`` filled to ``width`` (default: the terminal's).

    ``first`` stands before its first line, ``rest`` elsewhere.
    """
    indent = " " * len(first) if rest is None else rest
    return [
        line
        for i, part in enumerate(text.splitlines() or [""])
        for line in textwrap.wrap(
            printable(part),
            width or columns(),
            initial_indent=indent if i else first,
            subsequent_indent=indent,
            break_on_hyphens=False,
        )
        or [first.rstrip()]
    ]


def bar(share: float, width: int) -> str:
    """A bar of ``share`` of ``width``, in eighths of a column."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def shortened(text: str, limit: int) -> str:
    """``text`` cut to ``limit`` columns."""
    plain = printable(text)
    return plain if len(plain) <= limit else f"{plain[: limit - 1]}…"


def printable(text: str) -> str:
    """Without the control characters that files and names may hold."""
    return "".join(c if c.isprintable() else " " for c in text)


# Numbers of a JSON document as text: three digits, intervals, unknown as ``unknown``
# -----------------------------------------------------------------------------------

Interval = dict[str, float] | None
UNKNOWN = "unknown"
ROUNDING = 1e-13
"""Below this a figure is a difference of equal ones: nothing here is counted that finely."""


def plain(value: float) -> str:
    """Three significant digits, thousands separated; what rounding left of a zero is a zero."""
    if abs(value) < ROUNDING:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    text = f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: float) -> str:
    """``14.8T``, ``2.05k``."""
    return format_count(value, 3)


def percent(value: float) -> str:
    """``23 %``; one decimal below ten."""
    return f"{value * 100:.0f} %" if abs(value) >= 0.0995 else f"{value * 100:.1f} %"


def money(value: float) -> str:
    """``$5.58M``."""
    return format_money(value, 3)


def seconds(value: float) -> str:
    """``22.4 s``, ``15 min``."""
    return format_seconds(value, 3)


def energy(megawatt_hours: float) -> str:
    """``3.2 GWh``."""
    for unit, factor in (("TWh", 1e6), ("GWh", 1e3), ("MWh", 1.0)):
        if megawatt_hours >= factor:
            return f"{plain(megawatt_hours / factor)} {unit}"
    return f"{plain(megawatt_hours * 1e3)} kWh"


def interval(value: Interval, shown: Callable[[float], str] = plain) -> str:
    """``72 (62–84)``; a unit that all three share is written once: ``34 (29–40) %``."""
    if not value:
        return UNKNOWN
    low, mid, high = (shown(value[key]) for key in ("low", "mid", "high"))
    if low == high:
        return mid
    numbers, units = zip(*(text.partition(" ")[::2] for text in (low, mid, high)), strict=True)
    if len(set(units)) == 1:
        return f"{numbers[1]} ({numbers[0]}–{numbers[2]}) {units[0]}".rstrip()
    return f"{mid} ({low}–{high})"


def given(value: Any, shown: Callable[[float], str] = plain) -> str:
    """A number, or ``unknown``."""
    return UNKNOWN if value is None else shown(value)


def days(value: Interval) -> str:
    """``72 (62–84) days``; hours or minutes where a day is too long a measure."""
    unit, factor = "days", 1.0
    for shorter, parts, below in (("hours", 24.0, 1.0), ("minutes", 1440.0, 1 / 24)):
        if value and value["mid"] < below:
            unit, factor = shorter, parts
    scaled = value and {key: each * factor for key, each in value.items()}
    return f"{interval(scaled)} {unit}"


# The report on a table of runs as text of at most 100 columns
# ------------------------------------------------------------

Document = Mapping[str, Any]

ACCURACY_HEAD = (
    "", "rows", "median", "mean", "90th pct", "bias", "in 80 %", "within 10 %", "rank corr.",
)  # fmt: skip
_KEYS = ("median_ape", "mape", "p90_ape", "bias", "coverage80", "within10", "spearman")
_ALIGN = "lrrrrrrrr"
LONGEST = 12
"""Accelerators, families or sources shown; all are in ``--json``."""


def format_report(document: Document) -> str:
    """The report for a terminal."""
    lines = [*_opening(document), "", *_time(document), "", *_memory(document["memory"])]
    for key, title in (
        ("by_accelerator", "accelerator"), ("by_family", "family"), ("by_source", "source"),
    ):  # fmt: skip
        if len(document[key]) > 1:
            lines += ["", *_groups(document[key], title)]
    if document["skipped"]:
        lines += ["", *_skipped(document["skipped"])]
    return "\n".join(lines) + "\n"


def _opening(document: Document) -> list[str]:
    return [line for words in opening_words(document) for line in paragraph(words)]


def opening_words(document: Document) -> list[str]:
    """What the figures are of, in sentences."""
    found = [
        f"{document['used']:,} of {document['rows']:,} rows predicted from their own layout,"
        " batch, precision and date. Errors are of seconds per step, |predicted / measured - 1|;"
        " bias is the median of predicted / measured - 1."
    ]
    if document["held_back"]:
        found.append(
            "Calibration has seen rows of this table. Judge it by the rows \"without ...\","
            " where each row is predicted by a calibration that had not seen its source, its"
            " accelerator or its family."
        )  # fmt: skip
    if document["duplicate_ids"]:
        found.append(f"{document['duplicate_ids']:,} ids occur more than once; all are used.")
    return found


def _time(document: Document) -> list[str]:
    held = document["held_back"]
    first = "time, as calibrated" if held else "time"
    rows = [_accuracy_row(first, document["time"])]
    rows += [_accuracy_row(name.replace("_", " "), figures) for name, figures in held.items()]
    return table(ACCURACY_HEAD, rows, _ALIGN)


def _accuracy_row(name: str, figures: Document) -> list[str]:
    return [shortened(name, 23), *accuracy_cells(figures)]


def accuracy_cells(figures: Document) -> list[str]:
    """Rows and errors of a group, as under ``ACCURACY_HEAD`` after its first column."""
    return [f"{figures['n']:,}", *(_cell(k, figures.get(k)) for k in _KEYS)]


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key == "spearman":
        return f"{value:.2f}"
    return f"{100 * value:+.1f} %" if key == "bias" else f"{100 * value:.1f} %"


def _memory(figures: Document) -> list[str]:
    words = memory_words(figures)
    return paragraph(words) if figures["n"] else [words]


def memory_words(figures: Document) -> str:
    """How far predicted peaks are off, in a sentence."""
    if not figures["n"]:
        return "No row says both peak memory and all that it depends on."
    return (
        f"Peak memory, {figures['n']:,} rows: mean error {_cell('', figures['mape'])}, largest"
        f" {_cell('', figures['max_ape'])}; {_cell('', figures['fits_correct'])} of these layouts,"
        " which all ran, are held to be possible."
    )


def _groups(groups: Mapping[str, Document], title: str) -> list[str]:
    shown = [(n, g) for n, g in groups.items() if g["n"]][:LONGEST]
    lines = table((title, *ACCURACY_HEAD[1:]), [_accuracy_row(n, g) for n, g in shown], _ALIGN)
    left = len(groups) - len(shown)
    return [*lines, f"... and {left} more (--json)"] if left > 0 else lines


def _skipped(reasons: Mapping[str, int]) -> list[str]:
    rows = [[f"{count:,}", reason] for reason, count in list(reasons.items())[:LONGEST]]
    return table(("skipped", "because"), rows, "rw")


# Markdown as a terminal shows it: tables without bars, nothing beyond 100 columns
# --------------------------------------------------------------------------------

_LEAST = 6
"""Columns that a cell keeps, however little room there is."""


def fitted(markdown: str, width: int | None = None) -> str:
    """``markdown`` with its tables and long lines set into the terminal's columns."""
    width = width or columns()
    lines: list[str] = []
    for is_table, block in itertools.groupby(markdown.splitlines(), _is_row):
        if is_table:
            lines += _table(list(block), width)
        else:
            for line in block:
                hang = "  " if line.startswith("- ") else ""
                lines += [line] if len(line) <= width else paragraph(line, "", hang, width)
    return "".join(f"{line}\n" for line in lines)


def cells_of(row: str) -> list[str]:
    """The cells of a row of a Markdown table."""
    return [cell.strip() for cell in row.strip().strip("|").split("|")]


def _is_row(line: str) -> bool:
    return line.startswith("|")


def _table(lines: Sequence[str], width: int) -> Iterator[str]:
    """The lines of a table: head, rule and rows, wide columns wrapped."""
    head, rule, *body = map(cells_of, lines)
    right = [cell.endswith(":") for cell in rule]
    if max(map(len, lines)) > width:
        body = [[cell.replace(" / ", "/") for cell in row] for row in body]
    sizes = _sizes(head, body, right, width - len(GAP) * (len(head) - 1))
    rows = [
        [_lines(cell, size) for cell, size in zip(row, sizes, strict=True)] for row in [head, *body]
    ]
    tall = any(len(cell) > 2 for row in rows[1:] for cell in row)
    for number, row in enumerate(rows):
        if number == 1:
            yield GAP.join("-" * size for size in sizes)
        elif tall and number > 1:
            yield ""
        for parts in itertools.zip_longest(*row, fillvalue=""):
            yield GAP.join(
                part.rjust(size) if to_right else part.ljust(size)
                for part, size, to_right in zip(parts, sizes, right, strict=True)
            ).rstrip()


def _sizes(
    head: Sequence[str], body: Sequence[Sequence[str]], right: Sequence[bool], room: int
) -> list[int]:
    """Columns of each cell: what is left over goes where most lines are saved.

    Numbers and words stay whole; where even these have no room, the widest are broken.
    """
    columns = list(zip(head, *body, strict=True))
    whole = [max(map(len, cells)) for cells in columns]
    sizes = [_unbroken(cells, to_right) for cells, to_right in zip(columns, right, strict=True)]
    while sum(sizes) > room and max(sizes) > _LEAST:
        sizes[sizes.index(max(sizes))] -= 1
    while sum(sizes) < min(room, sum(whole)):
        lines = [(whole[i] / max(sizes[i], 1), i) for i in range(len(sizes)) if sizes[i] < whole[i]]
        sizes[max(lines)[1]] += 1
    return sizes


def _unbroken(cells: Sequence[str], numbers: bool) -> int:
    """The longest word; of a column of numbers, the longest cell below the head."""
    head, *body = cells
    parts = [*head.split(), *(body if numbers else " ".join(body).split())]
    return max(map(len, parts), default=0)


def _lines(cell: str, size: int) -> list[str]:
    return textwrap.wrap(printable(cell), max(size, 1), break_on_hyphens=False) or [""]
