"""Who orthogonalises which matrix: the work of Muon, shared out over the ranks of a stage.

A matrix is computed by one of the ranks that hold a part of it, or a copy.  The parts travel to
that rank, and its result travels back in parts: two exchanges a step for all matrices together,
and none for a matrix that one rank holds alone.

Shape letters: R rows and C columns of a matrix.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from krzem.train.model.initial import Region
from krzem.train.parallel.axis import Axis
from krzem.train.parallel.collectives import exchange_rows
from krzem.train.parallel.held import Held


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A parameter of two axes, or one index of the first axis of a larger one (an expert)."""

    name: str
    index: int | None
    shape: tuple[int, ...]
    """``[..., R, C]``; more axes are matrices that stay together (gate and value)."""
    regions: tuple[Region | None, ...]
    """The part that each rank holds, None where it holds nothing."""

    @property
    def cost(self) -> int:
        """Multiplications of one Newton-Schulz step, up to a factor."""
        low, high = sorted(self.shape[-2:])
        return math.prod(self.shape[:-2]) * low * low * high

    @property
    def holders(self) -> list[int]:
        """Ranks that need the result."""
        return [rank for rank, region in enumerate(self.regions) if region is not None]

    @property
    def senders(self) -> list[int]:
        """Ranks whose parts make the whole: of equal parts the first."""
        return [rank for rank in self.holders if self.regions.index(self.regions[rank]) == rank]

    def part_of(self, tensor: Tensor, rank: int, origin: int) -> Tensor:
        """Rank ``rank``'s part of this matrix in what it holds of the parameter, sharing memory.

        ``origin`` is the first index that the rank holds.
        """
        return tensor if self.index is None else tensor[self.index - origin]


