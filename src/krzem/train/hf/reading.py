"""Import: every rank reads the parts it holds of what a model's file keeps, a tensor at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krzem.errors import DataError
from krzem.train.checkpoint.names import DiskTensor, correspondence_of, disk_tensors
from krzem.train.checkpoint.published import SafetensorsFolder
from krzem.train.checkpoint.transfer import check_source
from krzem.train.engine import Engine
from krzem.train.model.weights import Region


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


@torch.no_grad()
def import_model(engine: Engine, folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Fill the model with the weights in ``folder``; returns the MTP modules that it lacks.

    Low-precision weights are read with their scales, as ``config.json`` in ``folder`` states them.
    MTP modules and balancing biases that the folder lacks keep their values.

    Raises:
        CheckpointError: tensors are missing, of another shape, without their scale or not finite,
            or tensors that have to be equal differ.
    """
    path = Path(folder)
    source = SafetensorsFolder(path, _config(path))
    found = source.tensors()
    absent = check_source(str(path), source, correspondence_of(engine.spec, found))
    for piece in pieces(engine):
        name = next((n for n in (piece.tensor.disk, *piece.tensor.also) if n in found), None)
        if name is not None:
            at = tuple(cut.start for cut in piece.region)
            shape = tuple(cut.stop - cut.start for cut in piece.region)
            piece.values.copy_(source.read(name, at, shape))
    return absent


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.exists():
        return {}
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
