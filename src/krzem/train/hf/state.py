"""Everything a model's file holds, part by part, as this rank sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from krzem.train.checkpoint.names import DiskTensor, disk_tensors
from krzem.train.engine import Engine
from krzem.train.model.initial import Region


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of one tensor on disk that this rank holds."""

    tensor: DiskTensor
    shape: tuple[int, ...]
    """Of the whole tensor on disk."""
    region: Region
    """The part of it."""
    values: Tensor
    """Sharing memory with the model."""
    writes: bool
    """Whether it is this rank that writes the part (others may hold copies)."""
    trained: bool
    """False for balancing biases and hash tables, which keep their type on disk."""
    optional: bool
    """MTP modules are often dropped, and not every tool saves balancing biases."""


def pieces(engine: Engine) -> Iterator[Piece]:
    """All parts that this rank holds."""
    for held in engine.held:
        place = held.placement
        yield from _pieces(
            engine, held.name, held.part, place.region, tuple(place.shape),
            writes=held.primary and place.first_copy, trained=True,
        )  # fmt: skip
    first = engine.meshes is None or engine.meshes.holders.rank == 0
    for name, router in engine.routers().items():
        for key, buffer in router.named_buffers():
            if key != "load":
                whole = tuple(slice(0, n) for n in buffer.shape)
                yield from _pieces(
                    engine, f"{name}.{key}", buffer, whole, tuple(buffer.shape),
                    writes=first, trained=False,
                )  # fmt: skip


def _pieces(
    engine: Engine,
    name: str,
    part: Tensor,
    region: Region,
    shape: tuple[int, ...],
    *,
    writes: bool,
    trained: bool,
) -> Iterator[Piece]:
    for tensor in disk_tensors(engine.spec, name, shape):
        depth = len(tensor.index)
        inside = [
            cut.start <= i < cut.stop for i, cut in zip(tensor.index, region[:depth], strict=True)
        ]
        if not all(inside) or not part.numel():
            continue
        own = tuple(i - cut.start for i, cut in zip(tensor.index, region[:depth], strict=True))
        yield Piece(
            tensor=tensor,
            shape=shape[depth:],
            region=region[depth:],
            values=part[own],
            writes=writes,
            trained=trained,
            optional=not trained or name.startswith("mtp."),
        )


def all_tensors(engine: Engine) -> list[tuple[str, tuple[int, ...], bool]]:
    """Name, shape and ``trained`` of every tensor that this rank's stages put on disk."""
    found = []
    for held in engine.held:
        if held.primary:
            shape = tuple(held.placement.shape)
            for t in disk_tensors(engine.spec, held.name, shape):
                found.append((t.disk, shape[len(t.index) :], True))
    for name, router in engine.routers().items():
        for key, buffer in router.named_buffers():
            if key != "load":
                for t in disk_tensors(engine.spec, f"{name}.{key}", tuple(buffer.shape)):
                    found.append((t.disk, tuple(buffer.shape), False))
    return found
