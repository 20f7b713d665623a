"""Plain-text tables and paragraphs of at most 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

WIDTH = 100
GAP = "  "


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], align: str, width: int = WIDTH
) -> list[str]:
    """Lines of a table; ``align`` has a letter per column.

    ``l`` left, ``r`` right, ``w`` left and wrapped into what the other columns leave (one column
    at most).
    """
    cells = [list(map(printable, row)) for row in (head, *rows)]
    sizes = [max(len(row[i]) for row in cells) for i in range(len(align))]
    if "w" in align:
        flexible = align.index("w")
        others = sum(sizes) - sizes[flexible] + len(GAP) * (len(align) - 1)
        sizes[flexible] = max(min(sizes[flexible], width - others), 8)
    lines = [line for row in cells for line in _row(row, sizes, align)]
    return [line[:width].rstrip() for line in lines]


def _row(row: Sequence[str], sizes: Sequence[int], align: str) -> Iterator[str]:
    """The lines of one row: more than one where a cell wraps."""
    parts = [
        _wrapped(cell, size) if kind == "w" else [cell]
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


def paragraph(text: str, first: str = "", rest: str | None = None, width: int = WIDTH) -> list[str]:
    """``text`` filled to ``width``; ``first`` stands before its first line, ``rest`` elsewhere."""
    indent = " " * len(first) if rest is None else rest
    return [
        line
        for i, part in enumerate(text.splitlines() or [""])
        for line in textwrap.wrap(
            printable(part),
            width,
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
