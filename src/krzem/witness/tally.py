"""Statistics of a tensor that arrives in parts: over micro-batches, and over ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from krzem.witness.positions import Positions


@dataclass(slots=True, kw_only=True)
class Tally:
    """Sums over the finite elements seen, counts of the others, and the samples met so far."""

    positions: Positions
    """[K, axes] in the logical tensor."""
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    absmax: float = 0.0
    zero: float = 0.0
    inf: float = 0.0
    nan: float = 0.0
    samples: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        if not self.samples.size:
            self.samples = np.zeros(len(self.positions))

    def add(self, values: Tensor) -> None:
        """Count a part."""
        if not values.numel():
            return
        x = values.detach().float()
        bad = torch.stack((x.isinf().sum(), x.isnan().sum())).tolist()
        if any(bad):
            x = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
        norm = torch.linalg.vector_norm(x)
        found = torch.stack((x.sum(), norm, x.abs().amax(), (x == 0).sum().float())).tolist()
        self.count += x.numel()
        self.total += found[0]
        self.squares += found[1] ** 2
        self.absmax = max(self.absmax, found[2])
        self.zero += found[3] - sum(bad)
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
        self.samples[which] = picked.double().cpu().numpy() if picked.device.type == "cpu" else (
            picked.float().cpu().double().numpy()
        )  # fmt: skip

    def merge(self, other: Tally) -> None:
        """Add what another rank saw; each sample was met by one of them."""
        for name in ("count", "total", "squares", "zero", "inf", "nan"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.absmax = max(self.absmax, other.absmax)
        self.samples = self.samples + other.samples

    def activation(self) -> dict[str, float]:
        """Statistics of an activation, or of its gradient."""
        n = max(1, self.count)
        return {
            "mean": self.total / n,
            "rms": math.sqrt(self.squares / n),
            "absmax": self.absmax,
            "zero": self.zero / n,
            "inf": self.inf,
            "nan": self.nan,
        }

    def tensor(self) -> dict[str, float]:
        """Statistics of a parameter, or of its gradient."""
        return {"norm": math.sqrt(self.squares), "inf": self.inf, "nan": self.nan}
