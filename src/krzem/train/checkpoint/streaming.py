"""Building tensors out of boxes of other tensors, a slab at a time.

Memory is bounded by a few slabs (16 MB each, or one row along the first dimension), whatever the
size of the model, of its tensors or of their files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from krzem.errors import CheckpointError
from krzem.train.checkpoint.boxes import read_box
from krzem.train.checkpoint.correspondence import Copy, Correspondence
from krzem.train.checkpoint.manifest import ITEM_BYTES, Chunk, Manifest, Shape, StoredTensor
from krzem.train.checkpoint.pieces import DTYPES, raw_bytes
from krzem.train.model.weights import initial_values

SLAB_BYTES = 16 << 20


class Source(Protocol):
    """Tensors that can be read box by box."""

    def tensors(self) -> dict[str, tuple[str, Shape]]:
        """Type and shape of every tensor."""

    def read(self, name: str, at: Shape, shape: Shape) -> Tensor:
        """The box of ``name`` that begins at ``at``, on the CPU."""


class StoredTensors:
    """Tensors of a krzem checkpoint whose names begin with ``prefix``, which is left out."""

    def __init__(self, folder: Path, manifest: Manifest, prefix: str) -> None:
        self.folder = folder
        self._stored = {
            name.removeprefix(prefix): tensor
            for name, tensor in manifest.tensors.items()
            if name.startswith(prefix)
        }

    def tensors(self) -> dict[str, tuple[str, Shape]]:
        """Type and shape of every tensor."""
        return {name: (t.dtype, t.shape) for name, t in self._stored.items()}

    def read(self, name: str, at: Shape, shape: Shape) -> Tensor:
        """A box, put together from the chunks that overlap it."""
        stored = self._stored[name]
        out = torch.empty(shape, dtype=DTYPES[stored.dtype])
        for chunk in _overlapping(stored, at, shape):
            low = tuple(max(a, o) for a, o in zip(at, chunk.offset, strict=True))
            high = tuple(
                min(a + n, o + m)
                for a, n, o, m in zip(at, shape, chunk.offset, chunk.shape, strict=True)
            )
            place = out
            for dim, (a, b) in enumerate(zip(low, high, strict=True)):
                place = place.narrow(dim, a - at[dim], b - a)
            within = tuple(a - o for a, o in zip(low, chunk.offset, strict=True))
            read_box(self.folder, chunk, stored.dtype, within, place)
        return out


def _overlapping(stored: StoredTensor, at: Shape, shape: Shape) -> Iterator[Chunk]:
    for chunk in stored.chunks:
        sides = zip(at, shape, chunk.offset, chunk.shape, strict=True)
        if all(a < o + m and o < a + n for a, n, o, m in sides):
            yield chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A copy seen in one direction: a box of the source that is a box of the target."""

    source: str
    source_at: Shape
    source_shape: Shape
    target_at: Shape
    target_shape: Shape
    transpose: bool


def importing(copy: Copy) -> Link:
    """From theirs to ours."""
    return Link(
        source=copy.theirs,
        source_at=copy.theirs_at,
        source_shape=copy.theirs_shape,
        target_at=copy.ours_at,
        target_shape=copy.shape,
        transpose=copy.transpose,
    )


def exporting(copy: Copy) -> Link:
    """From ours to theirs."""
    return Link(
        source=copy.ours,
        source_at=copy.ours_at,
        source_shape=copy.shape,
        target_at=copy.theirs_at,
        target_shape=copy.theirs_shape,
        transpose=copy.transpose,
    )


class Renamed:
    """A source under the names and shapes of a correspondence's other side."""

    def __init__(self, source: Source, correspondence: Correspondence) -> None:
        self._source = source
        self._types = {name: dtype for name, (dtype, _) in source.tensors().items()}
        self._shapes = correspondence.theirs
        self._links = {
            name: [exporting(c) for c in copies]
            for name, copies in correspondence.of_theirs().items()
        }

    def tensors(self) -> dict[str, tuple[str, Shape]]:
        """Type and shape of every tensor."""
        return {
            name: (self._types[self._links[name][0].source], shape)
            for name, shape in self._shapes.items()
        }

    def read(self, name: str, at: Shape, shape: Shape) -> Tensor:
        """The box of ``name`` that begins at ``at``."""
        links = self._links[name]
        return assemble(self._source, links, at, shape, self._types[links[0].source])


class WithZeros:
    """A source in which some tensors that it lacks are zero."""

    def __init__(self, source: Source, zeros: Mapping[str, Shape]) -> None:
        self._source = source
        found = source.tensors()
        self._zeros = {n: ("float32", s) for n, s in zeros.items() if n not in found}

    def tensors(self) -> dict[str, tuple[str, Shape]]:
        """Type and shape of every tensor."""
        return {**self._source.tensors(), **self._zeros}

    def read(self, name: str, at: Shape, shape: Shape) -> Tensor:
        """The box of ``name`` that begins at ``at``."""
        return torch.zeros(shape) if name in self._zeros else self._source.read(name, at, shape)


