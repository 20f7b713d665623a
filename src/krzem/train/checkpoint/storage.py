"""Storage for torch's distributed checkpoint (DCP) without pickle.

DCP plans who writes and reads which box; its own file storage keeps that plan, and every tensor, as
pickles.  Here each rank writes one safetensors file and the coordinator one JSON manifest, and
reading takes only the bytes that overlap.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from krzem.errors import CheckpointError, KrzemError
from krzem.train.checkpoint.boxes import read_box
from krzem.train.checkpoint.manifest import (
    MANIFEST,
    Chunk,
    Manifest,
    StoredFile,
    StoredTensor,
    read_manifest,
    write_manifest,
)
from krzem.train.checkpoint.pieces import DTYPE_NAMES, DTYPES, Pieces, raw_bytes
from krzem.train.checkpoint.store import remove_strays
from krzem.train.checkpoint.tensor_file import Entry, TensorFileWriter, Written
from krzem.train.durable import fsync_folder, storing

CommitGuard = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """Where one box went: what a rank reports to the coordinator."""

    chunk: Chunk
    file: StoredFile


class PiecesSavePlanner(DefaultSavePlanner):
    """Plans writes from pieces; boxes held by several ranks are written by one of them."""

    def __init__(self, pieces: Mapping[str, Pieces] | KrzemError) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.pieces = {} if isinstance(pieces, KrzemError) else pieces
        self.fault = pieces if isinstance(pieces, KrzemError) else None

    def create_local_plan(self) -> SavePlan:
        """This rank's boxes; a fault of this rank's state is raised here, for all ranks."""
        if self.fault is not None:
            raise self.fault
        return SavePlan([i for n, p in self.pieces.items() for i in p.write_items(n)])

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """On the coordinator: what each rank writes, after checking that it adds up."""
        _check_plans(all_plans)
        return super().create_global_plan(all_plans)

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The data of a box."""
        return self.pieces[write_item.index.fqn].at(write_item.index.offset)


def _check_plans(plans: list[SavePlan]) -> None:
    """Every rank must mean the same tensor by a name, and together they must hold all of it."""
    first: dict[str, tuple[int, TensorWriteData]] = {}
    boxes: dict[str, dict[torch.Size, torch.Size]] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            name, data = item.index.fqn, _data(item)
            _same_tensor(name, *first.setdefault(name, (rank, data)), rank, data)
            boxes.setdefault(name, {})[data.chunk.offsets] = data.chunk.sizes
    for name, (_, data) in first.items():
        held = sum(sizes.numel() for sizes in boxes[name].values())
        if held != data.size.numel():
            raise CheckpointError(
                f"{name} has {data.size.numel():,} elements but the ranks hold {held:,} of them: a "
                "part is missing from the state of some rank, or two parts overlap"
            )


def _same_tensor(
    name: str, rank: int, data: TensorWriteData, other_rank: int, other: TensorWriteData
) -> None:
    if (data.size, data.properties.dtype) != (other.size, other.properties.dtype):
        raise CheckpointError(
            f"{name} is {list(data.size)} of {data.properties.dtype} on rank {rank} but "
            f"{list(other.size)} of {other.properties.dtype} on rank {other_rank}"
        )


def _data(item: WriteItem) -> TensorWriteData:
    if item.tensor_data is None:
        raise AssertionError(f"{item.index.fqn} is not a tensor")
    return item.tensor_data


