"""Markdown as a terminal shows it: tables without bars, nothing beyond 100 columns.

Rooms that also write studies make their text as Markdown once; on a terminal it passes through
here, so that a study and a terminal cannot disagree.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence

from krzem.report.text_table import GAP, WIDTH, paragraph, printable

_LEAST = 6
"""Columns that a cell keeps, however little room there is."""


def fitted(markdown: str, width: int = WIDTH) -> str:
    """``markdown`` with its tables and long lines set into ``width`` columns."""
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
