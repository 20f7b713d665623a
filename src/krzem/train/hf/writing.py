"""Export: every rank writes its parts straight into the files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from krzem.errors import DataError
from krzem.train.checkpoint.names import constants
from krzem.train.checkpoint.transfer import exported_config, generation_config
from krzem.train.durable import storing
from krzem.train.engine import Engine
from krzem.train.hf.format import header, tensor_places
from krzem.train.hf.state import all_tensors, pieces

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
