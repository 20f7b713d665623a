"""All cases of a table evaluated at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from krzem.accuracy.case import Case
from krzem.cost.assemble import Situation, machine
from krzem.cost.coefficients import Coefficients
from krzem.cost.engines import engines
from krzem.cost.layers import layer_seconds
from krzem.cost.machine import stack as stack_machines
from krzem.cost.memory import (
    MemoryBytes,
    StateSizes,
    fits_probability,
    low_bytes,
    memory_bytes,
    stored_bytes,
)
from krzem.cost.step import Optim, StepSeconds, step_seconds
from krzem.errors import UnknownFactError
from krzem.layout.arrays import Layouts, cells, pack
from krzem.layout.layout import Recompute
from krzem.layout.precision import Precision
from krzem.model.table import ModelTable, stack, tabulate

IMPOSSIBLE = 0.05
"""Chance of fitting under which a layout counts as impossible."""


STEPS = ((Recompute.MODULES, 1.0), (Recompute.FULL, 0.5), (Recompute.FULL, 1.0))
"""What is recomputed, and in which share of the layers, one after the other until it fits."""


@dataclass(frozen=True, slots=True)
class Batch:
    """N cases as arrays."""

    cases: tuple[Case, ...]
    table: ModelTable
    layouts: Layouts
    situations: tuple[Situation, ...]
    kinds: tuple[Situation, ...]
    """The different ones among ``situations``."""
    kind: np.ndarray
    """[N] which of ``kinds`` each case is in."""
    global_batch: np.ndarray


def situation(case: Case) -> Situation:
    """The situation of a case; raises UnknownFactError where a needed quantity is not known."""
    d = case.device
    needed = {
        "memory bandwidth": d.memory_bytes_per_s,
        "memory capacity": d.memory_bytes,
        "scale-up bandwidth": d.scale_up_bytes_per_s or (1.0 if case.devices == 1 else None),
    }
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise UnknownFactError(f"{d.id}: not published: {', '.join(missing)}")
    node = case.devices_per_node or d.devices_per_node or 8
    domain = d.scale_up_domain or node
    up = d.scale_up_bytes_per_s or 1.0
    out = case.network_bytes_per_s or d.scale_out_bytes_per_s or up
    return Situation(
        device=d,
        devices_per_node=node,
        memory_bytes=d.memory_bytes or 0.0,
        memory_bytes_per_s=d.memory_bytes_per_s or 0.0,
        scale_up_domain=domain,
        scale_up_bytes_per_s=up,
        scale_out_bytes_per_s=out,
        precision=case.precision,
        engine=engines()[case.engine],
        year=case.date,
        traits=case.traits,
    )


def prepare(cases: Sequence[Case]) -> Batch:
    """Arrays for ``cases`` (every situation must be known).

    Where a row does not say what is recomputed, the least that fits into memory is taken: nothing,
    then what is cheap, then half of the layers, then all, in the order in which engines are tuned.
    """
    batch = _pack(cases)
    for mode, share in STEPS:
        capacity = np.array([s.memory_bytes for s in batch.situations])
        room = fits_probability(memory(batch), capacity) >= IMPOSSIBLE
        cases = [
            c if c.recompute_known or fits else _with_recompute(c, mode, share)
            for c, fits in zip(batch.cases, room, strict=True)
        ]
        batch = _pack(cases)
    return batch


def _with_recompute(case: Case, mode: Recompute, share: float) -> Case:
    layers = None
    if share < 1.0:
        layers = round(share * case.architecture.layers / case.layout.pp)
    return replace(case, layout=replace(case.layout, recompute=mode, recompute_layers=layers))


def _pack(cases: Sequence[Case]) -> Batch:
    situations = tuple(situation(c) for c in cases)
    first: dict[tuple[object, ...], int] = {}
    kind = np.array([first.setdefault(_key(s), len(first)) for s in situations])
    return Batch(
        cases=tuple(cases),
        table=stack([tabulate(c.architecture, c.sequence) for c in cases]),
        layouts=pack([c.layout for c in cases]),
        situations=situations,
        kinds=tuple(situations[i] for i in np.unique(kind, return_index=True)[1]),
        kind=kind,
        global_batch=np.array([c.global_batch for c in cases], dtype=float),
    )


def _key(s: Situation) -> tuple[object, ...]:
    return (
        s.device.id, s.device.fraction, s.devices_per_node, s.scale_up_domain,
        s.scale_out_bytes_per_s, s.precision, s.engine.name, s.year, s.traits,
    )  # fmt: skip


def predict(batch: Batch, coefficients: Coefficients) -> StepSeconds:
    """Step time of every case."""
    mc = stack_machines([machine(s, coefficients) for s in batch.kinds], batch.kind)
    parts = layer_seconds(batch.table, cells(batch.layouts), mc)
    optim = Optim(weight_bytes=2.0, state_bytes=12.0, muon=0.0)
    return step_seconds(batch.table, batch.layouts, parts, mc, batch.global_batch, optim)


def memory(batch: Batch) -> MemoryBytes:
    """Peak memory of every case."""
    low = np.array([low_bytes(s.precision) for s in batch.situations])
    old = np.array([float(s.year < 2022.9) for s in batch.situations])
    gradient = np.array([s.engine.state_gradient_bytes for s in batch.situations])
    second = zip(batch.situations, batch.cases, strict=True)
    gradient = gradient + np.array([_second_gradient(s, c.layout.zero) for s, c in second])
    trained = np.array([float("adapters" not in s.traits) for s in batch.situations])
    sizes = StateSizes(
        weight=2.0,
        gradient=gradient * trained,
        optimizer=12.0 * trained,
        logit=np.array([s.engine.logit_bytes for s in batch.situations]),
        stored=np.array([stored_bytes(s.precision) for s in batch.situations]),
        buckets=np.array([s.engine.bucket_bytes for s in batch.situations]),
    )
    return memory_bytes(batch.table, batch.layouts, sizes, low, batch.global_batch, old)


def _second_gradient(s: Situation, zero: int) -> float:
    """DeepSpeed keeps bf16 gradients beside 32-bit sums, and sums fp16 gradients as they are.

    Without ZeRO its fp16 optimiser then flattens all of them into a copy in 32 bits.
    """
    if s.engine.name != "megatron-deepspeed":
        return 0.0
    flat = 4.0 if zero == 0 else 0.0
    return {Precision.BF16: 2.0, Precision.FP16: flat - 2.0}.get(s.precision, 0.0)