class FolderWriter(StorageWriter):
    """Writes one file per rank into ``folder`` and commits by renaming the manifest into place.

    ``manifest`` carries all but the tensors and files, which are filled in when the ranks are done.
    File names are new for every save, so that a save that was given up cannot harm a later one.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, commit_guard: CommitGuard | None = None
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.commit_guard = commit_guard
        self.written: Path | None = None

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to forget: a writer serves one save."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Make the folder."""
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            fsync_folder(self.folder.parent)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Name each rank's file."""
        save = uuid.uuid4().hex[:8]
        return [
            replace(plan, storage_data=f"{save}-{rank:05d}.safetensors")
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's boxes and force them to the disk."""
        result: Future[list[WriteResult]] = Future()
        result.set_result(self._write(plan, planner) if plan.items else [])
        return result

    def _write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        path = self.folder / plan.storage_data
        entries = [(_box_name(item), _entry(item)) for item in plan.items]
        self.written = path
        with TensorFileWriter(path, entries) as file:
            places = []
            for item in plan.items:
                data = planner.resolve_data(item)
                if not isinstance(data, Tensor):
                    raise AssertionError(item)
                places.append(file.write(raw_bytes(data.to("cpu"))))
            stored = file.finish()
        with storing(path):
            fsync_folder(self.folder)
        return [
            WriteResult(
                index=item.index,
                size_in_bytes=place.stop - place.start,
                storage_data=_Placed(chunk=_chunk(item, path.name, place), file=stored),
            )
            for item, place in zip(plan.items, places, strict=True)
        ]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator, when every rank's bytes are on the disk: commit."""
        placed: dict[str, list[Chunk]] = {name: [] for name in metadata.state_dict_metadata}
        files: dict[str, StoredFile] = {}
        for result in (r for of_rank in results for r in of_rank):
            placed[result.index.fqn].append(result.storage_data.chunk)
            files[result.storage_data.chunk.file] = result.storage_data.file
        tensors = {
            name: _stored(tensor, placed[name])
            for name, tensor in metadata.state_dict_metadata.items()
        }
        self.manifest = replace(self.manifest, tensors=tensors, files=files)
        write_manifest(self.folder, self.manifest, self.commit_guard)
        remove_strays(self.folder, self.manifest)

    def give_up(self) -> None:
        """Remove what this rank wrote for a save that was not committed.

        Only for failures that every rank knows of: then no rank can still commit.
        """
        with contextlib.suppress(OSError, CheckpointError):
            committed = (self.folder / MANIFEST).exists()
            kept = read_manifest(self.folder).files if committed else {}
            if self.written is not None and self.written.name not in kept:
                self.written.unlink(missing_ok=True)
            self.folder.rmdir()

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any path will do."""
        return True

    def storage_meta(self) -> StorageMeta | None:
        """Nothing that a planner would need."""
        return None


def _box_name(item: WriteItem) -> str:
    box = _data(item).chunk
    if box.sizes == _data(item).size:
        return item.index.fqn
    return f"{item.index.fqn}@{','.join(map(str, box.offsets))}"


def _entry(item: WriteItem) -> Entry:
    data = _data(item)
    return Entry(dtype=DTYPE_NAMES[data.properties.dtype], shape=tuple(data.chunk.sizes))


def _chunk(item: WriteItem, file: str, place: Written) -> Chunk:
    box = _data(item).chunk
    return Chunk(
        offset=tuple(box.offsets),
        shape=tuple(box.sizes),
        file=file,
        start=place.start,
        stop=place.stop,
        crc32=place.crc32,
    )


def _stored(tensor: Any, chunks: list[Chunk]) -> StoredTensor:
    return StoredTensor(
        dtype=DTYPE_NAMES[tensor.properties.dtype],
        shape=tuple(tensor.size),
        chunks=tuple(sorted(chunks, key=lambda c: c.offset)),
    )


class PiecesLoadPlanner(DefaultLoadPlanner):
    """Plans reads into pieces: every stored box that overlaps a box held here."""

    def __init__(self, pieces: Mapping[str, Pieces]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.pieces = pieces

    def create_local_plan(self) -> LoadPlan:
        """This rank's reads."""
        if self.metadata is None:
            raise AssertionError("the plan is made after the metadata is read")
        items: list[ReadItem] = []
        for name, pieces in self.pieces.items():
            stored = self.metadata.state_dict_metadata[name]
            if not isinstance(stored, TensorStorageMetadata):
                raise AssertionError(name)
            items += create_read_items_for_chunk_list(name, stored, pieces.chunks())
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """The place in memory that a read fills."""
        place = self.pieces[read_item.dest_index.fqn].at(read_item.dest_index.offset)
        for dim, (start, length) in enumerate(
            zip(read_item.dest_offsets, read_item.lengths, strict=True)
        ):
            place = place.narrow(dim, start, length)
        return place


class FolderReader(StorageReader):
    """Reads boxes of the checkpoint in ``folder``."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._chunks = {
            (name, torch.Size(chunk.offset)): chunk
            for name, tensor in manifest.tensors.items()
            for chunk in tensor.chunks
        }

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to forget: a reader serves one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The manifest in the words of distributed checkpoint."""
        tensors: dict[str, Any] = {
            name: TensorStorageMetadata(
                properties=TensorProperties(dtype=DTYPES[tensor.dtype]),
                size=torch.Size(tensor.shape),
                chunks=[
                    ChunkStorageMetadata(offsets=torch.Size(c.offset), sizes=torch.Size(c.shape))
                    for c in tensor.chunks
                ],
            )
            for name, tensor in self.manifest.tensors.items()
        }
        return Metadata(state_dict_metadata=tensors)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing to open."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Nothing to add."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Nothing to add."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill this rank's boxes."""
        for item in plan.items:
            name, offset = item.storage_index.fqn, item.storage_index.offset
            if offset is None:
                raise AssertionError(item)
            read_box(
                self.folder,
                self._chunks[name, offset],
                self.manifest.tensors[name].dtype,
                tuple(item.storage_offsets),
                planner.resolve_tensor(item),
            )
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any path will do."""
        return True
