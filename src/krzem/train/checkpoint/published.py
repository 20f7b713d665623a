"""Weights as others publish them: safetensors folders, also with low-precision tensors and scales.

A weight of 8 bits or fewer means nothing without its scale.  Every such tensor must have one, of
the shape that the config's block gives; what a config does not state is not guessed.  Two
conventions are read:

- DeepSeek-V3 (and ``transformers``): float8 weights ``W``, beside them ``W_scale_inv``, a factor
  for each ``quantization_config.weight_block_size`` (DeepSeek-V3, ``README_WEIGHTS.md``);
- DeepSeek-V4: the factors are named ``….scale`` and may be exponents (``F8_E8M0``); routed experts
  are FP4 (E2M1, two in a byte, the first in the low half), a factor for 32 inputs of one row
  (``expert_dtype = "fp4"``).
- GPT-OSS (``quant_method = "mxfp4"``): ``X_blocks [..., R, G, 16]`` and exponents ``X_scales``
  ``[..., R, G]`` are a tensor ``X [..., 32 G, R]``, inputs before outputs, as its bfloat16 weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krzem.errors import CheckpointError
from krzem.train.checkpoint.boxes import read_box
from krzem.train.checkpoint.manifest import Chunk, Shape
from krzem.train.checkpoint.pieces import DTYPES
from krzem.train.checkpoint.tensor_file import Entry, read_header

INDEX = "model.safetensors.index.json"
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
_PACKED = ("int8", "uint8")
"""Types of bytes that hold two FP4 numbers each."""
_PLAIN = ("float64", "float32", "float16", "bfloat16")
_EXPONENTS = "float8_e8m0fnu"
_FP4_BLOCK = (1, 32)
_BLOCKS, _SCALES = "_blocks", "_scales"
"""Ends of the names of what one tensor in MXFP4 is published as."""
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""E2M1's values by their three low bits; the fourth is the sign (OCP Microscaling Formats 1.0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """How a low-precision tensor is scaled."""

    name: str
    block: Shape
    """Rows and columns that share a factor."""
    packed: bool
    """Whether a byte holds two numbers."""


class SafetensorsFolder:
    """Tensors of a folder (or one file) of safetensors, read box by box.

    ``config`` is the folder's ``config.json``, which says how low-precision tensors are scaled;
    they read as float32.

    Raises:
        CheckpointError: files are missing or damaged, or a low-precision tensor lacks its scale or
            has one of another shape.
    """

    def __init__(self, path: Path, config: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self._config = config or {}
        self._at = _entries(path)
        self._scales: dict[str, _Scale] = {}
        faults: list[str] = []
        self._woven = self._woven_tensors(faults)
        parts = {f"{name}{end}" for name in self._woven for end in (_BLOCKS, _SCALES)}
        for name in [] if faults else [n for n in self._at if n not in parts]:
            try:
                found = self._scale_of(name)
            except CheckpointError as error:
                faults.append(str(error))
                continue
            if found is not None:
                self._scales[name] = found
        if faults:
            more = f"; and {len(faults) - 1} more tensors" if len(faults) > 1 else ""
            raise CheckpointError(f"{path}: {faults[0]}{more}; nothing was imported")
        self._hidden = {scale.name for scale in self._scales.values()} | parts

    def tensors(self) -> dict[str, tuple[str, Shape]]:
        """Type and shape of every tensor; scales are not tensors of their own."""
        plain = {n: self._told(n) for n in self._at if n not in self._hidden}
        return plain | {n: ("float32", shape) for n, shape in self._woven.items()}

    def read(self, name: str, at: Shape, shape: Shape) -> Tensor:
        """The box of ``name`` that begins at ``at``.

        Raises:
            CheckpointError: a value or a scale is not a finite number, or the file fails.
        """
        if name in self._woven:
            return self._unwoven(name, at, shape)
        scale = self._scales.get(name)
        if scale is None:
            return self._finite(name, self._box(name, at, shape))
        box = self._unpacked(name, at, shape) if scale.packed else self._box(name, at, shape)
        values, factors = self._finite(name, box.float()), self._factors(scale, at, shape)
        if bool(((factors <= 0) & (values != 0)).any()):
            raise CheckpointError(
                f"{self._at[name][0]}: {scale.name} holds a scale that is not above 0 for numbers "
                f"of {name} that are not 0"
            )
        return self._finite(name, values * factors)

    def _woven_tensors(self, faults: list[str]) -> dict[str, Shape]:
        """Names and shapes of tensors in MXFP4; what is wrong with them goes to ``faults``."""
        found: dict[str, Shape] = {}
        if self._quantization().get("quant_method") != "mxfp4":
            return found
        for blocks in (n for n in self._at if n.endswith(_BLOCKS)):
            name = blocks.removesuffix(_BLOCKS)
            scales, (_, entry) = f"{name}{_SCALES}", self._at[blocks]
            factors = self._at[scales][1] if scales in self._at else None
            if factors is None:
                faults.append(f"{blocks} is {entry.dtype} and its scale is missing: {scales}")
            elif name in self._at:
                faults.append(f"{name} is there beside {blocks}: which counts cannot be known")
            elif entry.dtype != "uint8" or len(entry.shape) < 3 or entry.shape[-1] != 16:
                faults.append(
                    f"{blocks} is {entry.dtype} {list(entry.shape)}; MXFP4 is uint8 "
                    "[…, rows, groups, 16], 32 numbers to a group"
                )
            elif (factors.dtype, factors.shape) != ("uint8", entry.shape[:-1]):
                faults.append(
                    f"{scales} is {factors.dtype} {list(factors.shape)}: {blocks} needs uint8 "
                    f"{list(entry.shape[:-1])}"
                )
            else:
                *lead, rows, groups, _ = entry.shape
                found[name] = (*lead, 32 * groups, rows)
        return found

    def _unwoven(self, name: str, at: Shape, shape: Shape) -> Tensor:
        """A box of a tensor in MXFP4, whose last two dimensions lie the other way round."""
        first, last = at[-2] // 32, (at[-2] + shape[-2] - 1) // 32
        place, size = (*at[:-2], at[-1], first), (*shape[:-2], shape[-1], last - first + 1)
        raw = self._box(f"{name}{_BLOCKS}", (*place, 0), (*size, 16))
        scales = f"{name}{_SCALES}"
        factors = self._finite(scales, self._scale_values(scales, place, size))
        values = self._finite(name, _fp4(raw) * factors.unsqueeze(-1))
        return values.flatten(-2).narrow(-1, at[-2] - 32 * first, shape[-2]).mT.contiguous()

    def _told(self, name: str) -> tuple[str, Shape]:
        _, entry = self._at[name]
        scale = self._scales.get(name)
        if scale is None:
            return entry.dtype, entry.shape
        return "float32", _whole(entry.shape, packed=scale.packed)

    def _scale_of(self, name: str) -> _Scale | None:
        """How ``name`` is scaled; None for a tensor of plain numbers, and for scales themselves."""
        _, entry = self._at[name]
        found = next((s for s in _scale_names(name) if s in self._at), None)
        if entry.dtype in _FLOAT8 and not self._scales_another(name):
            return self._checked(name, found, self._block(name), packed=False)
        if entry.dtype in _PACKED and not self._scales_another(name):
            if self._config.get("expert_dtype") != "fp4":
                raise CheckpointError(
                    f"{name} holds {entry.dtype}: bytes are read as FP4 where the config says "
                    "expert_dtype = 'fp4', and not otherwise"
                )
            return self._checked(name, found, _FP4_BLOCK, packed=True)
        if found is not None and entry.dtype in _PLAIN:
            raise CheckpointError(
                f"{name} is {entry.dtype} and has a scale all the same ({found}): whether it was "
                "applied already cannot be known; remove one"
            )
        return None

    def _scales_another(self, name: str) -> bool:
        """Whether ``name`` is the scale of a tensor that is there."""
        weights = (name.removesuffix("_scale_inv"), f"{name.removesuffix('scale')}weight")
        return any(w != name and w in self._at and name in _scale_names(w) for w in weights)

    def _block(self, name: str) -> Shape:
        stated = self._quantization().get("weight_block_size")
        plain = isinstance(stated, list | tuple) and len(stated) == 2
        if not plain or not all(isinstance(n, int) and n > 0 for n in stated or ()):
            raise CheckpointError(
                f"{name} is float8, and the config does not say how many rows and columns share a "
                "scale: quantization_config.weight_block_size is needed, such as [128, 128]"
            )
        return tuple(stated or ())

    def _quantization(self) -> Mapping[str, Any]:
        given = self._config.get("quantization_config")
        return given if isinstance(given, Mapping) else {}

    def _checked(self, name: str, scale: str | None, block: Shape, *, packed: bool) -> _Scale:
        _, entry = self._at[name]
        if scale is None:
            names = " or ".join(_scale_names(name))
            raise CheckpointError(f"{name} is {entry.dtype} and its scale is missing: {names}")
        _, factors = self._at[scale]
        whole = _whole(entry.shape, packed=packed)
        expected = _blocks(whole, block)
        if factors.shape != expected:
            raise CheckpointError(
                f"{scale} has shape {list(factors.shape)}: {name} of {list(whole)} in blocks of "
                f"{block[0]} x {block[1]} needs {list(expected)}"
            )
        exponents = factors.dtype == "uint8" and self._quantization().get("scale_fmt") == "ue8m0"
        if factors.dtype not in (*_PLAIN, _EXPONENTS) and not exponents:
            raise CheckpointError(f"{scale} is {factors.dtype}, which is no type of a scale")
        return _Scale(name=scale, block=(*(1 for _ in whole[:-2]), *block), packed=packed)

    def _factors(self, scale: _Scale, at: Shape, shape: Shape) -> Tensor:
        """The factor of every element of a box."""
        first = tuple(a // b for a, b in zip(at, scale.block, strict=True))
        ends = zip(at, shape, first, scale.block, strict=True)
        size = tuple((a + n - 1) // b - f + 1 for a, n, f, b in ends)
        factors = self._finite(scale.name, self._scale_values(scale.name, first, size))
        for dim, (start, count, block) in enumerate(zip(at, shape, scale.block, strict=True)):
            factors = factors.repeat_interleave(block, dim).narrow(dim, start % block, count)
        return factors

    def _scale_values(self, name: str, at: Shape, shape: Shape) -> Tensor:
        values = self._box(name, at, shape)
        if values.dtype is torch.uint8:
            values = values.view(torch.float8_e8m0fnu)
        return values.float()

    def _unpacked(self, name: str, at: Shape, shape: Shape) -> Tensor:
        """FP4 numbers, two to a byte along the last dimension."""
        first, last = at[-1] // 2, (at[-1] + shape[-1] - 1) // 2
        box = self._box(name, (*at[:-1], first), (*shape[:-1], last - first + 1))
        return _fp4(box.view(torch.uint8)).narrow(-1, at[-1] - 2 * first, shape[-1])

    def _finite(self, name: str, box: Tensor) -> Tensor:
        check = box.float() if box.is_floating_point() and box.itemsize == 1 else box
        if box.is_floating_point() and not bool(check.isfinite().all()):
            file = self._at[f"{name}{_BLOCKS}" if name in self._woven else name][0]
            raise CheckpointError(f"{file}: {name} holds values that are not finite numbers")
        return box

    def _box(self, name: str, at: Shape, shape: Shape) -> Tensor:
        file, entry = self._at[name]
        out = torch.empty(shape, dtype=DTYPES[entry.dtype])
        chunk = Chunk(
            offset=(0,) * len(entry.shape),
            shape=entry.shape,
            file=file.name,
            start=entry.start,
            stop=entry.stop,
            crc32=0,
        )
        read_box(file.parent, chunk, entry.dtype, at, out)
        return out


def _fp4(raw: Tensor) -> Tensor:
    """Two numbers of each byte of ``raw [..., N]``, the low half first: ``[..., 2 N]`` float32."""
    halves = torch.stack((raw & 15, raw >> 4), dim=-1).flatten(-2).int()
    return torch.tensor((*_FP4, *(-v for v in _FP4)))[halves]


def _scale_names(name: str) -> Iterator[str]:
    yield f"{name}_scale_inv"
    if name.endswith(".weight"):
        yield f"{name.removesuffix('weight')}scale"


def _whole(shape: Shape, *, packed: bool) -> Shape:
    return (*shape[:-1], 2 * shape[-1]) if packed else shape


def _blocks(shape: Shape, block: Shape) -> Shape:
    return (*shape[:-2], *(math.ceil(n / b) for n, b in zip(shape[-2:], block, strict=True)))


def _entries(path: Path) -> dict[str, tuple[Path, Entry]]:
    """Every tensor's file and place."""
    named, files = _files(path)
    at: dict[str, tuple[Path, Entry]] = {}
    for file in files:
        entries, _ = read_header(file)
        for name, entry in entries.items():
            if name in at and named.get(name) is None:
                raise CheckpointError(
                    f"{name} is in {at[name][0].name} and in {file.name}, and {path} has no "
                    f"{INDEX} that says which counts"
                )
            if named.get(name, file.name) == file.name:
                at[name] = (file, entry)
    lost = [name for name in named if name not in at]
    if lost:
        raise CheckpointError(
            f"{path}: {INDEX} says that {lost[0]} is in {named[lost[0]]}, which does not hold it "
            f"({len(lost)} such)"
        )
    return at


def _files(path: Path) -> tuple[dict[str, str], list[Path]]:
    """The file of each tensor, where an index says so, and all files to read."""
    if path.is_file():
        return {}, [path]
    index = path / INDEX
    try:
        if index.is_file():
            named = dict(json.loads(index.read_bytes())["weight_map"])
            names = sorted(set(named.values()))
            missing = [n for n in names if not (path / n).is_file()]
            if missing:
                raise CheckpointError(
                    f"{path} is incomplete: {INDEX} names {len(names)} files, of which "
                    f"{len(missing)} are missing, first {missing[0]}"
                )
            return named, [path / n for n in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot read {index}: {error}") from error
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"no .safetensors files in {path}{_pickles(path)}")
    return {}, files


def _pickles(path: Path) -> str:
    """What to do where there are only files that could run code when they are read."""
    found = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in sorted(path.glob(pattern))]
    if not found:
        return ""
    return (
        f", only pickles such as {found[0]}, which are not read because they can run code; load "
        "them where you trust them and save with safe_serialization=True"
    )
