"""Many layouts at once: a struct of arrays with one entry per layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from krzem.layout.cells import Cells
from krzem.layout.layout import ContextParallel, Layout, Recompute, Schedule

Array = Any

SCHEDULES = tuple(Schedule)
RECOMPUTES = tuple(Recompute)
CONTEXTS = tuple(ContextParallel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layouts:
    """Arrays ``[N]``; see :class:`krzem.layout.layout.Layout` for the meaning of each field.

    ``schedule``, ``recompute`` and ``context_parallel`` are indices into ``SCHEDULES``,
    ``RECOMPUTES`` and ``CONTEXTS``; -1 in ``first_stage_layers``, ``last_stage_layers`` and
    ``recompute_layers`` stands for None.
    """

    tp: Array
    cp: Array
    pp: Array
    vpp: Array
    ep: Array
    etp: Array
    dp: Array
    micro_batch: Array
    zero: Array
    shard: Array
    sequence_parallel: Array
    schedule: Array
    first_stage_layers: Array
    last_stage_layers: Array
    recompute: Array
    recompute_layers: Array
    context_parallel: Array
    offload_optimizer: Array

    def __len__(self) -> int:
        return int(np.size(self.tp))

    def take(self, index: Array) -> Layouts:
        """The layouts at ``index`` (integers, a mask or a slice)."""
        return Layouts(**{f.name: getattr(self, f.name)[index] for f in fields(Layouts)})

    def at(self, index: int) -> Layout:
        """One layout as a value."""
        v = {f.name: int(getattr(self, f.name)[index]) for f in fields(Layouts)}
        return Layout(
            tp=v["tp"], cp=v["cp"], pp=v["pp"], vpp=v["vpp"], ep=v["ep"], etp=v["etp"],
            dp=v["dp"], micro_batch=v["micro_batch"], zero=v["zero"], shard=v["shard"],
            sequence_parallel=bool(v["sequence_parallel"]),
            schedule=SCHEDULES[v["schedule"]],
            first_stage_layers=_optional(v["first_stage_layers"]),
            last_stage_layers=_optional(v["last_stage_layers"]),
            recompute=RECOMPUTES[v["recompute"]],
            recompute_layers=_optional(v["recompute_layers"]),
            context_parallel=CONTEXTS[v["context_parallel"]],
            offload_optimizer=bool(v["offload_optimizer"]),
        )  # fmt: skip


def _optional(value: int) -> int | None:
    return None if value < 0 else value


def _code(layout: Layout, name: str) -> int:
    value = getattr(layout, name)
    if value is None:
        return -1
    for names in (SCHEDULES, RECOMPUTES, CONTEXTS):
        if value in names:
            return names.index(value)
    return int(value)


def pack(layouts: Sequence[Layout]) -> Layouts:
    """Layouts as arrays."""
    return Layouts(
        **{
            f.name: np.array([_code(x, f.name) for x in layouts], dtype=np.int64)
            for f in fields(Layouts)
        }
    )


def join(parts: Sequence[Layouts]) -> Layouts:
    """Several blocks of layouts as one."""
    return Layouts(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Layouts)}
    )


def cells(layouts: Layouts) -> Cells:
    """The cell of every layout, one to one."""
    return Cells(
        tp=layouts.tp.astype(float),
        cp=layouts.cp.astype(float),
        ep=layouts.ep.astype(float),
        etp=layouts.etp.astype(float),
        micro_batch=layouts.micro_batch.astype(float),
        sequence_parallel=layouts.sequence_parallel.astype(float),
        ring=(layouts.context_parallel == 0).astype(float),
        gather=(layouts.context_parallel == 2).astype(float),
    )


def unique_cells(layouts: Layouts, which: Array = 0) -> tuple[Cells, np.ndarray, np.ndarray]:
    """The distinct cells; for every layout the index of its cell; for every cell a layout.

    ``which`` keeps layouts apart that are run under other switches (an index each, or one for all).
    """
    key = np.zeros(len(layouts), dtype=np.int64) + which
    for name in ("tp", "cp", "ep", "etp", "micro_batch", "sequence_parallel", "context_parallel"):
        values, codes = np.unique(getattr(layouts, name), return_inverse=True)
        key = key * len(values) + codes
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    return cells(layouts.take(first)), inverse, first
