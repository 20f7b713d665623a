"""The whole space of legal layouts of a model on a cluster, as arrays.

Choices that can never win are left out and said here: sequence parallelism is on wherever tensor
parallelism is (it moves the same bytes and holds less); optimizer states are always sharded (ZeRO-1
moves the same bytes as an all-reduce and holds less); the number of
recomputed layers of a pipeline rank goes in even strides where a rank holds many; hybrid sharding
spans one scale-up domain or all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from krzem.layout.layout import (
    CONTEXTS,
    RECOMPUTES,
    SCHEDULES,
    ContextParallel,
    Layouts,
    Recompute,
    Schedule,
)
from krzem.layout.rules import Problem, legal


class Runs(Protocol):
    """What an engine can run, as far as it limits a search (``engine.description.Runs``)."""

    @property
    def schedules(self) -> tuple[str, ...]: ...
    @property
    def zero(self) -> tuple[int, ...]: ...
    @property
    def contexts(self) -> tuple[str, ...]: ...
    @property
    def recompute(self) -> tuple[str, ...]: ...
    @property
    def uneven_stages(self) -> bool: ...
    @property
    def max_tp(self) -> int | None: ...
    @property
    def max_pp(self) -> int | None: ...
    @property
    def max_ep(self) -> int | None: ...


_COUNTS, _COUNTS_MOE = 96, 8
"""Most choices for how many layers of a pipeline rank are recomputed whole; expert parallelism
multiplies the space of mixtures, so that theirs goes in larger strides."""


_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Micro-batches that are tried, in sequences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Limits of a search; the defaults span everything that is legal and sensible."""

    max_tp: int = 64
    max_cp: int = 64
    max_pp: int = 4096
    max_ep: int = 4096
    max_micro_batch: int = 16
    schedules: tuple[Schedule, ...] = tuple(Schedule)
    zero: tuple[int, ...] = (1, 2, 3)
    recompute: tuple[Recompute, ...] = tuple(Recompute)
    contexts: tuple[ContextParallel, ...] = tuple(ContextParallel)
    uneven: bool = True
    """Whether the end stages may hold another number of layers than the others."""
    etps: tuple[str, ...] = ("1", "tp")
    """Expert tensor parallelism that is tried: 1, or as wide as tensor parallelism."""
    offload: tuple[bool, ...] = (False,)
    limits: tuple[str, ...] = ()
    """Conditions on layouts that a search keeps to (``tp <= 8``)."""
    domain: int = 8
    """Devices per scale-up domain: the size of hybrid shards."""
    min_context_tokens: int | None = None
    """Context parallelism never cuts a sequence below this; None: 1,024 tokens, or 2,048 for
    mixtures of experts, which spread over expert-parallel ranks instead."""

    @classmethod
    def of_engine(cls, runs: Runs, domain: int) -> Space:
        """What an engine can run, in scale-up domains of ``domain`` devices."""
        return cls(
            max_tp=min(runs.max_tp or 64, 64),
            max_cp=64 if runs.contexts else 1,
            max_pp=runs.max_pp or 4096,
            max_ep=runs.max_ep or 4096,
            schedules=tuple(Schedule(s) for s in runs.schedules),
            zero=tuple(z for z in runs.zero if z) or runs.zero,
            recompute=tuple(Recompute(r) for r in runs.recompute),
            contexts=tuple(ContextParallel(c) for c in runs.contexts),
            uneven=runs.uneven_stages,
            domain=domain,
        )

    def shortest(self, moe: bool) -> int:
        """The limit in force."""
        return self.min_context_tokens or (2048 if moe else 1024)