class Sharing:
    """The division of ``held`` matrices over the ranks of ``axis``, the same on each of them."""

    def __init__(self, held: Sequence[Held], axis: Axis) -> None:
        self.axis = axis
        self.held = {h.name: h for h in held}
        regions = _all_regions(held, axis)
        self.matrices = [m for h in held for m in _matrices(h, regions[h.name])]
        self.owners = _divide(self.matrices, axis.size)

    def update(
        self, parts: Mapping[str, Tensor], compute: Callable[[str, Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """``compute(name, [n, ..., R, C])`` of the whole matrices whose ``parts`` ranks hold.

        ``parts`` has the same names on every rank.  Returns this rank's parts of the results.
        """
        if not parts:
            return {}
        jobs = [(m, o) for m, o in zip(self.matrices, self.owners, strict=True) if m.name in parts]
        whole = self._collect(jobs, parts)
        results = _computed([m for m, o in jobs if o == self.axis.rank], whole, compute)
        out = {name: torch.empty_like(part) for name, part in parts.items()}
        self._hand_back(jobs, results, out)
        return out

    def _origin(self, name: str) -> int:
        return self.held[name].placement.region[0].start or 0

    def _own(self, matrix: Matrix, tensors: Mapping[str, Tensor]) -> Tensor:
        """This rank's part of ``matrix`` among its parts of parameters."""
        return matrix.part_of(tensors[matrix.name], self.axis.rank, self._origin(matrix.name))

    def _collect(self, jobs: list[tuple[Matrix, int]], parts: Mapping[str, Tensor]) -> list[Tensor]:
        """The matrices that this rank owns, made from all ranks' parts, in the order of jobs."""
        me, like = self.axis.rank, next(iter(parts.values()))
        send: list[list[Tensor]] = [[] for _ in range(self.axis.size)]
        sizes = [0] * self.axis.size
        for matrix, owner in jobs:
            if me in matrix.senders:
                send[owner].append(self._own(matrix, parts).reshape(-1))
            if owner == me:
                for rank in matrix.senders:
                    sizes[rank] += _size(matrix.regions[rank])
        arrived = _exchange(send, sizes, self.axis, like)
        whole = []
        for matrix, owner in jobs:
            if owner == me:
                full = like.new_empty(matrix.shape)
                for rank in matrix.senders:
                    target = full[matrix.regions[rank] or ()]
                    target.copy_(arrived[rank].take(target.numel()).view(target.shape))
                whole.append(full)
        return whole

    def _hand_back(
        self, jobs: list[tuple[Matrix, int]], results: list[Tensor], out: dict[str, Tensor]
    ) -> None:
        """Give every rank its parts of the results that this rank computed."""
        me, like = self.axis.rank, next(iter(out.values()))
        send: list[list[Tensor]] = [[] for _ in range(self.axis.size)]
        sizes, done = [0] * self.axis.size, iter(results)
        for matrix, owner in jobs:
            if owner == me:
                full = next(done)
                for rank in matrix.holders:
                    send[rank].append(full[matrix.regions[rank] or ()].reshape(-1))
            if me in matrix.holders:
                sizes[owner] += _size(matrix.regions[me])
        arrived = _exchange(send, sizes, self.axis, like)
        for matrix, owner in jobs:
            if me in matrix.holders:
                target = self._own(matrix, out)
                target.copy_(arrived[owner].take(target.numel()).view(target.shape))


class _Reader:
    """Reads a flat tensor from front to back."""

    def __init__(self, data: Tensor) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> Tensor:
        self.at += count
        return self.data[self.at - count : self.at]


def _exchange(
    send: list[list[Tensor]], receive: list[int], axis: Axis, like: Tensor
) -> list[_Reader]:
    """What each rank sent to this one; ``receive[i]`` numbers come from rank i."""
    lengths = [sum(t.numel() for t in row) for row in send]
    flat = [t for row in send for t in row]
    joined = torch.cat(flat) if flat else like.new_empty(0)
    arrived = exchange_rows(joined, axis, lengths, receive)
    return [_Reader(piece) for piece in arrived.split(receive)]


def _computed(
    matrices: list[Matrix], whole: list[Tensor], compute: Callable[[str, Tensor], Tensor]
) -> list[Tensor]:
    """The results in order; matrices of one parameter are computed together."""
    together: dict[str, list[int]] = defaultdict(list)
    for place, matrix in enumerate(matrices):
        together[matrix.name].append(place)
    results: dict[int, Tensor] = {}
    for name, places in together.items():
        stacked = compute(name, torch.stack([whole[i] for i in places]))
        results.update(zip(places, stacked.unbind(0), strict=True))
    return [results[i] for i in range(len(matrices))]


def _size(region: Region | None) -> int:
    return math.prod(s.stop - s.start for s in region or ())


def _all_regions(held: Sequence[Held], axis: Axis) -> dict[str, list[Region]]:
    """The region of each parameter on every rank of its stage: a matter of the layout alone."""
    return {h.name: [h.placement.region_of(rank) for rank in range(axis.size)] for h in held}


def _matrices(held: Held, regions: list[Region]) -> list[Matrix]:
    """The matrices of one parameter with each rank's part."""
    shape = tuple(held.placement.shape)
    if len(shape) == 2:
        parts = tuple(r if _size(r) else None for r in regions)
        return [Matrix(name=held.name, index=None, shape=shape, regions=parts)]
    return [
        Matrix(
            name=held.name,
            index=index,
            shape=shape[1:],
            regions=tuple(
                r[1:] if r[0].start <= index < r[0].stop and _size(r) else None for r in regions
            ),
        )
        for index in range(shape[0])
    ]


def _divide(matrices: list[Matrix], ranks: int) -> list[int]:
    """An owner for each matrix among its holders: the costliest first, to the least loaded."""
    loads, owners = [0] * ranks, [0] * len(matrices)
    for place in sorted(range(len(matrices)), key=lambda i: (-matrices[i].cost, i)):
        owner = min(matrices[place].holders, key=lambda rank: (loads[rank], rank))
        loads[owner] += matrices[place].cost
        owners[place] = owner
    return owners
