"""AdamW, and Muon for matrices, on the parts of parameters that a rank holds; balancing biases.

State is kept per parameter under its logical name, as parts of the same shape as the parameter's,
so that a checkpoint can treat both alike.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from krzem.errors import GoalError
from krzem.train.model.mixture import Router
from krzem.train.model.weights import Region
from krzem.train.optim.muon import is_matrix, momentum_step, orthogonal_update, row_groups
from krzem.train.parallel.collectives import ALONE, Axis, exchange_rows
from krzem.train.parallel.held import Held

# Who orthogonalises which matrix: the work of Muon, shared out over the ranks of a stage
# ---------------------------------------------------------------------------------------


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


# AdamW, and Muon for matrices, on the parts of parameters that a rank holds
# --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """Constants of the update."""

    kind: str = "adamw"
    """adamw, or muon (matrices by Muon, the rest by AdamW)."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled; matrices only."""
    momentum: float = 0.95
    """Of Muon."""
    clip: float = 1.0
    """Largest global gradient norm; 0 leaves gradients as they are."""

    def __post_init__(self) -> None:
        if self.kind not in ("adamw", "muon"):
            raise GoalError(f"optimizer {self.kind!r} is not one of adamw, muon")


class Optimizer:
    """Updates ``held`` in place.

    ``state[key][name]`` are the parts of ``exp_avg`` and ``exp_avg_sq`` (AdamW) or ``momentum``
    (Muon); ``steps`` counts updates.  ``holders`` are the ranks that hold parts of the same
    parameters; each orthogonalises a share of the matrices.
    """

    def __init__(
        self,
        held: tuple[Held, ...],
        config: OptimizerConfig,
        *,
        groups: int = 1,
        holders: Axis = ALONE,
    ) -> None:
        self.held, self.config, self.groups = held, config, groups
        self.steps = 0
        self.state: dict[str, dict[str, Tensor]] = {}
        for key, item in self.items():
            names = ("momentum",) if self.uses_muon(item) else ("exp_avg", "exp_avg_sq")
            self.state[key] = {n: torch.zeros_like(item.part) for n in names}
        self._sharing = Sharing([h for h in held if self.uses_muon(h)], holders)

    def items(self) -> list[tuple[str, Held]]:
        """Every held parameter with the key of its state: its name, copies marked."""
        return [(h.name if h.primary else f"copy:{h.name}", h) for h in self.held]

    def uses_muon(self, held: Held) -> bool:
        """Whether Muon updates this parameter."""
        return self.config.kind == "muon" and is_matrix(held.name, held.parameter)

    @torch.no_grad()
    def step(self, rate: float, gradient_norm: float) -> None:
        """One update with learning rate ``rate``; gradients are clipped to the configured norm."""
        self.steps += 1
        reached = [(k, h) for k, h in self.items() if h.grad is not None]
        matrices = [(k, h) for k, h in reached if self.uses_muon(h)]
        rest = [(k, h) for k, h in reached if not self.uses_muon(h)]
        factor, on_cpu = self._clip_factor(gradient_norm), self._device.type == "cpu"
        # On processors AdamW scales gradients while it reads them: a pass less over all of them.
        clipped = matrices if on_cpu else reached
        if factor != 1.0 and clipped:
            torch._foreach_mul_([h.grad for _, h in clipped if h.grad is not None], factor)
        self._muon(matrices, rate)
        left = factor if on_cpu else 1.0
        for decayed in (True, False):
            self._adamw([(k, h) for k, h in rest if _decays(h) is decayed], rate, decayed, left)

    @property
    def _device(self) -> torch.device:
        return self.held[0].part.device if self.held else torch.device("cpu")

    def _clip_factor(self, norm: float) -> float:
        """What gradients of this global norm are multiplied by."""
        limit = self.config.clip
        return limit / (norm + 1e-6) if limit and norm > limit else 1.0

    def _muon(self, items: list[tuple[str, Held]], rate: float) -> None:
        directions = {}
        for key, item in items:
            assert item.grad is not None
            momentum = self.state[key]["momentum"]
            directions[item.name] = momentum_step(momentum, item.grad, self.config.momentum)
        updates = self._sharing.update(
            directions, lambda name, x: orthogonal_update(x, row_groups(name, self.groups))
        )
        for _, item in items:
            item.part.mul_(1 - rate * self.config.weight_decay)
            item.part.sub_(updates[item.name], alpha=rate)

    def _adamw(
        self, items: list[tuple[str, Held]], rate: float, decayed: bool, factor: float
    ) -> None:
        """Update ``items``, their gradients first multiplied by ``factor`` (on processors)."""
        if not items:
            return
        c, device = self.config, items[0][1].part.device
        steps = [torch.tensor(float(self.steps - 1), device=device) for _ in items]
        adamw(
            [h.part for _, h in items],
            [h.grad for _, h in items],  # type: ignore[misc]
            [self.state[k]["exp_avg"] for k, _ in items],
            [self.state[k]["exp_avg_sq"] for k, _ in items],
            [],
            steps,
            fused=device.type in ("cpu", "cuda"),
            foreach=device.type not in ("cpu", "cuda"),
            amsgrad=False,
            beta1=c.beta1,
            beta2=c.beta2,
            lr=rate,
            weight_decay=c.weight_decay if decayed else 0.0,
            eps=c.eps,
            maximize=False,
            grad_scale=None if factor == 1.0 else torch.tensor(1 / factor),
        )


def _decays(held: Held) -> bool:
    """Weight decay acts on matrices and the embedding, not on gains, biases and sinks."""
    return len(held.placement.shape) >= 2 and not held.name.endswith("bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLoad:
    """How evenly one router spread its choices in one step."""

    layer: str
    peak: float
    """The fullest expert's share over the mean share; 1 is perfect."""
    idle: float
    """Share of experts that got nothing."""


@torch.no_grad()
def update_biases(
    routers: Mapping[str, Router], loads: Mapping[str, Tensor], rate: float
) -> list[ExpertLoad]:
    """Move each bias by ``rate`` against its expert's excess (DeepSeek-V3, section 2.1.2).

    ``loads`` are choices per expert over the global batch.  Hash-routed layers have no bias.
    """
    shares = []
    for name, router in routers.items():
        load = loads[name].float()
        mean = load.mean()
        if router.shape.router_bias and rate:
            router.e_score_correction_bias += rate * torch.sign(mean - load)
        shares += [load.max() / mean.clamp(min=1e-9), (load == 0).float().mean()]
    # The host waits once, for all routers together.
    read = torch.stack(shares).tolist() if shares else []
    return [
        ExpertLoad(layer=name, peak=peak, idle=idle)
        for name, peak, idle in zip(routers, read[::2], read[1::2], strict=True)
    ]
