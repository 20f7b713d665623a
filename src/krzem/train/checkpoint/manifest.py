"""The manifest of a checkpoint: which logical tensors it holds, and where their bytes are.

A checkpoint is a folder with data files and one ``manifest.json``, which is renamed into place
after everything else is on the disk: a folder without it is no checkpoint.  Tensors are *logical*:
a name, a type and a full shape, cut into chunks that know their place in the whole.  Nothing in it
depends on ranks, layout, device or torch, and nothing in it is pickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krzem.errors import CheckpointError, DataError, shorten
from krzem.files import open_regular
from krzem.train.durable import canonical_json, write_atomic

FORMAT = "krzem.checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
LARGEST = 1 << 30
"""Bytes of a manifest that is still read: some million chunks."""

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e8m0fnu": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
}
"""Bytes per element of every type that a checkpoint can hold."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A box of a logical tensor and the bytes that hold it, row-major."""

    offset: Shape
    shape: Shape
    file: str
    start: int
    stop: int
    crc32: int
    """Tells which tensor an altered file was altered in; the files' SHA-256 tell that it was."""

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A logical tensor at full shape."""

    dtype: str
    shape: Shape
    chunks: tuple[Chunk, ...]

    @property
    def bytes(self) -> int:
        """Size of the whole tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file that belongs to the checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that a checkpoint says about itself."""

    step: int
    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, StoredFile]
    """Data files and attachments, by name."""
    meta: Mapping[str, Any]
    """JSON of the trainer: tokens, sample index, schedule, random state, order fingerprint."""
    config: Mapping[str, Any] | None
    """The model's configuration."""
    attachments: Mapping[str, str] = field(default_factory=dict)
    """Files added after the checkpoint was made, such as a witness: name -> file."""
    created: str = ""
    """ISO 8601, UTC."""
    written_by: Mapping[str, Any] = field(default_factory=dict)
    """Versions and number of ranks that wrote it."""

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(t.bytes for t in self.tensors.values())

    @property
    def config_sha256(self) -> str | None:
        """Hash of the configuration."""
        return None if self.config is None else config_hash(self.config)


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of a configuration, independent of the order of its keys."""
    return hashlib.sha256(canonical_json(config)).hexdigest()


def write_manifest(
    folder: Path, manifest: Manifest, commit_guard: Callable[[], None] | None = None
) -> None:
    """Commit the checkpoint in ``folder``; every file it names must be on the disk already.

    ``commit_guard`` is called last, just before the rename, and may refuse by raising.
    """
    value = _value(manifest)
    value["sha256"] = hashlib.sha256(canonical_json(value)).hexdigest()
    write_atomic(folder / MANIFEST, canonical_json(value), commit_guard)


def check_json(what: str, value: Any) -> None:
    """Raise CheckpointError where ``value`` is not plain JSON."""
    try:
        canonical_json(value)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{what} of a checkpoint must be plain JSON: {error}") from error


def read_manifest(folder: Path) -> Manifest:
    """The manifest in ``folder``; CheckpointError where it is missing, altered or too new."""
    file = folder / MANIFEST
    try:
        with os.fdopen(open_regular(file), "rb") as stream:
            raw = stream.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise CheckpointError(_missing(folder)) from error
    except (OSError, DataError) as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error
    if len(raw) > LARGEST:
        raise CheckpointError(f"{file} has more than {LARGEST:,} bytes: that is no manifest")
    try:
        value = json.loads(raw)
        if value["format"] != FORMAT:
            raise KeyError("format")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file} is not the manifest of a krzem checkpoint") from error
    if value.get("version") != VERSION:
        raise CheckpointError(
            f"{file} has format version {shorten(str(value.get('version')))}; this krzem reads "
            f"version {VERSION}"
        )
    stated = value.pop("sha256", None)
    if stated != hashlib.sha256(canonical_json(value)).hexdigest():
        raise CheckpointError(f"{file} was altered: its content does not match its own checksum")
    try:
        found = _manifest(value)
        _check_places(found)
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is not a manifest: {shorten(str(error), 200)}") from error
    return found


def _check_places(manifest: Manifest) -> None:
    """Every file lies inside the checkpoint's folder, every chunk inside its file.

    A checksum vouches for the bytes of a manifest, and for nothing that somebody wrote into it.
    """
    if type(manifest.step) is not int or not 0 <= manifest.step < 1 << 53:
        raise ValueError(f"step {shorten(str(manifest.step), 40)} is no whole number")
    if not isinstance(manifest.meta, dict):
        raise ValueError("meta is no table")
    for name, stored in manifest.files.items():
        if not is_inside(name):
            raise ValueError(f"file {shorten(name)!r} is not inside the checkpoint's folder")
        if type(stored.bytes) is not int or stored.bytes < 0:
            raise ValueError(f"file {shorten(name)!r} has no size")
    for name, tensor in manifest.tensors.items():
        for chunk in tensor.chunks:
            if chunk.file not in manifest.files:
                raise ValueError(f"{shorten(name)} is in a file that is not named among the files")
            if not 0 <= chunk.start <= chunk.stop <= manifest.files[chunk.file].bytes:
                raise ValueError(f"{shorten(name)} lies beyond its file")


def is_inside(name: str) -> bool:
    """Whether ``name`` is a relative path that leads nowhere but down."""
    parts = name.split("/")
    return bool(name) and name.isprintable() and not {"", ".", ".."} & set(parts)


def _missing(folder: Path) -> str:
    if not folder.is_dir():
        return f"no checkpoint at {folder}: no such folder"
    if any(folder.glob("*.safetensors*")):
        return (
            f"{folder} is an incomplete checkpoint: it has data but no {MANIFEST}, so the save was "
            "interrupted; use an earlier one"
        )
    steps = sorted(p.name for p in folder.glob("step-*"))
    hint = f"; it holds {', '.join(steps[-3:])}: name one of them" if steps else ""
    return f"no checkpoint at {folder}: {MANIFEST} is missing{hint}"


def _value(manifest: Manifest) -> dict[str, Any]:
    value = {f.name: getattr(manifest, f.name) for f in dataclasses.fields(manifest)}
    value["tensors"] = {n: _tensor_value(t) for n, t in manifest.tensors.items()}
    value["files"] = {n: dataclasses.asdict(f) for n, f in manifest.files.items()}
    return {"format": FORMAT, "version": VERSION, **value}


def _tensor_value(tensor: StoredTensor) -> dict[str, Any]:
    """As ``dataclasses.asdict`` would give it, which is far slower over many thousand chunks."""
    chunks = [{name: getattr(c, name) for name in _CHUNK_FIELDS} for c in tensor.chunks]
    return {"dtype": tensor.dtype, "shape": tensor.shape, "chunks": chunks}


_CHUNK_FIELDS = tuple(f.name for f in dataclasses.fields(Chunk))


def _manifest(value: dict[str, Any]) -> Manifest:
    """The manifest of checked JSON: its checksum vouches for what this module wrote."""
    del value["format"], value["version"]
    tensors = {name: _tensor(tensor) for name, tensor in value.pop("tensors").items()}
    files = {name: StoredFile(**f) for name, f in value.pop("files").items()}
    return Manifest(tensors=tensors, files=files, **value)


def _tensor(value: dict[str, Any]) -> StoredTensor:
    chunks = tuple(
        Chunk(**{**chunk, "offset": tuple(chunk["offset"]), "shape": tuple(chunk["shape"])})
        for chunk in value["chunks"]
    )
    return StoredTensor(dtype=value["dtype"], shape=tuple(value["shape"]), chunks=chunks)
