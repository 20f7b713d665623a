"""Initial values that depend on a parameter's name and the seed alone, not on the layout.

A parameter is filled row by row in blocks; each block has a generator of its own.  A rank that
holds a part draws only the blocks that touch it.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

Region = tuple[slice, ...]
"""The part of a parameter that a rank holds: one slice for each dimension."""
XIELU = {"alpha_p": math.log(math.expm1(0.8)), "alpha_n": math.log(math.expm1(0.8 - 0.5))}
"""Before softplus, which gives slopes of 0.8 on both sides (arXiv 2411.13010)."""
_BLOCK = 2**20
"""Elements drawn with one generator, rounded up to whole rows."""


def initial_values(
    name: str, shape: torch.Size, region: Region, std: float, seed: int, *, offset: float = 0.0
) -> Tensor:
    """The initial values of ``region`` of the parameter ``name``, float32 on the CPU.

    Matrices are normal with ``std``; gains (their weights plus ``offset``) and scales one; biases,
    sinks and offsets zero.  Decays of a recurrence (``A_log``) are logarithms of numbers between
    0.01 and 16, its time steps one, as ``transformers`` begins.
    """
    part = [len(range(*cut.indices(size))) for cut, size in zip(region, shape, strict=True)]
    constant = constant_of(name, offset)
    if constant is not None:
        return torch.full(part, constant)
    out = torch.empty(part)
    rows_per_block = max(1, _BLOCK // max(1, math.prod(shape[1:])))
    start, stop, _ = region[0].indices(shape[0])
    for block in range(start // rows_per_block, -(-stop // rows_per_block)):
        first = block * rows_per_block
        values = _draw(name, seed, block, (min(rows_per_block, shape[0] - first), *shape[1:]))
        low, high = max(start, first), min(stop, first + len(values))
        out[low - start : high - start] = values[(slice(low - first, high - first), *region[1:])]
    if name.endswith("A_log"):
        return (0.01 + (16 - 0.01) * torch.special.ndtr(out)).log()
    return out * std


def constant_of(name: str, offset: float = 0.0) -> float | None:
    """The value of parameters that start constant, None for those drawn at random."""
    last = name.split(".")[-1]
    parent = name.split(".")[-2] if "." in name else ""
    if last in ("gain", "dt_bias"):
        return 1.0
    if last.endswith("bias") or last in ("sinks", "base", "hc_base"):
        return 0.0
    if parent.endswith("norm"):
        return 1.0 - offset
    return {"scale": 1.0, "hc_scale": 1.0, **XIELU}.get(last)


def _draw(name: str, seed: int, block: int, shape: tuple[int, ...]) -> Tensor:
    digest = hashlib.blake2b(f"{seed}/{name}/{block}".encode(), digest_size=8).digest()
    generator = torch.Generator(device="cpu").manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(shape, generator=generator)
