"""One model on one cluster towards one goal: prices any number of layouts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from krzem.cost.assemble import Situation, machine
from krzem.cost.coefficients import Coefficients, fitted
from krzem.cost.engines import Engine, engines
from krzem.cost.layers import layer_seconds
from krzem.cost.machine import Machine
from krzem.cost.memory import (
    MemoryBytes,
    StateSizes,
    fits_probability,
    low_bytes,
    memory_bytes,
    stored_bytes,
)
from krzem.cost.parts import LayerSeconds
from krzem.cost.step import Optim, StepSeconds, step_seconds
from krzem.errors import UnknownNameError
from krzem.hardware.cluster import Cluster
from krzem.layout.arrays import Layouts, unique_cells
from krzem.layout.rules import Problem
from krzem.layout.space import Space
from krzem.model.architecture import Architecture
from krzem.model.flops import flops_per_token
from krzem.model.table import ModelTable, tabulate
from krzem.plan.goal import Goal, Optimizer
from krzem.plan.measured import as_measured

BLOCK = 16384
"""Layouts priced at once: their arrays stay in the processor's cache."""

DEFAULT_ENGINE = {"cuda": "megatron-core", "npu": "mindspeed", "hip": "primus", "tpu": "xla",
                  "neuron": "neuron", "hpu": "gaudi"}  # fmt: skip
"""The engine that large runs on a software stack use most (published runs in the catalogue)."""


HABITS: Mapping[str, tuple[float, frozenset[str]]] = MappingProxyType(
    {
        "megatron-core": (2025.4, frozenset({"ep-overlap", "dedup"})),
        "mindspeed": (2024.5, frozenset({"async-tp"})),
    }
)
"""What careful users of an engine switch on, and since which year it can be: the overlap of expert
all-to-all and its deduplication (Megatron-Core 0.13, ``--overlap-moe-expert-parallel-comm``,
``--moe-token-dispatcher-type flex``), fused communication and
matrix product (MindSpeed ``--use-ascend-mc2``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is planned: everything but the layout."""

    architecture: Architecture
    cluster: Cluster
    goal: Goal
    engine: Engine
    year: float
    traits: frozenset[str] = frozenset()

    @property
    def problem(self) -> Problem:
        """What layouts are judged against."""
        return Problem(
            architecture=self.architecture,
            devices=self.cluster.devices,
            sequence=self.goal.sequence,
            global_batch=self.goal.global_batch,
        )

    @property
    def space(self) -> Space:
        """The default search space of this cluster."""
        return Space(domain=min(self.cluster.scale_up_domain, self.cluster.devices))

    @property
    def situation(self) -> Situation:
        """Device, links, precision and engine, as the cost model wants them."""
        c = self.cluster
        return Situation(
            device=c.device,
            devices_per_node=c.devices_per_node,
            memory_bytes=c.memory_bytes,
            memory_bytes_per_s=c.memory_bytes_per_s,
            scale_up_domain=c.scale_up_domain,
            scale_up_bytes_per_s=c.scale_up_bytes_per_s,
            scale_out_bytes_per_s=c.scale_out_bytes_per_s / c.oversubscription,
            precision=self.goal.precision,
            engine=self.engine,
            year=self.year,
            traits=self.traits | _habits(self.engine.name, self.year),
        )


def _habits(engine: str, year: float) -> frozenset[str]:
    since, traits = HABITS.get(engine, (0.0, frozenset()))
    return traits if year >= since else frozenset()


def engine_for(cluster: Cluster, name: str | None = None) -> Engine:
    """The engine asked for, or the usual one of the cluster's software stack."""
    found = name or DEFAULT_ENGINE.get(cluster.device.software, "other")
    if found not in engines():
        raise UnknownNameError("engine", found, engines(), f"Known: {', '.join(engines())}.")
    return engines()[found]


class Pricer:
    """Prices layouts of one task; holds what they share."""

    def __init__(self, task: Task, coefficients: Coefficients | None = None) -> None:
        self.task = task
        self.table: ModelTable = tabulate(task.architecture, task.goal.sequence)
        assumed = machine(task.situation, coefficients or fitted())
        kind = task.goal.precision.arithmetic
        self.machine: Machine = as_measured(
            assumed, task.cluster.measured, "tf32" if kind == "fp32" else kind
        )
        states = task.goal.states
        kept = states.master + states.moments
        self.optim = Optim(
            weight_bytes=states.weight,
            state_bytes=kept,
            muon=float(task.goal.optimizer is Optimizer.MUON),
        )
        self.sizes = StateSizes(
            weight=states.weight,
            gradient=states.gradient,
            optimizer=kept,
            logit=task.engine.logit_bytes,
            stored=stored_bytes(task.goal.precision),
            buckets=task.engine.bucket_bytes,
        )
        self.low = low_bytes(task.goal.precision)

    def with_machine(self, **changes: float) -> Pricer:
        """The same task on a machine that differs in some rates."""
        other = object.__new__(Pricer)
        other.__dict__.update(self.__dict__)
        other.machine = replace(self.machine, **changes)
        return other

    def memory(self, x: Layouts) -> MemoryBytes:
        """Bytes on the first, fullest middle and last pipeline rank."""
        return memory_bytes(
            self.table, x, self.sizes, self.low, float(self.task.goal.global_batch),
            self.machine.unfused_attention,
        )  # fmt: skip

    def fits(self, memory: MemoryBytes, capacity: float | None = None) -> np.ndarray:
        """Chance of fitting into the device (or into ``capacity`` bytes)."""
        limit = self.task.cluster.memory_bytes if capacity is None else capacity
        return np.asarray(fits_probability(memory, limit))

    def step(self, x: Layouts) -> StepSeconds:
        """Seconds per step; layouts that share a cell share its price."""
        cells, index = unique_cells(x)
        parts = layer_seconds(self.table, cells, self.machine)
        gathered = LayerSeconds(
            **{f.name: _gather(getattr(parts, f.name), index) for f in fields(LayerSeconds)}
        )
        batch = float(self.task.goal.global_batch)
        return step_seconds(self.table, x, gathered, self.machine, batch, self.optim)

    def peak_flops(self) -> float:
        """Dense peak of the precision in use, FLOP/s per device (MFU is measured against it)."""
        peaks = self.task.cluster.device.peak_flops
        kind = self.task.goal.precision.arithmetic
        return peaks["tf32" if kind == "fp32" else kind]

    def step_flops(self) -> float:
        """Model FLOPs of one step: causal attention counted once, nothing recomputed."""
        goal = self.task.goal
        per_token = flops_per_token(self.task.architecture, goal.sequence)
        return per_token * goal.tokens_per_step


def _gather(values: Any, index: np.ndarray) -> Any:
    return values[index] if np.ndim(values) else values


def split(x: Layouts, size: int = BLOCK) -> Iterator[Layouts]:
    """Layouts in blocks of at most ``size``."""
    for start in range(0, len(x), size):
        yield x.take(slice(start, start + size))
