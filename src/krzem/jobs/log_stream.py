"""Lines of interest out of files of any size: plain or gzip, one pass, little memory."""

from __future__ import annotations

import codecs
import errno
import os
import stat
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from krzem.errors import DataError, shorten

CHUNK = 1 << 21
LONGEST_LINE = 1 << 17
"""Bytes; a longer line is cut."""
_GZIP = b"\x1f\x8b"
_WIDE = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
Hit = tuple[int, bytes, bool, frozenset[bytes]]
"""Number of the line, its bytes, whether it ends, and the needles in it."""


class Stream:
    """One file: iterate over the lines that hold one of ``needles``.

    ``needles`` may be taken out while the file is read.  ``lines``, ``binary`` and ``cut`` (a
    compressed file that ends early) tell of the file when it has been read.
    """

    def __init__(self, path: Path, needles: Collection[bytes]) -> None:
        self.path = path
        self.needles = set(needles)
        self.lines = 0
        self.bytes = 0
        self.binary = False
        self.cut = False

    def __iter__(self) -> Iterator[Hit]:
        tail = b""
        for chunk in self._chunks():
            if not chunk.strip(b"\0"):
                continue  # a hole that a rotated log leaves
            block = tail + chunk
            end = max(block.rfind(b"\n"), block.rfind(b"\r"))
            if end < 0 and len(block) <= LONGEST_LINE:
                tail = block
                continue
            end = len(block) if end < 0 else end + 1
            yield from self._hits(block[:end], whole=True)
            tail = block[end:]
        if tail:
            yield from self._hits(tail, whole=False)
            self.lines += 1

    def _hits(self, block: bytes, *, whole: bool) -> Iterator[Hit]:
        """The lines of ``block`` with a needle, in order; carriage returns end a line too."""
        flat = block.replace(b"\r", b"\n") if b"\r" in block else block
        found: dict[int, tuple[int, set[bytes]]] = {}
        for needle in self.needles:
            at = flat.find(needle)
            while at >= 0:
                start = flat.rfind(b"\n", 0, at) + 1
                stop = flat.find(b"\n", at)
                stop = len(flat) if stop < 0 else stop
                found.setdefault(start, (stop, set()))[1].add(needle)
                at = flat.find(needle, stop)
        place, line = 0, self.lines
        for start in sorted(found):
            stop, needles = found[start]
            line += block.count(b"\n", place, start)
            place = start
            yield line + 1, flat[start : min(stop, start + LONGEST_LINE)], whole, frozenset(needles)
        self.lines += block.count(b"\n")

    def _chunks(self) -> Iterator[bytes]:
        """The bytes of the file, decompressed, as UTF-8 where a mark says that they are wider."""
        name = shorten(str(self.path), 120)
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise DataError(f"{name} is not a file: give the log of a training job")
            with self.path.open("rb", buffering=0) as raw:
                yield from self._decoded(raw)
        except FileNotFoundError:
            raise DataError(f"{name} does not exist: give the log of a training job") from None
        except OSError as error:
            raise DataError(f"{name} cannot be read ({error.strerror})") from None
        except ValueError:
            raise DataError(f"{name!r} is not the name of a file") from None

    def _decoded(self, raw: BinaryIO) -> Iterator[bytes]:
        magic = raw.read(2)
        raw.seek(0)
        stream = self._unpacked(raw) if magic == _GZIP else _without_holes(raw)
        decoder: codecs.IncrementalDecoder | None = None
        first = True
        for chunk in stream:
            if first:
                wide = _WIDE.get(chunk[:2])
                decoder = codecs.getincrementaldecoder(wide)("replace") if wide else None
                self.binary = decoder is None and _binary(chunk)
                first = False
            self.bytes += len(chunk)
            yield chunk if decoder is None else decoder.decode(chunk).encode()

    def _unpacked(self, raw: BinaryIO) -> Iterator[bytes]:
        """The bytes of gzip members, as far as they go."""
        unpack = zlib.decompressobj(31)
        packed, begun = b"", False
        while packed := packed or raw.read(CHUNK >> 4):
            try:
                chunk = unpack.decompress(packed, CHUNK)
            except zlib.error:
                self.cut = True
                return
            if chunk:
                yield chunk
            packed = unpack.unconsumed_tail
            if unpack.eof:
                packed = unpack.unused_data.lstrip(b"\0")
                unpack = zlib.decompressobj(31)
                begun = bool(packed)
            else:
                begun = True
        self.cut = begun


def _without_holes(raw: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file; a hole that was never written, however long, is one zero."""
    while True:
        at = raw.tell()
        try:
            data = os.lseek(raw.fileno(), at, os.SEEK_DATA)
        except OSError as error:
            data = at if error.errno != errno.ENXIO else -1
        if data < 0 or data > at:
            if data < 0 and raw.seek(0, os.SEEK_END) <= at:
                return
            yield b"\0"
        if data < 0:
            return
        raw.seek(data)
        chunk = raw.read(CHUNK)
        if not chunk:
            return
        yield chunk


def _binary(head: bytes) -> bool:
    """Whether more than a tenth of the first bytes are ones that no text has."""
    part = head[:65536]
    odd = sum(part.count(bytes([c])) for c in range(32) if c not in (7, 8, 9, 10, 12, 13, 27))
    return odd > len(part) * 0.1
