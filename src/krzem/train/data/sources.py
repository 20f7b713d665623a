"""Which files hold the text, and how each is cut into spans that can be read apart.

One pass over every file gives its SHA-256 and, for uncompressed lines, places to cut at line
ends with the number of the line that starts there: so a bad record far inside a large file is
still reported with its line.  Compressed files cannot be entered in the middle and stay whole.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from krzem.errors import DataError, shorten
from krzem.train.data._optional import optional
from krzem.train.stores import is_url, reaching

Format = Literal["text", "jsonl", "parquet", "arrow"]
Documents = Literal["file", "blank-line", "line"]

FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
COMPRESSIONS = (".gz", ".zst")
COLUMNS = ("parquet", "arrow")
"""Formats of columns: Arrow is what ``datasets`` of Hugging Face saves."""
_ROWS = 1024

_BLOCK = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file of text."""

    path: Path
    format: Format
    compression: str = ""
    """``.gz``, ``.zst`` or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A piece of one source: a byte range, for Parquet a range of row groups, for Arrow all."""

    source: Source
    start: int
    stop: int
    first_line: int
    """Number of the line (Parquet: row) the span starts with, counted from one."""
    bytes: int
    """Size on disk, for the progress bar and for balancing."""
    source_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What one pass over a source found."""

    source: Source
    bytes: int
    sha256: str
    spans: tuple[Span, ...]


def discover(paths: Iterable[Path], force: Format | None) -> tuple[list[Source], list[Path]]:
    """The sources under ``paths`` in a fixed order, and the files in folders that are skipped.

    Files named outright must have a known ending (or ``force``); folders are searched for known
    endings and the rest is returned so that it can be told.
    """
    sources: list[Source] = []
    skipped: list[Path] = []
    for path in paths:
        with reaching(path) if is_url(path) else contextlib.nullcontext():
            is_folder = path.is_dir()
        if is_folder:
            found = (p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
            files = sorted(found, key=lambda p: p.parts)
            for file in files:
                source = _source(file, force)
                skipped.append(file) if source is None else sources.append(source)
        elif path.is_file():
            sources.append(_source(path, force) or _unknown(path))
        else:
            raise DataError(f"no such file or folder: {path}")
    if not sources:
        raise DataError(
            f"no text found in {', '.join(map(str, paths)) or 'nothing'}: looked for "
            f"{', '.join(FORMATS)} (each also with {' or '.join(COMPRESSIONS)})"
        )
    return sources, skipped


def scan(source: Source, documents: Documents, part_bytes: int) -> Scan:
    """Hash ``source`` and cut it into spans of about ``part_bytes`` bytes.

    A text file that is one document (``documents="file"``) is not cut.
    """
    try:
        if source.format == "parquet":
            return _scan_parquet(source, part_bytes)
        if source.format == "arrow":
            return _scan_lines(source, None, b"\n")
        splittable = not source.compression and (source.format == "jsonl" or documents != "file")
        separator = b"\n\n" if source.format == "text" and documents == "blank-line" else b"\n"
        return _scan_lines(source, part_bytes if splittable else None, separator)
    except OSError as error:
        raise DataError(f"cannot read {source.path}: {error.strerror or error}") from error


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _source(path: Path, force: Format | None) -> Source | None:
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    inner = Path(path.stem).suffix if compression else path.suffix
    form = force or FORMATS.get(inner)
    if form is None or (form in COLUMNS and compression):
        return None
    return Source(path=path, format=form, compression=compression)


def _unknown(path: Path) -> Source:
    raise DataError(
        f"cannot tell what {path} holds from its name; endings known: {', '.join(FORMATS)} (text "
        f"and JSONL also with {' or '.join(COMPRESSIONS)}), or say it with --format"
    )


def _scan_lines(source: Source, part_bytes: int | None, separator: bytes) -> Scan:
    digest = hashlib.sha256()
    cuts = [(0, 1)]
    position, newlines = 0, 0
    for block in _blocks(source.path):
        digest.update(block)
        if part_bytes is not None and position + len(block) >= cuts[-1][0] + part_bytes:
            for at in _cuts(block, position, cuts[-1][0], part_bytes, separator):
                cuts.append((position + at, 1 + newlines + block.count(b"\n", 0, at)))
        newlines += block.count(b"\n")
        position += len(block)
    sha256 = digest.hexdigest()
    ends = [start for start, _ in cuts[1:]] + [position]
    spans = tuple(
        Span(
            source=source,
            start=start,
            stop=stop,
            first_line=line,
            bytes=stop - start,
            source_sha256=sha256,
        )
        for (start, line), stop in zip(cuts, ends, strict=True)
        if stop > start or position == 0
    )
    return Scan(source=source, bytes=position, sha256=sha256, spans=spans)


def _cuts(block: bytes, base: int, last: int, part_bytes: int, separator: bytes) -> Iterator[int]:
    """Offsets in ``block`` just after a separator, each a part or more after the cut before it."""
    while True:
        wanted = max(0, last + part_bytes - base)
        found = block.find(separator, wanted)
        if found < 0:
            return
        at = found + len(separator)
        last = base + at
        yield at


def _scan_parquet(source: Source, part_bytes: int) -> Scan:
    digest = hashlib.sha256()
    size = 0
    for block in _blocks(source.path):
        digest.update(block)
        size += len(block)
    sha256 = digest.hexdigest()
    meta = open_parquet(source.path).metadata
    spans, start, row, held, rows = [], 0, 1, 0, 0
    for group in range(meta.num_row_groups):
        held += meta.row_group(group).total_byte_size
        rows += meta.row_group(group).num_rows
        if held >= part_bytes or group == meta.num_row_groups - 1:
            spans.append(
                Span(
                    source=source,
                    start=start,
                    stop=group + 1,
                    first_line=row,
                    bytes=held,
                    source_sha256=sha256,
                )
            )
            start, row, held, rows = group + 1, row + rows, 0, 0
    return Scan(source=source, bytes=size, sha256=sha256, spans=tuple(spans))


def open_parquet(path: Path) -> Any:
    """The Parquet file at ``path``; raises DataError where it is none or pyarrow is missing."""
    parquet = optional("pyarrow.parquet", path, "krzem[data]")
    try:
        return parquet.ParquetFile(path.open("rb") if is_url(path) else path)
    except Exception as error:  # pyarrow's errors do not share a base with the file errors
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error


def column_values(span: Span, field: str) -> Iterator[Any]:
    """The values of a column in the rows of ``span``, as Python has them.

    Raises:
        LookupError: there is no such column; with the columns.
        DataError: the file breaks off, or is none of its kind.
    """
    row, path = span.first_line, span.source.path
    try:
        for batch in _batches(span, field):
            for value in batch.column(0).to_pylist():
                yield value
                row += 1
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these two
        raise DataError(
            f"{path} cannot be read from row {row:,} on ({shorten(str(error))}): a file that is "
            "not whole is not built from; fetch it again"
        ) from error


def _batches(span: Span, field: str) -> Iterator[Any]:
    path = span.source.path
    if span.source.format == "parquet":
        file = open_parquet(path)
        _need_column(field, file.schema_arrow.names)
        groups = list(range(span.start, span.stop))
        yield from file.iter_batches(_ROWS, row_groups=groups, columns=[field])
        return
    arrow = optional("pyarrow", path, "krzem[data]")
    with path.open("rb") as file:
        whole = file.read(6) == b"ARROW1"
    with (
        arrow.PythonFile(path.open("rb"), mode="r") if is_url(path)
        else arrow.memory_map(str(path))
    ) as held:  # fmt: skip
        reader = (arrow.ipc.open_file if whole else arrow.ipc.open_stream)(held)
        _need_column(field, reader.schema.names)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if whole else reader
        yield from (batch.select([field]) for batch in batches)


def _need_column(field: str, names: list[str]) -> None:
    if field not in names:
        raise LookupError(f"no column {field!r}; columns: {', '.join(names)}")


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block
