"""What a rank holds of each logical tensor, whatever the layout.

Plain tensors, DTensors of any placement and parts placed by hand (experts owned by a rank, a
pipeline stage's slice) all become *pieces*: boxes of the logical tensor with their data.  Saving
and loading know nothing but pieces, so they know nothing of the layout either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from krzem.errors import CheckpointError
from krzem.train.checkpoint.manifest import ITEM_BYTES, Shape

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """A box of a logical tensor that this rank holds, for tensors that are not DTensors.

    ``tensor`` is the data (a view is fine, it is filled in place when loading), ``shape`` the full
    shape of the logical tensor and ``offset`` where the box begins in it.
    """

    tensor: Tensor
    shape: Shape
    offset: Shape


Value: TypeAlias = Tensor | Part | Sequence[Part]
"""What a state may hold under a name: a tensor, a DTensor, or parts placed by hand."""

State: TypeAlias = Mapping[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pieces:
    """This rank's boxes of one logical tensor; there may be none."""

    dtype: torch.dtype
    shape: Shape
    parts: tuple[Part, ...]

    def chunks(self) -> list[ChunkStorageMetadata]:
        """The boxes in the words of distributed checkpoint."""
        return [
            ChunkStorageMetadata(offsets=torch.Size(p.offset), sizes=p.tensor.size())
            for p in self.parts
        ]

    def write_items(self, name: str) -> list[WriteItem]:
        """One request to write for each box."""
        properties = TensorProperties(dtype=self.dtype)
        size = torch.Size(self.shape)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=size),
            )
            for chunk in self.chunks()
        ]

    def at(self, offset: torch.Size | None) -> Tensor:
        """The data of the box that begins at ``offset``."""
        return next(p.tensor for p in self.parts if p.offset == offset)


def pieces_of(state: State) -> dict[str, Pieces]:
    """Every value of ``state`` as pieces; CheckpointError names what cannot be stored."""
    return {name: _pieces(name, value) for name, value in state.items()}


def _pieces(name: str, value: Value) -> Pieces:
    if isinstance(value, DTensor):
        pieces = _of_dtensor(name, value)
    elif isinstance(value, Tensor):
        whole = Part(tensor=value.detach(), shape=tuple(value.shape), offset=(0,) * value.dim())
        pieces = Pieces(dtype=value.dtype, shape=whole.shape, parts=(whole,))
    elif isinstance(value, Part):
        pieces = _of_parts(name, (value,))
    elif isinstance(value, Sequence) and value and all(isinstance(p, Part) for p in value):
        pieces = _of_parts(name, tuple(value))
    else:
        raise CheckpointError(
            f"a checkpoint holds tensors; {name} is a {type(value).__name__}. Put plain values "
            "into meta, as JSON"
        )
    if pieces.dtype not in DTYPE_NAMES:
        raise CheckpointError(
            f"{name} has type {pieces.dtype}, which checkpoints cannot hold; those they can: "
            f"{', '.join(ITEM_BYTES)}"
        )
    return pieces


def _of_dtensor(name: str, value: DTensor) -> Pieces:
    shape = tuple(value.shape)
    if value.device_mesh.get_coordinate() is None:
        return Pieces(dtype=value.dtype, shape=shape, parts=())
    if any(p.is_partial() for p in value.placements):
        raise CheckpointError(
            f"{name} is a partial sum over {value.device_mesh}, not a value; reduce it first"
        )
    local = value.to_local().detach()
    (chunk,) = value.__create_chunk_list__()  # type: ignore[no-untyped-call]
    if tuple(chunk.sizes) != tuple(local.shape):
        raise CheckpointError(
            f"{name}: this rank holds {list(local.shape)} where placements {value.placements} of "
            f"{list(shape)} mean {list(chunk.sizes)}"
        )
    if not local.numel() and value.numel():
        return Pieces(dtype=value.dtype, shape=shape, parts=())
    part = Part(tensor=local, shape=shape, offset=tuple(chunk.offsets))
    return Pieces(dtype=value.dtype, shape=shape, parts=(part,))


def _of_parts(name: str, parts: tuple[Part, ...]) -> Pieces:
    first = parts[0]
    for part in parts:
        ends = [o + n for o, n in zip(part.offset, part.tensor.shape, strict=False)]
        fits = len(part.offset) == part.tensor.dim() == len(part.shape) and all(
            o >= 0 and e <= n for o, e, n in zip(part.offset, ends, part.shape, strict=True)
        )
        if not fits or part.shape != first.shape or part.tensor.dtype != first.tensor.dtype:
            raise CheckpointError(
                f"{name}: a part of {list(part.tensor.shape)} at {list(part.offset)} is no part of "
                f"{list(first.shape)} of {first.tensor.dtype}"
            )
    held = tuple(
        Part(tensor=p.tensor.detach(), shape=p.shape, offset=p.offset)
        for p in parts
        if p.tensor.numel()
    )
    return Pieces(dtype=first.tensor.dtype, shape=first.shape, parts=held)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor, row-major, without a copy where it is contiguous."""
    flat = tensor.detach().contiguous().reshape(-1)
    if not flat.numel():
        return memoryview(b"")
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