def divisors(number: int) -> list[int]:
    """All divisors in ascending order."""
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def layouts(problem: Problem, space: Space) -> Iterator[Layouts]:
    """Blocks of legal layouts: one block for each (tensor, context, pipeline) degree."""
    arch = problem.architecture
    for tp in divisors(problem.devices):
        if tp > space.max_tp or any(h % tp for h in problem.heads):
            continue
        for cp in divisors(problem.devices // tp):
            if cp > space.max_cp or (
                cp > 1 and problem.sequence < cp * space.shortest(arch.is_moe)
            ):
                continue
            for pp in divisors(problem.devices // (tp * cp)):
                dp = problem.devices // (tp * cp * pp)
                if pp > min(arch.layers, space.max_pp) or problem.global_batch % dp:
                    continue
                block = _block(problem, space, tp, cp, pp, dp)
                if block is None:
                    continue
                block = block.take(legal(problem, block))
                if len(block):
                    yield block


def _block(p: Problem, s: Space, tp: int, cp: int, pp: int, dp: int) -> Layouts | None:
    """Every choice of what the degrees leave open; None where there is none of something."""
    axes: list[Sequence[tuple[int, ...]]] = [
        _micro_batches(p, s, dp),
        _schedules(p, s, pp),
        _expert_degrees(p, s, tp, tp * cp * dp),
        _zero(s, pp, dp * cp, tp),
        _recompute(p, s, pp),
        _ends(p, s, pp),
        [(CONTEXTS.index(kind),) for kind in s.contexts] if cp > 1 else [(0,)],
        [(int(o),) for o in s.offload],
    ]
    if not all(axes):
        return None
    columns = _product(axes)
    n = len(columns[0])
    micro, schedule, vpp, ep, etp, zero, shard, recompute, rlayers, first, last, kind, offload = (
        columns
    )

    def same(value: int) -> np.ndarray:
        return np.full(n, value, dtype=np.int64)

    return Layouts(
        tp=same(tp), cp=same(cp), pp=same(pp), dp=same(dp), micro_batch=micro, vpp=vpp, ep=ep,
        etp=etp, zero=zero, shard=shard, sequence_parallel=same(1), schedule=schedule,
        first_stage_layers=first, last_stage_layers=last, recompute=recompute,
        recompute_layers=rlayers, context_parallel=kind, offload_optimizer=offload,
    )  # fmt: skip


def _product(axes: Sequence[Sequence[tuple[int, ...]]]) -> list[np.ndarray]:
    """Columns of the cross product of axes whose entries are tuples."""
    sizes = [len(a) for a in axes]
    index = np.indices(sizes).reshape(len(axes), -1)
    out = []
    for i, axis in enumerate(axes):
        table = np.array(axis, dtype=np.int64).reshape(len(axis), -1)
        out.extend(table[index[i]].T)
    return out


def _micro_batches(p: Problem, s: Space, dp: int) -> list[tuple[int]]:
    most = min(s.max_micro_batch, p.global_batch // dp)
    local = p.global_batch // dp
    return [(b,) for b in _SIZES if b <= most and local % b == 0]


def _schedules(p: Problem, s: Space, pp: int) -> list[tuple[int, int]]:
    if pp == 1:
        return [(SCHEDULES.index(Schedule.ONE_F_ONE_B), 1)]
    found = []
    for schedule in s.schedules:
        code = SCHEDULES.index(schedule)
        if schedule is Schedule.INTERLEAVED:
            found += [(code, v) for v in _chunk_counts(p, s, pp)]
        elif schedule in (Schedule.ZB_V, Schedule.DUALPIPE_V):
            found.append((code, 2))
        else:
            found.append((code, 1))
    return found


def _chunk_counts(p: Problem, s: Space, pp: int) -> list[int]:
    """Chunks a rank may be cut into: those that spread the layers evenly over all chunks.

    Where embedding and loss may have a chunk of their own, they count as a layer each.
    """
    layers = p.architecture.layers
    even = {
        v
        for extra in range(p.ends + 1)
        for v in range(2, (layers + extra) // pp + 1)
        if (layers + extra) % (pp * v) == 0
    }
    some = range(2, min(layers // pp, 4) + 1) if s.uneven else ()
    return sorted(even) or list(some)


def _expert_degrees(p: Problem, s: Space, tp: int, ranks: int) -> list[tuple[int, int]]:
    if not p.experts:
        return [(1, 1)]
    etps = sorted({tp if kind == "tp" else 1 for kind in s.etps})
    degrees = [e for e in divisors(p.experts) if e <= s.max_ep]
    return [(e, t) for e in degrees for t in etps if ranks % (e * t) == 0]


def _zero(s: Space, pp: int, ranks: int, tp: int) -> list[tuple[int, int]]:
    if ranks == 1:
        return [(min(s.zero, key=lambda z: abs(z - 1)), 0)]
    stages = [(z, 0) for z in s.zero if not (z == 2 and pp > 1)]
    local = s.domain // tp
    if 3 in s.zero and 1 < local < ranks and ranks % local == 0:
        stages.append((3, local))
    return stages


def _ends(p: Problem, s: Space, pp: int) -> list[tuple[int, int]]:
    """Layers of the first and last rank: even, or one less where embedding and logits weigh."""
    even = -(-p.architecture.layers // pp)
    if pp < 4 or even < 2 or p.architecture.layers % pp or not s.uneven:
        return [(-1, -1)]
    return [(-1, -1), (-1, even - 1), (even - 1, even - 1)]


def _recompute(p: Problem, s: Space, pp: int) -> list[tuple[int, int]]:
    found = [(RECOMPUTES.index(r), -1) for r in s.recompute if r is not Recompute.FULL]
    if Recompute.FULL in s.recompute:
        per_rank = -(-p.architecture.layers // pp)
        kinds = min(per_rank, _COUNTS_MOE if p.experts else _COUNTS)
        counts = {round(per_rank * (i + 1) / kinds) for i in range(kinds)}
        code = RECOMPUTES.index(Recompute.FULL)
        found += [(code, -1 if c == per_rank else c) for c in sorted(counts)]
    return found
