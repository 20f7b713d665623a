"""Statistics of a tensor that arrives in parts: over micro-batches, and over ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from krzem.witness.positions import Positions

_CHECKSUM_BITS = 52
"""So many bits of a sum of 64 are kept: a float holds them all."""
_MULTIPLIERS = (-7046029254386353131, -4417276706812531889)
"""Odd numbers of 64 bits that spread the index of an element over all bits."""
_PIECE = 1 << 22
"""Elements of a checksum at a time."""
_SHORT = 1 << 10
"""Elements of a sum in float32."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """Sums over the finite elements seen, counts of the others, and the samples met so far.

    A sample may be met more than once, where several ranks compute the same sequence: its mean is
    taken, and how far apart the ranks are is kept.
    """

    positions: Positions
    """[K, axes] in the logical tensor."""
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    absmax: float = 0.0
    zero: float = 0.0
    inf: float = 0.0
    nan: float = 0.0
    checksum: int = 0
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    met: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    low: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    high: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if not self.sums.size:
            number = len(self.positions)
            self.sums, self.met = np.zeros(number), np.zeros(number, np.int64)
            self.low, self.high = np.full(number, np.inf), np.full(number, -np.inf)

    def add(self, values: Tensor) -> None:
        """Count a part."""
        if not values.numel():
            return
        x = values.detach().float()
        bad = torch.stack((x.isinf().sum(), x.isnan().sum())).tolist()
        if any(bad):
            x = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
        absmax = x.abs().amax()
        total, squares = _sums(x, absmax)
        self.count += x.numel()
        self.total += total
        self.squares += squares
        self.absmax = max(self.absmax, absmax.item())
        self.zero += (x == 0).sum().item() - sum(bad)
        self.inf += bad[0]
        self.nan += bad[1]

    def sample(self, values: Tensor, region: tuple[slice, ...]) -> None:
        """Take the samples that lie in ``region``, of which ``values`` is the content."""
        if not values.numel():
            return
        start = np.array([cut.start for cut in region], np.int64)
        stop = np.array([cut.stop for cut in region], np.int64)
        here = np.flatnonzero(((self.positions >= start) & (self.positions < stop)).all(axis=1))
        self.sample_at(values, here, self.positions[here] - start)

    def sample_at(self, values: Tensor, which: Positions, where: Positions) -> None:
        """Take the samples numbered ``which`` from the places ``where [n, axes]`` of ``values``."""
        if not which.size:
            return
        index = tuple(torch.from_numpy(where[:, a].copy()) for a in range(where.shape[1]))
        index = tuple(i.to(values.device) for i in index)
        picked = values.detach()[index] if index else values.detach().reshape(1)
        found = picked.float().cpu().double().numpy()
        self.sums[which] += found
        self.met[which] += 1
        self.low[which] = np.fmin(self.low[which], found)
        self.high[which] = np.fmax(self.high[which], found)

    def check(self, values: Tensor, shape: tuple[int, ...], region: tuple[slice, ...]) -> None:
        """Add every bit of a part of a tensor of ``shape`` to the checksum.

        A sum of whole numbers does not depend on its order, so every layout gives the same.
        """
        self.checksum = (self.checksum + checksum(values, shape, region)) % (1 << 64)

    def merge(self, other: Tally) -> None:
        """Add what another rank saw."""
        for name in ("count", "total", "squares", "zero", "inf", "nan"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.checksum = (self.checksum + other.checksum) % (1 << 64)
        self.absmax = max(self.absmax, other.absmax)
        self.sums, self.met = self.sums + other.sums, self.met + other.met
        self.low = np.fmin(self.low, other.low)
        self.high = np.fmax(self.high, other.high)

    def samples(self, scale: float = 1.0) -> NDArray[np.float32]:
        """The sampled values, times ``scale``."""
        mean = self.sums / np.maximum(self.met, 1)
        return (mean * scale).astype(np.float32)

    def activation(self, copies: int = 1, scale: float = 1.0) -> dict[str, float]:
        """Statistics of an activation, or of its gradient, of which there were ``copies``."""
        n = max(1, self.count)
        rms = math.sqrt(self.squares / n) * scale
        found = {
            "mean": self.total / n * scale,
            "rms": rms,
            "absmax": self.absmax * scale,
            "zero": self.zero / n,
            "count": self.count / copies,
            "inf": self.inf / copies,
            "nan": self.nan / copies,
        }
        several = (self.met > 1) & np.isfinite(self.low) & np.isfinite(self.high)
        if several.any():
            apart = float((self.high[several] - self.low[several]).max())
            found["ranks"] = apart * scale / max(rms, 1e-30)
        return found

    def tensor(self) -> dict[str, float]:
        """Statistics of a parameter, or of its gradient."""
        return {"norm": math.sqrt(self.squares), "inf": self.inf, "nan": self.nan}

    def checked(self) -> dict[str, float]:
        """The same with the checksum."""
        return {**self.tensor(), "checksum": float(self.checksum >> (64 - _CHECKSUM_BITS))}


def _sums(x: Tensor, absmax: Tensor) -> tuple[float, float]:
    """Sum and sum of squares, the same in whatever parts a tensor comes.

    A long sum in float32 loses small addends beside large ones, and squares of small numbers are
    none (moments of 1e-21 have none at all), by as much as 1e-4 of a norm.  Short sums of scaled
    values lose 1e-7; those of them are added on the host, since not every device has float64.
    """
    scale = absmax.clamp_min(torch.finfo(x.dtype).tiny)
    flat = x.reshape(-1)
    short = F.pad(flat, (0, -flat.numel() % _SHORT)).view(-1, _SHORT) / scale
    sums, norms = torch.stack((short.sum(1), torch.linalg.vector_norm(short, dim=1))).cpu().double()
    by = float(scale)
    return float(sums.sum()) * by, float((norms * norms).sum()) * by * by


def checksum(values: Tensor, shape: tuple[int, ...], region: tuple[slice, ...]) -> int:
    """The sum, modulo 2^64, of every element's bits times an odd number made from its index.

    ``values`` is the content of ``region`` in a tensor of ``shape``; parts of one tensor add up to
    the checksum of the whole.  Computed on the host, where every whole number of 64 bits is exact.
    """
    flat = values.detach().reshape(-1)
    extents = tuple(cut.stop - cut.start for cut in region)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    total = 0
    for start in range(0, flat.numel(), _PIECE):
        piece = flat[start : start + _PIECE].float().cpu().contiguous()
        own = torch.arange(start, start + len(piece), dtype=torch.int64)
        index, inside = torch.zeros_like(own), own
        for axis in reversed(range(len(extents))):
            place = inside % extents[axis] + (region[axis].start or 0)
            index += place * strides[axis]
            inside = inside // extents[axis]
        mixed = index * _MULTIPLIERS[0]
        mixed = (mixed ^ (mixed >> 29)) * _MULTIPLIERS[1] | 1
        total += int((piece.view(torch.int32).to(torch.int64) * mixed).sum())
    return total % (1 << 64)
