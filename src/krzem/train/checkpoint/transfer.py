"""Checkpoints to and from Hugging Face safetensors folders, a slab at a time.

An import makes an ordinary krzem checkpoint, an export an ordinary folder with
``model.safetensors.index.json``.  Both are committed by the file that makes them readable: the
manifest, or the index, is written last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from krzem.errors import CheckpointError, DataError
from krzem.model.description import describe
from krzem.train.checkpoint.correspondence import Correspondence, identity
from krzem.train.checkpoint.manifest import (
    MANIFEST,
    Chunk,
    Manifest,
    Shape,
    StoredFile,
    StoredTensor,
    check_json,
    write_manifest,
)
from krzem.train.checkpoint.published import INDEX
from krzem.train.checkpoint.store import step_folder
from krzem.train.checkpoint.streaming import (
    Constants,
    Initial,
    Link,
    Source,
    StoredTensors,
    WithZeros,
    check_equal,
    exporting,
    importing,
    slabs,
)
from krzem.train.checkpoint.tensor_file import (
    Entry,
    TensorFileWriter,
    Written,
)
from krzem.train.config import TRAINABLE
from krzem.train.data.tokenizer import copy_files
from krzem.train.durable import fsync_folder, storing, write_atomic

WEIGHT = "weight/"
"""How the names of weights begin in a checkpoint; optimizer state has prefixes of its own."""

FILE_BYTES = 5_000_000_000
"""Size at which a new file is begun, as Hugging Face does."""

_NOT_HERE = ("quantization_config", "expert_dtype", "torch_dtype", "auto_map")
"""Fields about other files or types than an export has: quantised weights, code beside them."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """One tensor to write."""

    name: str
    entry: Entry
    source: Source
    links: list[Link]


def import_tensors(
    sources: Mapping[str, Source],
    correspondence: Correspondence,
    root: Path,
    *,
    config: Mapping[str, Any],
    meta: Mapping[str, Any],
    step: int = 0,
    dtype: str = "float32",
    file_bytes: int = FILE_BYTES,
    progress: Progress | None = None,
    std: float = 0.02,
) -> Path:
    """Write a checkpoint under ``root`` from foreign tensors; returns its folder.

    ``sources`` maps a name prefix (``weight/``, ``exp_avg/`` ...) to tensors with their names; each
    is put through ``correspondence``.  Parts that a source lacks whole (``groups``) begin at the
    initial values of seed 0 with ``std``, their moments at zero; ``meta`` lists them as
    ``initialised``.

    Raises:
        CheckpointError: names or shapes do not fit, a value is not a finite number, or tensors
            that have to be equal differ.
    """
    check_json("meta", meta)
    check_json("config", config)
    plans: list[_Plan] = []
    for prefix, source in sources.items():
        pairs = correspondence if prefix == WEIGHT else correspondence.of_moments()
        absent = check_source(f"the source of {prefix.rstrip('/')} tensors", source, pairs)
        if prefix == WEIGHT and absent:
            meta = {**meta, "initialised": list(absent)}
        plans += _import_plans(prefix, source, pairs, dtype, absent, std)
    folder = _fresh(step_folder(root, step))
    names, written, files = _write(folder, plans, file_bytes, {}, progress)
    tensors = {p.name: _stored(p, names[p.name], written[p.name]) for p in plans}
    manifest = Manifest(
        step=step,
        tensors=tensors,
        files=files,
        meta=meta,
        config=config,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        written_by={"krzem": version("krzem"), "torch": torch.__version__, "ranks": 1},
    )
    write_manifest(folder, manifest)
    return folder


def check_source(where: str, source: Source, pairs: Correspondence) -> tuple[str, ...]:
    """The parts of ours that ``source`` lacks whole.

    Raises:
        CheckpointError: names or shapes do not fit, or tensors that have to be equal differ.
    """
    found = {name: shape for name, (_, shape) in source.tensors().items()}
    absent = pairs.compare(where, found)
    for name, other in pairs.twice.items():
        if name in found and other in found:
            check_equal(source, name, other)
    return absent


def _import_plans(
    prefix: str,
    source: Source,
    pairs: Correspondence,
    dtype: str,
    absent: tuple[str, ...],
    std: float,
) -> Iterator[_Plan]:
    lacking = set().union(*(pairs.groups[name] for name in absent))
    zeros = lacking if prefix != WEIGHT else pairs.zeros
    source = WithZeros(source, {n: pairs.theirs[n] for n in zeros})
    initial = Initial(pairs.ours, std)
    copies = pairs.of_ours()
    drawn = {n for n, found in copies.items() if {c.theirs for c in found} <= lacking - zeros}
    for name, shape in pairs.ours.items():
        entry = Entry(dtype=pairs.ours_dtype.get(name, dtype), shape=shape)
        links = [importing(c) for c in copies[name]]
        if name in drawn:
            links = [importing(c) for c in identity({name: shape}).copies]
        chosen = initial if name in drawn else source
        yield _Plan(name=prefix + name, entry=entry, source=chosen, links=links)


def _fresh(folder: Path) -> Path:
    """``folder``, made or cleared of an import that was interrupted."""
    if (folder / MANIFEST).exists():
        raise CheckpointError(f"{folder} is a checkpoint already; choose another folder")
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.safetensors"):
            left.unlink()
    return folder


def _stored(plan: _Plan, file: str, place: Written) -> StoredTensor:
    shape = plan.entry.shape
    chunk = Chunk(
        offset=(0,) * len(shape),
        shape=shape,
        file=file,
        start=place.start,
        stop=place.stop,
        crc32=place.crc32,
    )
    return StoredTensor(dtype=plan.entry.dtype, shape=shape, chunks=(chunk,))


def export_huggingface(
    folder: Path,
    manifest: Manifest,
    correspondence: Correspondence,
    out: Path,
    *,
    dtype: str = "bfloat16",
    prefix: str = WEIGHT,
    file_bytes: int = FILE_BYTES,
    progress: Progress | None = None,
) -> int:
    """Write the weights of a checkpoint as a Hugging Face folder ``out``; returns the bytes.

    The configuration is written as ``config.json``.  Raises CheckpointError where the checkpoint's
    weights are not those of the correspondence, or ``out`` holds files already.
    """
    source = StoredTensors(folder, manifest, prefix)
    found = {name: shape for name, (_, shape) in source.tensors().items()}
    _same_names(folder, found, correspondence.ours)
    with storing(out):
        out.mkdir(parents=True, exist_ok=True)
    if any(out.glob("*.safetensors*")):
        raise CheckpointError(f"{out} holds safetensors files already; choose an empty folder")
    copies = correspondence.of_theirs()
    plans = [
        _Plan(
            name=name,
            entry=Entry(dtype=correspondence.theirs_dtype.get(name, dtype), shape=shape),
            source=source,
            links=[exporting(c) for c in copies[name]],
        )
        for name, shape in correspondence.theirs.items()
    ]
    fixed = Constants(correspondence.constants)
    for copy in identity(dict.fromkeys(correspondence.constants, ())).copies:
        entry = Entry(dtype=dtype, shape=())
        plans.append(_Plan(name=copy.theirs, entry=entry, source=fixed, links=[importing(copy)]))
    names, _, files = _write(out, plans, file_bytes, {"format": "pt"}, progress)
    if manifest.config is not None:
        text = json.dumps(exported_config(manifest.config, dtype), indent=2, ensure_ascii=False)
        write_atomic(out / "config.json", text.encode())
        generation = json.dumps(generation_config(manifest.config), indent=2)
        write_atomic(out / "generation_config.json", generation.encode())
    size = sum(p.entry.bytes for p in plans)
    index = {"metadata": {"total_size": size}, "weight_map": names}
    if len(files) == 1 and "model.safetensors" in files:
        return size
    write_atomic(out / INDEX, json.dumps(index, indent=2).encode())
    return size


def exported_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """``config`` for weights of ``dtype``, a language model by the class that engines know.

    What it says of quantised weights, or of code that lay beside them, no longer holds.
    """
    kept = {k: v for k, v in config.items() if k not in _NOT_HERE}
    known = str(config.get("model_type"))
    if known in TRAINABLE:
        kept["architectures"] = [describe(known).table("compute")["class"]]
    return {**kept, "dtype": dtype}


def generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """``generation_config.json``: where serving ends a text, as far as ``config`` says."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    stated = {k: config[k] for k in keys if config.get(k) is not None}
    return {"_from_model_config": True, **stated}


