"""Reading a box out of a stored chunk: only the bytes it needs, a bounded amount at a time."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor

from krzem.train.checkpoint.manifest import ITEM_BYTES, Chunk, Shape
from krzem.train.checkpoint.pieces import DTYPES
from krzem.train.checkpoint.tensor_file import pread_exactly

BLOCK_BYTES = 16 << 20
"""Memory used for one read."""

_SEPARATE_READS = 16 << 10
"""Rows of a box shorter than this many bytes are read together with the gaps between them."""


def read_box(folder: Path, chunk: Chunk, dtype: str, offset: Shape, out: Tensor) -> None:
    """Fill ``out`` with the box of ``chunk`` that begins at ``offset`` (within the chunk).

    ``out`` has the box's shape and may be any view on any device; another type is converted.
    """
    path = folder / chunk.file
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _read(_Place(path, descriptor, chunk.start, dtype), chunk.shape, offset, out)
    finally:
        os.close(descriptor)


class _Place:
    """Where a row-major array lies in an open file."""

    def __init__(self, path: Path, descriptor: int, start: int, dtype: str) -> None:
        self.path = path
        self.descriptor = descriptor
        self.start = start
        self.dtype = dtype

    def run(self, element: int, shape: Shape) -> Tensor:
        """``shape`` consecutive elements from number ``element`` on."""
        size = ITEM_BYTES[self.dtype]
        buffer = torch.empty(math.prod(shape) * size, dtype=torch.uint8)
        start = self.start + element * size
        raw = memoryview(buffer.numpy())  # type: ignore[arg-type]
        pread_exactly(self.descriptor, raw, start, self.path)
        return buffer.view(DTYPES[self.dtype]).view(shape)


def _read(place: _Place, shape: Shape, offset: Shape, out: Tensor) -> None:
    if not out.numel():
        return
    if out.dim() == 0:
        out.copy_(place.run(0, ()))
        return
    _rows(place, 0, shape, offset, out)


def _rows(place: _Place, base: int, shape: Shape, offset: Shape, out: Tensor) -> None:
    """Read the box in slabs along its first dimension; go inwards where slabs would be wasteful.

    ``base`` is the element where the array of ``shape`` begins.
    """
    size = ITEM_BYTES[place.dtype]
    row, row_bytes = math.prod(shape[1:]), math.prod(shape[1:]) * size
    whole_rows = tuple(out.shape[1:]) == shape[1:]
    wanted_bytes = math.prod(out.shape[1:]) * size
    if len(shape) > 1 and not whole_rows and wanted_bytes >= _SEPARATE_READS:
        for n in range(out.shape[0]):
            inner = base + (offset[0] + n) * row
            _rows(place, inner, shape[1:], offset[1:], out[n])
        return
    slab = max(1, BLOCK_BYTES // max(row_bytes, 1))
    for first in range(0, out.shape[0], slab):
        count = min(slab, out.shape[0] - first)
        rows = place.run(base + (offset[0] + first) * row, (count, *shape[1:]))
        for dim in range(1, len(shape)):
            rows = rows.narrow(dim, offset[dim], out.shape[dim])
        out.narrow(0, first, count).copy_(rows)
