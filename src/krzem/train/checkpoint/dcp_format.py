"""Reading torch's own distributed checkpoints (``.metadata``, ``*.distcp``) without trusting them.

Both kinds of file are pickles, and unpickling may run code of the file's choosing.  But a pickle
can only call what it can name, so here names are looked up in a short list and nowhere else:

* ``.metadata``: the value classes of ``torch.distributed.checkpoint`` (with those of the plan of
  saving, which Megatron keeps there), for each of which stands an
  empty class made for this one reading, so that not even torch's own classes are within reach;
  ``torch.Size`` (a plain tuple here), types, and the two functions for layouts and paths,
  for which stand functions that return their text.
* each tensor: ``torch.load(weights_only=True)``, which keeps a list of the same kind.

Anything else is refused before it is touched.  Items that are not tensors (learning-rate schedules,
data loader state) are pickles of free form and are not read at all.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krzem.errors import CheckpointError, shorten
from krzem.train.checkpoint.manifest import Shape
from krzem.train.checkpoint.pieces import DTYPE_NAMES, DTYPES

_MODULE = "torch.distributed.checkpoint"
_RECORDS = {
    (f"{_MODULE}.metadata", name)
    for name in (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    )
} | {
    (f"{_MODULE}.filesystem", "_StorageInfo"),
    *((f"{_MODULE}.planner", name) for name in ("SavePlan", "TensorWriteData", "WriteItem")),
}
_TEXTS = {
    ("torch.serialization", "_get_layout"),
    (f"{_MODULE}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_MODULE}.planner", "WriteItemType"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
}
_TYPES = {("torch", name): dtype for name, dtype in DTYPES.items()}
_TYPES_UNKNOWN = {("torch", name) for name in ("complex64", "complex128", "float8_e8m0fnu")}


class _Record:
    """Stands in for a value class of torch: takes any state and does nothing."""

    def __setstate__(self, state: Any) -> None:
        values = state if isinstance(state, dict) else {"state": state}
        self.__dict__.update((str(name), value) for name, value in values.items())


class _Unpickler(pickle.Unpickler):
    """Knows the names of a checkpoint's metadata and no others."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__(file)
        self._known: dict[tuple[str, str], Any] = {("torch", "Size"): tuple, **_TYPES}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the pickle, or UnpicklingError."""
        known = (module, name)
        if known not in self._known:
            if known in _RECORDS:
                self._known[known] = type(name, (_Record,), {})
            elif known == ("builtins", "getattr"):
                # Before Python 3.11.4 members of enumerations are getattr(class, name).
                self._known[known] = lambda _owner, name: str(name)
            elif known in _TEXTS:
                self._known[known] = lambda *parts: "/".join(map(str, parts))
            elif known in _TYPES_UNKNOWN:
                self._known[known] = name
            else:
                raise pickle.UnpicklingError(f"it names {module}.{name}")
        return self._known[known]

    def persistent_load(self, pid: Any) -> Any:
        """Metadata has no persistent objects."""
        raise pickle.UnpicklingError("it refers to objects outside the file")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    offset: Shape
    shape: Shape
    file: Path
    start: int
    length: int


class DcpTensors:
    """The tensors of a torch distributed checkpoint, read box by box.

    The format stores each chunk as one archive, so a read takes whole chunks into memory, one at a
    time (the last one is kept).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._types: dict[str, tuple[str, Shape]] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        self._last: tuple[_Piece | None, Tensor] = (None, torch.empty(0))
        parsed = read_metadata(folder)
        try:
            self._take(parsed)
        except (AttributeError, TypeError, KeyError) as error:
            raise CheckpointError(f"{folder / '.metadata'} is damaged: {error!r}") from error

    def tensors(self) -> dict[str, tuple[str, Shape]]:
        """Type and shape of every tensor."""
        return dict(self._types)

    def read(self, name: str, at: Shape, shape: Shape) -> Tensor:
        """The box of ``name`` that begins at ``at``."""
        dtype, _ = self._types[name]
        out = torch.empty(shape, dtype=DTYPES[dtype])
        filled = 0
        for piece in self._pieces[name]:
            low = [max(a, o) for a, o in zip(at, piece.offset, strict=True)]
            sides = zip(at, shape, piece.offset, piece.shape, strict=True)
            size = [min(a + n, o + m) - max(a, o) for a, n, o, m in sides]
            if any(n <= 0 for n in size):
                continue
            place, box = out, self._load(name, piece)
            for dim, (start, count) in enumerate(zip(low, size, strict=True)):
                place = place.narrow(dim, start - at[dim], count)
                box = box.narrow(dim, start - piece.offset[dim], count)
            place.copy_(box)
            filled += place.numel()
        if filled != out.numel():
            raise CheckpointError(f"{self.folder} holds only a part of {name}")
        return out

    def _take(self, parsed: Any) -> None:
        places = {
            (index.fqn, tuple(index.offset)): info
            for index, info in parsed.storage_data.items()
            if getattr(index, "offset", None) is not None
        }
        for name, tensor in parsed.state_dict_metadata.items():
            if type(tensor).__name__ == "TensorStorageMetadata":
                dtype = tensor.properties.state[0]
                if dtype not in DTYPE_NAMES:
                    raise CheckpointError(f"{name} in {self.folder} has type {dtype}")
                self._types[name] = (DTYPE_NAMES[dtype], tuple(tensor.size))
                self._pieces[name] = [
                    self._piece(chunk, places[name, tuple(chunk.offsets)])
                    for chunk in tensor.chunks
                ]

    def _piece(self, chunk: Any, info: Any) -> _Piece:
        if getattr(info, "transform_descriptors", None):
            raise CheckpointError(f"{self.folder} is compressed, which is not supported")
        file = self.folder / str(info.relative_path)
        if file.parent != self.folder:
            raise CheckpointError(f"{self.folder} points outside itself: {info.relative_path}")
        return _Piece(
            offset=tuple(chunk.offsets),
            shape=tuple(chunk.sizes),
            file=file,
            start=int(info.offset),
            length=int(info.length),
        )

    def _load(self, name: str, piece: _Piece) -> Tensor:
        if self._last[0] is not piece:
            self._last = (None, torch.empty(0))
            self._last = (piece, _tensor(name, piece))
        return self._last[1]


def _tensor(name: str, piece: _Piece) -> Tensor:
    try:
        with piece.file.open("rb") as file:
            file.seek(piece.start)
            raw = file.read(piece.length)
        value = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = shorten(str(error).partition("\n")[0], 160)
        raise CheckpointError(f"cannot read {name} in {piece.file}: {reason}") from error
    if not isinstance(value, Tensor) or tuple(value.shape) != piece.shape:
        raise CheckpointError(f"{piece.file} does not hold {name} where its metadata says")
    return value.detach()


def read_metadata(folder: Path) -> Any:
    """The ``.metadata`` of a torch distributed checkpoint; CheckpointError for anything else."""
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            parsed = _Unpickler(file).load()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is no torch distributed checkpoint: .metadata is missing"
        ) from error
    except Exception as error:  # a hostile pickle can raise anything
        raise CheckpointError(
            f"{path} is refused: {shorten(str(error), 160)}. A torch checkpoint's metadata holds "
            "names, shapes and places only; this file holds something else, and reading it could "
            "run code of its choosing"
        ) from error
    if type(parsed).__name__ != "Metadata" or not isinstance(parsed, _Record):
        raise CheckpointError(f"{path} is not the metadata of a torch distributed checkpoint")
    return parsed
