"""The safetensors format: a JSON header with the place of each tensor, then raw bytes.

Files are mapped into memory, so that ranks write their parts of a tensor where they belong and
read no more than they need.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krzem.errors import DataError

_CODES: dict[torch.dtype, tuple[str, np.dtype[Any]]] = {
    torch.float32: ("F32", np.dtype("<f4")),
    torch.bfloat16: ("BF16", np.dtype("<u2")),
    torch.float16: ("F16", np.dtype("<f2")),
    torch.float8_e4m3fn: ("F8_E4M3", np.dtype("u1")),
    torch.int64: ("I64", np.dtype("<i8")),
}
_TYPES = {code: (dtype, raw) for dtype, (code, raw) in _CODES.items()}
_LONGEST_HEADER = 2**28


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlace:
    """A tensor in a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""

    def _map(self, mode: str) -> np.ndarray:
        raw = _CODES[self.dtype][1]
        return np.memmap(self.file, dtype=raw, mode=mode, offset=self.offset, shape=self.shape)  # type: ignore[call-overload,no-any-return]

    def read(self, region: tuple[slice, ...]) -> Tensor:
        """The elements of ``region``, copied into memory."""
        part = np.array(self._map("r")[region])
        return torch.from_numpy(part).view(self.dtype)

    def write(self, region: tuple[slice, ...], part: Tensor) -> None:
        """Put ``part`` (converted to the file's type) at ``region``."""
        values = part.detach().to(self.dtype).cpu().contiguous()
        if self.dtype is torch.bfloat16:
            values = values.view(torch.uint16)
        self._map("r+")[region] = values.numpy()


def header(places: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> tuple[bytes, int]:
    """The header of a file with these tensors in this order, and the bytes of the whole file."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, (dtype, shape) in places.items():
        stop = start + math.prod(shape) * _CODES[dtype][1].itemsize
        table[name] = {"dtype": _CODES[dtype][0], "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, 8 + len(text) + start


def tensor_places(file: Path) -> dict[str, TensorPlace]:
    """Where the tensors of ``file`` lie.

    Raises:
        DataError: no safetensors file, cut short, or of types that are not read.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(size, _LONGEST_HEADER):
                raise DataError(
                    f"{file}: the header claims {length:,} bytes of a {size:,}-byte file"
                )
            table = json.loads(stream.read(length))
        return {n: _place(file, t, 8 + length, size) for n, t in table.items() if n[0] != "_"}
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise DataError(f"{file} cannot be read as a safetensors file: {error}") from error


def _place(file: Path, entry: dict[str, object], start: int, size: int) -> TensorPlace:
    code = str(entry["dtype"])
    if code not in _TYPES:
        raise DataError(f"{file}: type {code} is not read; supported: {', '.join(_TYPES)}")
    dtype, raw = _TYPES[code]
    first, stop = (int(v) for v in entry["data_offsets"])  # type: ignore[attr-defined]
    shape = tuple(int(v) for v in entry["shape"])  # type: ignore[attr-defined]
    if stop - first != math.prod(shape) * raw.itemsize or start + stop > size:
        raise DataError(f"{file} is cut short or damaged: {stop - first:,} bytes for {shape}")
    return TensorPlace(file=file, dtype=dtype, shape=shape, offset=start + first)
