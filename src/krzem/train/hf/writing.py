"""Export: every rank writes its parts straight into safetensors files."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from krzem.errors import DataError
from krzem.train.checkpoint.names import constants
from krzem.train.checkpoint.transfer import exported_config, generation_config
from krzem.train.durable import storing
from krzem.train.engine import Engine
from krzem.train.hf.reading import all_tensors, pieces

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


SHARD_BYTES = 5 * 10**9


def export_model(
    engine: Engine,
    folder: str | os.PathLike[str],
    config: Mapping[str, object],
    *,
    dtype: torch.dtype = torch.bfloat16,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write ``config.json`` and safetensors files into a new ``folder``, on all ranks together.

    Parameters are converted to ``dtype``; balancing biases and hash tables keep their type.
    Nothing is gathered: memory stays that of the model.  The folder appears whole or not at all,
    and has to be on a file system that all ranks share.

    Raises:
        DataError: the folder exists.
        StorageError: the disk does not take it.
    """
    target = Path(folder)
    part = target.with_name(f"{target.name}.part")
    if target.exists():
        raise DataError(f"{target} exists; name a folder that does not, or remove it")
    tensors = _everyones(all_tensors(engine))
    fixed = constants(engine.spec)
    tensors += [(name, (), True) for name in fixed]
    types = {name: dtype if trained else _kept_type(name) for name, _, trained in tensors}
    if _is_first():
        with storing(part):
            _lay_out(part, {n: (types[n], shape) for n, shape, _ in tensors}, shard_bytes)
            fields = exported_config(config, str(dtype).removeprefix("torch."))
            (part / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
            generation = json.dumps(generation_config(config), indent=2) + "\n"
            (part / "generation_config.json").write_text(generation)
    _wait()
    with storing(part), torch.no_grad():
        files = sorted(part.glob("*.safetensors"))
        places = {n: place for file in files for n, place in tensor_places(file).items()}
        for piece in pieces(engine):
            if piece.writes:
                places[piece.tensor.disk].write(piece.region, piece.values)
        for name, value in fixed.items() if _is_first() else ():
            places[name].write((), torch.tensor(value))
    _wait()
    if _is_first():
        with storing(target):
            part.rename(target)
    _wait()
    return target


def _kept_type(name: str) -> torch.dtype:
    return torch.int64 if name.endswith("tid2eid") else torch.float32


def _lay_out(
    folder: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], most: int
) -> None:
    """Create the files at full size, with headers and without values, and the index."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: list[dict[str, tuple[torch.dtype, tuple[int, ...]]]] = [{}]
    size = 0
    for name, (dtype, shape) in tensors.items():
        own = torch.Size(shape).numel() * dtype.itemsize
        if groups[-1] and size + own > most:
            groups.append({})
            size = 0
        groups[-1][name] = (dtype, shape)
        size += own
    weight_map, total = {}, 0
    for number, group in enumerate(groups, start=1):
        file = folder / f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        text, size = header(group)
        with file.open("wb") as stream:
            stream.write(text)
            stream.truncate(size)
        total += size - len(text)
        weight_map.update(dict.fromkeys(group, file.name))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _everyones(
    own: list[tuple[str, tuple[int, ...], bool]],
) -> list[tuple[str, tuple[int, ...], bool]]:
    """All stages' tensors, in the order of the stages, each once."""
    if not dist.is_initialized():
        return own
    everyone: list[list[tuple[str, tuple[int, ...], bool]]] = [[]] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    return list({item[0]: item for part in everyone for item in part}.values())


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()
