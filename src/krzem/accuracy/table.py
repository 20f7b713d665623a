"""Reading somebody's table of runs: any CSV with these columns, in any order, however broken."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from krzem.errors import DataError, shorten

LIMIT_BYTES = 200_000_000
NEEDED = ("accelerator_id", "layers", "hidden", "seq_len", "devices")
"""Columns of which at least one must be there for a file to be a table of runs."""


def read_rows(path: str | os.PathLike[str]) -> Iterator[dict[str, str]]:
    """Rows one by one; a row that is no CSV comes as ``{"unreadable": reason}``.

    Lines that start with ``#`` before the header are a table's manual and are passed over.

    Raises:
        DataError: no such file, too large, or not a table of runs.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
    except (OSError, ValueError) as error:
        raise DataError(f"{shorten(str(path))}: no such file, or it cannot be opened") from error
    if not file.is_file():
        raise DataError(f"{shorten(str(path))}: a folder or device, and not a CSV file")
    if size > LIMIT_BYTES:
        raise DataError(
            f"{shorten(str(path))}: {size / 1e6:,.0f} MB are more than the {LIMIT_BYTES // 10**6}"
            " MB that are read; split the file"
        )
    return _stream(file)


def _stream(file: Path) -> Iterator[dict[str, str]]:
    with file.open(encoding=_encoding(file), errors="replace", newline="") as lines:
        reader = csv.reader((line.replace("\0", "") for line in lines), delimiter=_delimiter(file))
        header = _header(reader, file)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error:
                yield {"unreadable": "row cannot be read as CSV"}
                continue
            if any(cell.strip() for cell in cells):
                yield dict(zip(header, cells, strict=False))


def _encoding(file: Path) -> str:
    """UTF-8, or UTF-16 where the file begins with its mark (what spreadsheets call Unicode)."""
    with file.open("rb") as start:
        return "utf-16" if start.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _delimiter(file: Path) -> str:
    """What separates the columns of the header: commas, or semicolons or tabs."""
    with file.open(encoding=_encoding(file), errors="replace", newline="") as lines:
        first = next((line for line in lines if not line.startswith("#")), "")[:100_000]
    return max(",;\t", key=lambda mark: (first.count(mark), mark == ","))


def _header(reader: Iterator[list[str]], file: Path) -> list[str]:
    try:
        cells = next(reader, [])
        while cells and cells[0].startswith("#"):
            cells = next(reader, [])
    except csv.Error as error:
        raise DataError(f"{file.name}: not a CSV file ({error})") from error
    header = [cell.strip().lower().replace(" ", "_") for cell in cells]
    if not set(header) & set(NEEDED):
        raise DataError(
            f"{file.name}: not a table of runs; its first line names none of the columns"
            f" {', '.join(NEEDED)} (docs/accuracy.md lists all)"
        )
    return header