def copy_tokenizer(source: Path, out: Path) -> list[str]:
    """Copy a tokenizer's files (``source`` is its folder or its ``tokenizer.json``) to ``out``.

    Raises:
        DataError: there is no ``tokenizer.json``.
    """
    folder = source if source.is_dir() else source.parent
    if not (folder / "tokenizer.json").is_file():
        raise DataError(
            f"{source} holds no tokenizer.json; name the tokenizer's folder, or a folder that "
            "`krzem data build` made with it"
        )
    return copy_files(folder, out)


def _same_names(folder: Path, found: Mapping[str, Shape], ours: Mapping[str, Shape]) -> None:
    differing = sorted(n for n in {*found, *ours} if found.get(n) != ours.get(n))
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{folder} does not hold the weights of its config: {len(differing)} tensors differ, "
            f"first {name}, {_shape(found, name)} there, {_shape(ours, name)} by the config"
        )


def _shape(shapes: Mapping[str, Shape], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "absent"


def _write(
    folder: Path,
    plans: list[_Plan],
    file_bytes: int,
    metadata: dict[str, str],
    progress: Progress | None,
) -> tuple[dict[str, str], dict[str, Written], dict[str, StoredFile]]:
    """Write all plans into numbered files: file of each name, its place, and the files."""
    groups = _groups(plans, file_bytes)
    total, done = sum(p.entry.bytes for p in plans), 0
    names: dict[str, str] = {}
    written: dict[str, Written] = {}
    files: dict[str, StoredFile] = {}
    for number, group in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        file = "model.safetensors" if len(groups) == 1 else file
        with TensorFileWriter(
            folder / file, [(p.name, p.entry) for p in group], metadata
        ) as writer:
            for plan in group:
                blocks = slabs(plan.source, plan.entry.shape, plan.entry.dtype, plan.links)
                written[plan.name] = writer.write_blocks(blocks)
                names[plan.name] = file
                done += plan.entry.bytes
                if progress is not None:
                    progress(done, total)
            files[file] = writer.finish()
    with storing(folder):
        fsync_folder(folder)
    return names, written, files


def _groups(plans: list[_Plan], file_bytes: int) -> list[list[_Plan]]:
    groups: list[list[_Plan]] = []
    held = 0
    for plan in plans:
        if not groups or held + plan.entry.bytes > file_bytes:
            groups.append([])
            held = 0
        groups[-1].append(plan)
        held += plan.entry.bytes
    return groups or [[]]
