"""The safetensors file format: a JSON header, then raw row-major bytes.

The ``safetensors`` library writes a file from tensors that are all in memory; a checkpoint is
streamed tensor by tensor and hashed on the way, so the writing is done here.  Reading takes single
boxes of a tensor with ``pread``, which touches no other bytes and, unlike a memory map, reports a
failing disk as an error instead of killing the process.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from krzem.errors import CheckpointError
from krzem.train.checkpoint.manifest import ITEM_BYTES, Shape, StoredFile
from krzem.train.durable import lfs_pointer, storing

CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
NAMES = {code: name for name, code in CODES.items()}

_BLOCK = 8 << 20
_MAX_HEADER = 100_000_000
"""The format's own limit, so that a damaged length cannot ask for all memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of a file; ``start`` and ``stop`` count from the start of the file."""

    dtype: str
    shape: Shape
    start: int = 0
    stop: int = 0

    @property
    def bytes(self) -> int:
        """Size of the tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors of a safetensors file and its metadata; CheckpointError where it is damaged."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    lfs_pointer(path) or f"{path} is not a safetensors file, or it was cut short"
                )
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        entries = {name: _entry(value, 8 + length) for name, value in header.items()}
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has a damaged safetensors header: {error}") from error
    _check_places(path, entries, 8 + length, size)
    return entries, metadata


def _check_places(path: Path, entries: dict[str, Entry], first: int, size: int) -> None:
    """Tensors lie one behind the other and fill the file, as the format demands."""
    at = first
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.stop > size or entry.stop - entry.start != entry.bytes:
            raise CheckpointError(
                f"{path} was cut short or altered: {name} needs bytes {entry.start:,} to "
                f"{entry.stop:,} of {size:,}"
            )
        if entry.start != at:
            raise CheckpointError(
                f"{path} is no whole safetensors file: {name} begins at byte {entry.start:,}, and "
                f"what lies before it ends at {at:,}"
            )
        at = entry.stop
    if at != size:
        raise CheckpointError(
            f"{path} is no whole safetensors file: its tensors end at byte {at:,} of {size:,}"
        )


def _entry(value: dict[str, Any], base: int) -> Entry:
    code, shape, (start, stop) = value["dtype"], value["shape"], value["data_offsets"]
    if code not in NAMES:
        raise ValueError(f"type {code} is not supported")
    if start < 0:
        raise ValueError(f"data begin {-start} bytes before the data part")
    return Entry(
        dtype=NAMES[str(code)],
        shape=tuple(int(n) for n in shape),
        start=base + int(start),
        stop=base + int(stop),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Where a tensor's bytes went."""

    start: int
    stop: int
    crc32: int


class TensorFileWriter:
    """Writes the tensors announced in ``entries``, in that order, hashing as it goes.

    Used as a context; leaving it without :meth:`finish` removes the file.
    """

    def __init__(
        self,
        path: Path,
        entries: Sequence[tuple[str, Entry]],
        metadata: dict[str, str] | None = None,
    ) -> None:
        self._path = path
        self._entries = list(entries)
        self._metadata = metadata
        self._digest = hashlib.sha256()
        self._at = 0
        self._next = 0
        self._finished = False

    def __enter__(self) -> TensorFileWriter:
        with storing(self._path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o644)
        header = _header(self._entries, self._metadata)
        self._put(memoryview(len(header).to_bytes(8, "little") + header))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)
        if not self._finished:
            self._path.unlink(missing_ok=True)

    def write(self, raw: memoryview) -> Written:
        """Append the bytes of the next announced tensor."""
        name, entry = self._entries[self._next]
        if raw.nbytes != entry.bytes:
            raise AssertionError(f"{name}: {raw.nbytes} bytes for {entry}")
        self._next += 1
        start = self._at
        crc = self._put(raw)
        return Written(start=start, stop=self._at, crc32=crc)

    def write_blocks(self, blocks: Iterator[memoryview]) -> Written:
        """The same, from pieces that together are the next tensor."""
        name, entry = self._entries[self._next]
        self._next += 1
        start, crc = self._at, 0
        for block in blocks:
            crc = self._put(block, crc)
        if self._at - start != entry.bytes:
            raise AssertionError(f"{name}: {self._at - start} bytes for {entry}")
        return Written(start=start, stop=self._at, crc32=crc)

    def finish(self) -> StoredFile:
        """Force the file to the disk and describe it."""
        if self._next != len(self._entries):
            raise AssertionError(f"{self._path}: not all announced tensors were written")
        with storing(self._path):
            os.fsync(self._descriptor)
        self._finished = True
        return StoredFile(bytes=self._at, sha256=self._digest.hexdigest())

    def _put(self, raw: memoryview, crc: int = 0) -> int:
        raw = raw.cast("B") if raw.nbytes else memoryview(b"")
        with storing(self._path):
            for at in range(0, raw.nbytes, _BLOCK):
                block = raw[at : at + _BLOCK]
                self._digest.update(block)
                crc = zlib.crc32(block, crc)
                while block.nbytes:
                    block = block[os.write(self._descriptor, block) :]
        self._at += raw.nbytes
        return crc


def _header(entries: Sequence[tuple[str, Entry]], metadata: dict[str, str] | None) -> bytes:
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, entry in entries:
        offsets = [at, at + entry.bytes]
        header[name] = {
            "dtype": CODES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": offsets,
        }
        at += entry.bytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return raw + b" " * (-len(raw) % 8)


def pread_exactly(descriptor: int, buffer: memoryview, start: int, path: Path) -> None:
    """Fill ``buffer`` from ``start`` on; CheckpointError where the file ends or fails."""
    done = 0
    try:
        while done < buffer.nbytes:
            got = os.preadv(descriptor, [buffer[done : done + (1 << 30)]], start + done)
            if not got:
                raise CheckpointError(f"{path} was cut short: it ends at byte {start + done:,}")
            done += got
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