class Constants:
    """Numbers as tensors without dimensions."""

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = values

    def tensors(self) -> dict[str, tuple[str, Shape]]:
        """Type and shape of every tensor."""
        return dict.fromkeys(self._values, ("float32", ()))

    def read(self, name: str, at: Shape, shape: Shape) -> Tensor:
        """The number."""
        return torch.tensor(self._values[name])


class Initial:
    """Tensors of ours at the values that training begins with, by name and ``seed``."""

    def __init__(self, shapes: Mapping[str, Shape], std: float, seed: int = 0) -> None:
        self._shapes, self._std, self._seed = shapes, std, seed

    def tensors(self) -> dict[str, tuple[str, Shape]]:
        """Type and shape of every tensor."""
        return {name: ("float32", shape) for name, shape in self._shapes.items()}

    def read(self, name: str, at: Shape, shape: Shape) -> Tensor:
        """The box of ``name`` that begins at ``at``."""
        region = tuple(slice(a, a + n) for a, n in zip(at, shape, strict=True))
        return initial_values(name, torch.Size(self._shapes[name]), region, self._std, self._seed)


def check_equal(source: Source, name: str, other: str) -> None:
    """Refuse a ``source`` whose tensors ``name`` and ``other`` differ.

    Raises:
        CheckpointError: in shape, or in a number.
    """
    tensors = source.tensors()
    (dtype, shape), (_, whole) = tensors[name], tensors[other]
    rows = max(1, SLAB_BYTES // max(1, math.prod(shape[1:]) * ITEM_BYTES[dtype]))
    starts = range(0, shape[0], rows) if shape == whole else ()
    boxes = ((first, *(0 for _ in shape[1:])) for first in starts)
    cut = [(at, (min(rows, shape[0] - at[0]), *shape[1:])) for at in boxes]
    if shape != whole or any(
        not torch.equal(source.read(name, *box).float(), source.read(other, *box).float())
        for box in cut
    ):
        raise CheckpointError(
            f"{name} differs from {other}, and by the config they are one tensor; if both were "
            "trained, say so in the config (tie_word_embeddings = false), else remove the wrong one"
        )


def slabs(source: Source, shape: Shape, dtype: str, links: Sequence[Link]) -> Iterator[memoryview]:
    """The bytes of a tensor of ``shape``, row-major, in slabs along its first dimension."""
    if not shape:
        yield raw_bytes(assemble(source, links, (), (), dtype))
        return
    row_bytes = math.prod(shape[1:]) * ITEM_BYTES[dtype]
    rows = max(1, SLAB_BYTES // max(1, row_bytes))
    for first in range(0, shape[0], rows):
        count = min(rows, shape[0] - first)
        at = (first, *(0 for _ in shape[1:]))
        yield raw_bytes(assemble(source, links, at, (count, *shape[1:]), dtype))


def assemble(source: Source, links: Sequence[Link], at: Shape, shape: Shape, dtype: str) -> Tensor:
    """The box of the target that begins at ``at``, from every link that overlaps it."""
    out = torch.empty(shape, dtype=DTYPES[dtype])
    for link in links:
        part = _within(link, at, shape)
        if part is None:
            continue
        box = source.read(part.source, part.source_at, part.source_shape)
        place = out
        for dim, (start, size) in enumerate(zip(part.target_at, part.target_shape, strict=True)):
            place = place.narrow(dim, start - at[dim], size)
        place.copy_((box.mT if link.transpose else box).reshape(part.target_shape))
        if place.is_floating_point() and not bool(place.isfinite().all()):
            raise CheckpointError(_not_finite(part.source, box, dtype))
    return out


def _not_finite(name: str, box: Tensor, dtype: str) -> str:
    if bool(box.float().isfinite().all()):
        return f"{name} holds numbers too large for {dtype}; choose a wider type"
    return f"{name} holds values that are not finite numbers"


def _within(link: Link, at: Shape, shape: Shape) -> Link | None:
    """The part of ``link`` whose target lies in the box of ``shape`` at ``at``.

    Dimensions of source and target are matched from the last one backwards; those that only one
    side has are of size one.
    """
    low = tuple(max(a, b) for a, b in zip(at, link.target_at, strict=True))
    high = tuple(
        min(a + n, b + m)
        for a, n, b, m in zip(at, shape, link.target_at, link.target_shape, strict=True)
    )
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return None
    source_at, source_shape = list(link.source_at), list(link.source_shape)
    for back in range(1, min(len(source_at), len(low)) + 1):
        other = 3 - back if link.transpose and back <= 2 else back
        source_at[-back] += low[-other] - link.target_at[-other]
        source_shape[-back] = high[-other] - low[-other]
    return Link(
        source=link.source,
        source_at=tuple(source_at),
        source_shape=tuple(source_shape),
        target_at=low,
        target_shape=tuple(b - a for a, b in zip(low, high, strict=True)),
        transpose=link.transpose,
    )
