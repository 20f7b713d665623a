"""The documents inside a span of a source, and what could not be read as one.

Nothing is dropped in silence: every record that gives no document, or whose bytes had to be
repaired, comes out as a :class:`BadRecord` with its file, line and reason.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from krzem.errors import DataError, shorten
from krzem.train.data._optional import optional
from krzem.train.data.sources import COLUMNS, Documents, Source, Span, column_values
from krzem.train.data.tokenizer import messages_text
from krzem.train.durable import lfs_pointer

_PIECE_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some text of a document; large text files come in several pieces."""

    text: str
    last: bool
    """Whether the document ends here."""
    identity: str
    """What the document is told apart by: its text, or for a whole file the file's hash."""
    place: tuple[str, int] = ("", 0)
    """File and line of a conversation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """A record that could not be used as it stands."""

    file: str
    line: int
    """Line (Parquet: row), counted from one."""
    reason: str


Record = Piece | BadRecord


def read_span(
    span: Span, *, field: str, documents: Documents, chat: bool = False
) -> Iterator[Record]:
    """Documents and bad records of ``span``, in order.

    ``field`` names the text in JSONL objects and Parquet columns; ``documents`` says what one
    document is in plain text.  With ``chat`` the field holds messages with roles.
    """
    if chat:
        return _chats(span, field)
    if span.source.format in COLUMNS:
        return _columns(span, field)
    if span.source.format == "jsonl":
        return _jsonl(span, field)
    if documents == "file":
        return _whole_text(span)
    return _text_documents(span, by_line=documents == "line")


_MAGICS = {
    b"\x1f\x8b": "gzip (.gz)",
    b"\x28\xb5\x2f\xfd": "Zstandard (.zst)",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "a ZIP archive",
    b"PAR1": "Parquet (.parquet)",
    b"%PDF": "a PDF",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
"""How files of other kinds begin."""
_OWN_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
_HEAD_BYTES = 1 << 16


def check_kind(source: Source, field: str, *, stated: bool) -> None:
    """Ask where what ``source`` holds contradicts its name; ``stated``: the user said what it is.

    Raises:
        DataError: it begins as a file of another kind does, or its text looks like records (or
            the other way round) and nobody said which it is.
    """
    if source.format in COLUMNS or not source.path.stat().st_size:
        return
    pointer = lfs_pointer(source.path)
    if pointer:
        raise DataError(pointer)
    with source.path.open("rb") as file:
        _check_magic(source, file.read(8), source.compression)
    if source.compression:
        _check_magic(source, _head(source)[:8], "")
    if not stated:
        _check_shape(source, field, _head(source))


def _check_magic(source: Source, head: bytes, compression: str) -> None:
    found = next((kind for magic, kind in _MAGICS.items() if head.startswith(magic)), None)
    own = _OWN_MAGIC.get(compression)
    if own is not None and head.startswith(own):
        return
    if own is not None:
        holds = found or "nothing compressed"
        raise DataError(f"{source.path} is named {compression} and holds {holds}: rename it")
    if found is not None:
        raise DataError(
            f"{source.path} is named as {source.format} and holds {found}: rename it, or turn it "
            "into UTF-8 text or JSON lines first"
        )


def _check_shape(source: Source, field: str, head: bytes) -> None:
    lines = [x for x in head.splitlines()[:4] if x.strip()][:3]
    records = [_record(line) for line in lines]
    if source.format == "text" and len(lines) > 1 and all(field in r for r in records[:2]):
        raise DataError(
            f"{source.path} is named as text and holds JSON lines with {field!r}: say --format "
            "jsonl to read them as records, or --format text to train on the JSON itself"
        )
    if source.format == "jsonl" and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        raise DataError(
            f"{source.path} is named as JSON lines and holds one JSON list: write one object a "
            f"line, as `jq -c '.[]' {source.path} > lines.jsonl` does"
        )


def _record(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _head(source: Source) -> bytes:
    """The first text of a file, unpacked; what breaks off is told when it is read."""
    span = Span(source=source, start=0, stop=0, first_line=1, bytes=0, source_sha256="")
    with contextlib.suppress(*_broken()), _open(span) as file:
        return file.read(_HEAD_BYTES)
    return b""


def _bad(span: Span, line: int, reason: str) -> BadRecord:
    return BadRecord(file=str(span.source.path), line=line, reason=reason)


def _whole(text: str) -> Piece:
    return Piece(text=text, last=True, identity=text)


def _jsonl(span: Span, field: str) -> Iterator[Record]:
    for number, line in _lines(span):
        if not line.isspace():
            text = _json_text(line, field)
            yield _whole(text.value) if text.value else _bad(span, number, text.reason)


def _chats(span: Span, field: str) -> Iterator[Record]:
    for number, record in _objects(span, field):
        try:
            text = messages_text(record, field)
        except ValueError as error:
            yield _bad(span, number, str(error))
            continue
        yield Piece(text=text, last=True, identity=text, place=(str(span.source.path), number))


def _objects(span: Span, field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records with the line (or row) that each is in."""
    if span.source.format == "text":
        raise DataError(
            f"{span.source.path} is text; conversations are read from JSON lines and columns with "
            f"{field!r}"
        )
    if span.source.format == "jsonl":
        lines = ((n, line) for n, line in _lines(span) if not line.isspace())
        yield from ((n, _record(line)) for n, line in lines)
        return
    try:
        for row, value in enumerate(column_values(span, field), start=span.first_line):
            yield row, {field: value}
    except LookupError:
        yield span.first_line, {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    value: str = ""
    reason: str = ""


def _json_text(line: bytes, field: str) -> _Text:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        return _Text(reason=f"not UTF-8: byte {error.object[error.start]:#04x}")
    except (ValueError, RecursionError) as error:
        return _Text(reason=f"not JSON: {shorten(str(error))}")
    if not isinstance(record, dict):
        return _Text(reason=f"a JSON {type(record).__name__}, not an object")
    if field not in record:
        return _Text(reason=f"no field {field!r}; fields: {shorten(', '.join(record) or 'none')}")
    return _usable(record[field], field)


def _usable(value: Any, field: str) -> _Text:
    if not isinstance(value, str):
        return _Text(reason=f"field {field!r} holds a {type(value).__name__}, not text")
    if not value:
        return _Text(reason=f"field {field!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        return _Text(reason=f"field {field!r} holds half a surrogate pair")
    return _Text(value=value)


def _columns(span: Span, field: str) -> Iterator[Record]:
    try:
        for row, value in enumerate(column_values(span, field), start=span.first_line):
            text = _usable(value, field)
            yield _whole(text.value) if text.value else _bad(span, row, text.reason)
    except LookupError as error:
        yield _bad(span, span.first_line, str(error.args[0]))


def _whole_text(span: Span) -> Iterator[Record]:
    """A file as one document, in pieces of whole lines so that any size fits in memory."""
    held: str | None = None
    identity = span.source_sha256
    gathered: list[bytes] = []
    size, first = 0, span.first_line
    for number, line in _lines(span):
        gathered.append(line)
        size += len(line)
        if size >= _PIECE_BYTES:
            if held is not None:
                yield Piece(text=held, last=False, identity=identity)
            held, faults = _decode(span, b"".join(gathered), first)
            yield from faults
            gathered, size, first = [], 0, number + 1
    rest, faults = _decode(span, b"".join(gathered), first)
    yield from faults
    if held is not None and rest:
        yield Piece(text=held, last=False, identity=identity)
    text = rest or held
    if text:
        yield Piece(text=text, last=True, identity=identity)
    else:
        yield _bad(span, span.first_line, "an empty file")


def _text_documents(span: Span, *, by_line: bool) -> Iterator[Record]:
    gathered: list[bytes] = []
    first = span.first_line
    for number, line in _lines(span):
        blank = line.isspace()
        if not blank:
            first = first if gathered else number
            gathered.append(line)
        if gathered and (by_line or blank):
            yield from _document(span, gathered, first)
            gathered = []
    if gathered:
        yield from _document(span, gathered, first)


def _document(span: Span, lines: list[bytes], first: int) -> Iterator[Record]:
    text, faults = _decode(span, b"".join(lines), first)
    yield from faults
    yield _whole(text.rstrip("\r\n"))


def _decode(span: Span, raw: bytes, first_line: int) -> tuple[str, list[BadRecord]]:
    """``raw`` as text; bytes that are not UTF-8 are replaced and the first of them reported."""
    try:
        return raw.decode(), []
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        text = raw.decode(errors="replace")
        reason = (
            f"not UTF-8: byte {raw[error.start]:#04x}; replaced by U+FFFD, here and further on "
            f"({text.count(chr(0xFFFD))} in this piece)"
        )
        return text, [_bad(span, line, reason)]


def _lines(span: Span) -> Iterator[tuple[int, bytes]]:
    """Lines of a span with their numbers; DataError where the file breaks off midway."""
    number, position = span.first_line, span.start
    limit = None if span.source.compression else span.stop
    try:
        with _open(span) as file:
            for line in file:
                yield number, line if position else line.removeprefix(_BYTE_ORDER_MARK)
                number += 1
                position += len(line)
                if limit is not None and position >= limit:
                    return
    except _broken() as error:
        raise DataError(_breaks_off(span.source, number, error)) from error


def _breaks_off(source: Source, line: int, error: BaseException) -> str:
    tool = {".gz": "zcat", ".zst": "zstdcat"}.get(source.compression, "cat")
    return (
        f"{source.path} breaks off at line {line:,} ({shorten(str(error))}): a file that is not "
        "whole is not built from, since nobody knows how much is missing. Fetch it again, or keep "
        f"what can be read: {tool} {source.path} | head -n {line - 1} > part, and build from that"
    )


@contextlib.contextmanager
def _open(span: Span) -> Iterator[IO[bytes]]:
    path = span.source.path
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        if span.source.compression == ".gz":
            yield cast("IO[bytes]", stack.enter_context(gzip.open(file, "rb")))
            return
        if span.source.compression == ".zst":
            yield io.BufferedReader(_Zstandard(file, _zstandard(path)), _PIECE_BYTES)
        else:
            file.seek(span.start)
            yield file


class _Zstandard(io.RawIOBase):
    """Decompressed bytes of a .zst file.

    The library's own stream reader takes a file that was cut short for one that ended; this one
    raises EOFError, because text must not go missing unnoticed.
    """

    def __init__(self, file: IO[bytes], library: Any) -> None:
        self._file = file
        self._library = library
        self._frame = library.ZstdDecompressor().decompressobj()
        self._held = memoryview(b"")

    def readable(self) -> bool:
        """Always true; asked by the buffer around this reader."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` and return how many bytes were written; 0 at the end."""
        while not self._held:
            raw = self._file.read(_PIECE_BYTES)
            if not raw:
                return self._ended()
            self._held = memoryview(self._decompress(raw))
        size = min(len(buffer), len(self._held))
        buffer[:size] = self._held[:size]
        self._held = self._held[size:]
        return size

    def _decompress(self, raw: bytes) -> bytes:
        """``raw`` decompressed; a file may be several frames one after the other."""
        parts = []
        while raw:
            if self._frame.eof:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            parts.append(self._frame.decompress(raw))
            raw = self._frame.unused_data if self._frame.eof else b""
        return b"".join(parts)

    def _ended(self) -> int:
        if not self._frame.eof:
            raise EOFError("the compressed data ends before its end mark")
        return 0


def _zstandard(path: Path) -> Any:
    return optional("zstandard", path, "krzem[data]")


def _broken() -> tuple[type[BaseException], ...]:
    """The errors that mean "the bytes of this file are damaged", for every compression at hand."""
    errors: tuple[type[BaseException], ...] = (OSError, EOFError, zlib.error)
    with contextlib.suppress(ImportError):
        errors += (importlib.import_module("zstandard").ZstdError,)
    return errors
