"""One model on one cluster towards one goal: prices any number of layouts, with their error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from krzem.cost.assemble import Situation, as_measured, machine
from krzem.cost.coefficients import Z80, Coefficients, Standing, combination, fitted, log_sigma
from krzem.cost.layers import layer_seconds
from krzem.cost.local import Local
from krzem.cost.machine import Machine, side_by_side
from krzem.cost.memory import (
    MemoryBytes,
    low_bytes,
    memory_bytes,
)
from krzem.cost.memory_error import Z80_STUDENT, MemoryStanding, memory_spread
from krzem.cost.sizes import StateSizes, sizes_of
from krzem.cost.stages import LayerSeconds, RankSeconds, StepSeconds, stages
from krzem.cost.step import Exchange, Optim, exchanges, rank_seconds, slowest_rank, step_seconds
from krzem.cost.trainer_memory import is_counted, trainer_bytes
from krzem.engine.conditions import holds
from krzem.engine.description import Engine, engine_named, usual_engine
from krzem.engine.legal import layout_judge
from krzem.engine.setup import Choices, Chosen, Setup, choose
from krzem.engine.switches import layout_values, parts_of, problem_values
from krzem.hardware.cluster import Cluster
from krzem.layout.layout import RECOMPUTES, Layout, Layouts, Optimizer, Recompute, unique_cells
from krzem.layout.rules import Problem
from krzem.layout.space import Space
from krzem.model.architecture import Architecture
from krzem.model.table import ModelTable, tabulate
from krzem.plan.goal import Goal
from krzem.plan.tuning import adapted, kept_of, trained_flops

# What was measured on a cluster takes the place of what the calibrated model assumes of it
# -----------------------------------------------------------------------------------------


# One model on one cluster towards one goal: prices any number of layouts
# -----------------------------------------------------------------------

_MODULES, _FULL = RECOMPUTES.index(Recompute.MODULES), RECOMPUTES.index(Recompute.FULL)
OWN = "krzem"
"""The engine whose memory is counted from its own code."""
BLOCK = 16384
"""Layouts priced at once: their arrays stay in the processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is planned: everything but the layout."""

    architecture: Architecture
    cluster: Cluster
    goal: Goal
    engine: str
    """Canonical name (``facts/engines``)."""
    year: float
    """Age of the software."""
    stated: Choices = ()
    """Switches that somebody stated; the others are chosen layout by layout."""
    emitted: bool = False
    """Whether launch files are wanted: what they cannot say is not searched."""
    local: Local | None = None
    """What runs of this cluster say over the shipped calibration."""

    @property
    def setup(self) -> Setup:
        """What a step runs under."""
        return Setup(
            engine=self.engine,
            year=self.year,
            stack=self.cluster.device.software,
            precision=self.goal.precision,
            optimizer=self.goal.optimizer,
            states=self.goal.states,
            stated=self.stated,
            finetune=self.goal.tuning.kind,
            emitted=self.emitted,
        )

    @property
    def description(self) -> Engine:
        """The engine's facts."""
        return self.setup.description

    @property
    def problem(self) -> Problem:
        """What layouts are judged against."""
        return Problem(
            architecture=self.architecture,
            devices=self.cluster.devices,
            sequence=self.goal.sequence,
            global_batch=self.goal.global_batch,
            empty_end_chunks=self.description.runs.empty_end_chunks,
        )

    @property
    def values(self) -> dict[str, Any]:
        """What conditions of the engine may ask, but for the layout."""
        device = self.cluster.device
        return {
            **problem_values(self.problem),
            **self.setup.values,
            "family": device.family,
            "nodes": self.cluster.nodes,
            "node": self.cluster.devices_per_node,
            "domain": self.cluster.scale_up_domain,
        }

    @property
    def space(self) -> Space:
        """What the engine can run, as limits of the search."""
        domain = min(self.cluster.scale_up_domain, self.cluster.devices)
        return Space.of_engine(self.description.runs, domain)

    def situation(self, choices: Choices, zero: int = 1) -> Situation:
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
            design=self.setup.design(choices, zero),
            year=self.year,
            finetune=self.goal.tuning.kind,
            adapted=adapted(self.goal.tuning),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """One micro-batch of the first, the fullest middle and the last pipeline rank."""

    ranks: tuple[RankSeconds, ...]
    slowest: RankSeconds
    """The one that the step waits for."""
    exchanges: tuple[Exchange, ...]
    weights: Any
    """Share of a micro-batch's passes that schedules may move into idle time."""
    pace: Any
    """By which an engine ahead of the average is faster in all parts of a step."""


def engine_for(
    cluster: Cluster,
    name: str | None = None,
    architecture: Architecture | None = None,
    finetune: str = "none",
) -> Engine:
    """The engine asked for, or the usual one of the software stack that can build and tune it.

    Raises UnknownNameError with the names that are known.
    """
    if name is not None:
        return engine_named(name)
    parts = frozenset() if architecture is None else parts_of(architecture)
    return usual_engine(cluster.device.software, parts, finetune)


class Pricer:
    """Prices layouts of one task; holds what they share."""

    def __init__(self, task: Task, coefficients: Coefficients | None = None) -> None:
        self.task = task
        self.setup = task.setup
        self.table: ModelTable = tabulate(task.architecture, task.goal.sequence)
        self.coefficients = coefficients or fitted()
        if task.local is not None:
            self.coefficients = task.local.applied(self.coefficients, self.setup.design(()).fits)
        self.values = task.values
        self.judge = layout_judge(self.setup, self.values, task.problem)
        self.factors: Mapping[str, float] = {}
        self._machines: dict[Choices, Machine] = {}
        states = task.goal.states
        self.kept_bytes = states.master + states.moments
        self.optim = Optim(
            weight_bytes=states.weight,
            state_bytes=self.kept_bytes,
            muon=float(task.goal.optimizer is Optimizer.MUON),
        )
        self.low = low_bytes(task.goal.precision)
        self.counted = (
            task.engine == OWN
            and not task.goal.tuning.adapters
            and is_counted(task.architecture, task.goal.precision)
        )
        self.halves = task.description.runs.selective == "half-layers"
        self.standing = MemoryStanding(
            unseen_engine=float(task.engine not in memory_spread().engines),
            experts=float(task.architecture.is_moe),
            adapters=float(task.goal.tuning.adapters),
        )

    def machine_of(self, choices: Choices) -> Machine:
        """The cluster under an engine with these switches."""
        if choices not in self._machines:
            kind = self.task.goal.precision.arithmetic
            assumed = machine(self.task.situation(choices), self.coefficients)
            built = as_measured(
                assumed, self.task.cluster.measured, "tf32" if kind == "fp32" else kind
            )
            changes = {name: getattr(built, name) * f for name, f in self.factors.items()}
            self._machines[choices] = replace(built, **changes) if changes else built
        return self._machines[choices]

    def scaled(self, **factors: float) -> Pricer:
        """The same task on a machine some of whose rates are multiplied."""
        other = object.__new__(Pricer)
        other.__dict__.update(self.__dict__)
        other.factors, other._machines = factors, {}
        return other

    def with_batch(self, global_batch: int) -> Pricer:
        """The same task with another number of sequences a step; its machines are shared."""
        other = object.__new__(Pricer)
        other.__dict__.update(self.__dict__)
        other.task = replace(self.task, goal=replace(self.task.goal, global_batch=global_batch))
        return other

    def choose(self, x: Layouts) -> Chosen:
        """The switches that each layout is run with."""
        values = {**self.values, **layout_values(x, self.task.problem)}
        return choose(self.setup, values, len(x))

    def allowed(self, x: Layouts, limits: tuple[str, ...] = ()) -> np.ndarray:
        """[N] which layouts the engine runs, within ``limits``, under the switches stated."""
        fine = self.judge.mask(x)
        if limits:
            values = layout_values(x, self.task.problem)
            for limit in limits:
                fine = fine & holds(limit, values)
        if self.setup.stated:
            fine = fine & self.choose(x).allowed
        return np.asarray(fine)

    def _as_run(self, x: Layouts) -> Layouts:
        """Layouts as the engine runs them.

        Selective recomputation that runs every second product again is half of the layers.
        """
        modules = x.recompute == _MODULES if self.halves else np.zeros(0, dtype=bool)
        if not np.any(modules):
            return x
        most = -(-self.task.architecture.layers // x.pp)
        half = np.maximum(1, np.rint(most / 2).astype(np.int64))
        return replace(
            x,
            recompute=np.where(modules, _FULL, x.recompute),
            recompute_layers=np.where(modules, half, x.recompute_layers),
        )

    def sizes(self, choices: Choices) -> StateSizes:
        """Bytes that the engine keeps under these switches."""
        kept = kept_of(self.task.goal, self.task.architecture)
        extra = self.setup.extra_bytes(choices)
        return sizes_of(self.setup.design(choices), self.task.goal.precision, kept, extra)

    def memory(self, x: Layouts, chosen: Chosen | None = None) -> MemoryBytes:
        """Bytes on the first, fullest middle and last pipeline rank."""
        chosen = chosen or self.choose(x)
        x = self._as_run(x)
        sizes = side_by_side([self.sizes(c) for c in chosen.settings], chosen.which)
        eager = side_by_side([self.machine_of(c) for c in chosen.settings], chosen.which)
        batch = float(self.task.goal.global_batch)
        if self.counted:
            precision = self.task.goal.precision
            return trainer_bytes(self.task.architecture, self.table, x, batch, sizes, precision)
        return memory_bytes(self.table, x, sizes, self.low, batch, eager.unfused_attention)

    def fits(self, memory: MemoryBytes, capacity: float | None = None) -> np.ndarray:
        """Chance of fitting into the device (or into ``capacity`` bytes)."""
        limit = self.task.cluster.memory_bytes if capacity is None else capacity
        return np.asarray(memory_spread().fits(memory, limit, self.standing))

    def memory_scale(self, memory: MemoryBytes) -> float:
        """How far the peak of one layout may be off (:mod:`krzem.cost.memory_error`)."""
        return float(np.ravel(memory_spread().scale(memory, self.standing))[0])

    def step(self, x: Layouts, chosen: Chosen | None = None) -> StepSeconds:
        """Seconds per step; layouts that share a cell share its price."""
        x, parts, whole = self._parts(x, chosen)
        batch = float(self.task.goal.global_batch)
        return step_seconds(self.table, x, parts, whole, batch, self.optim)

    def passes(self, x: Layouts) -> Passes:
        """Passes of the first, the fullest middle and the last pipeline rank."""
        x, parts, whole = self._parts(x, None)
        s = stages(self.table, x)
        ranks = rank_seconds(self.table, x, parts, s, whole)
        return Passes(
            ranks=ranks,
            slowest=slowest_rank(x, ranks),
            exchanges=exchanges(x, parts, s, whole),
            weights=parts.weight_share,
            pace=np.minimum(whole.overhead, 1.0),
        )

    def _parts(self, x: Layouts, chosen: Chosen | None) -> tuple[Layouts, LayerSeconds, Machine]:
        """Layouts as they are run, the parts of a micro-batch of each, and its machine."""
        chosen = chosen or self.choose(x)
        x = self._as_run(x)
        machines = [self.machine_of(c) for c in chosen.settings]
        cells, index, first = unique_cells(x, chosen.which)
        there = chosen.which if np.ndim(chosen.which) == 0 else chosen.which[first]
        parts = layer_seconds(self.table, cells, side_by_side(machines, there))
        gathered = LayerSeconds(
            **{f.name: _gather(getattr(parts, f.name), index) for f in fields(LayerSeconds)}
        )
        return x, gathered, side_by_side(machines, chosen.which)

    def peak_flops(self) -> float:
        """Dense peak of the precision in use, FLOP/s per device (MFU is measured against it)."""
        peaks = self.task.cluster.device.peak_flops
        kind = self.task.goal.precision.arithmetic
        return peaks["tf32" if kind == "fp32" else kind]

    def step_flops(self) -> float:
        """Model FLOPs of one step: causal attention counted once, nothing recomputed."""
        goal = self.task.goal
        return trained_flops(goal, self.task.architecture) * goal.tokens_per_step


def _gather(values: Any, index: np.ndarray) -> Any:
    return values[index] if np.ndim(values) else values


def split(x: Layouts, size: int = BLOCK) -> Iterator[Layouts]:
    """Layouts in blocks of at most ``size``."""
    for start in range(0, len(x), size):
        yield x.take(slice(start, start + size))


# How far a prediction of the planner may be off
# ----------------------------------------------

_LOW = ("fp8", "fp4")


def step_sigma(task: Task, layout: Layout, step: StepSeconds, guesses: float = 0.0) -> float:
    """Standard deviation of the logarithm of one step time, as held-back published runs had it."""
    fits = task.setup.design(()).fits
    standing = Standing(
        device=[task.cluster.device.id],
        family=[task.cluster.device.family],
        engine=[fits],
        combination=[combination(fits, layout)],
        guesses=guesses,
        experts=float(task.architecture.is_moe),
        low_precision=float(task.goal.precision.arithmetic in _LOW),
    )
    return float(np.ravel(log_sigma(step, standing))[0]) * narrowing(task)


def narrowing(task: Task) -> float:
    """What a local calibration leaves of the spread; 1 without one."""
    return 1.0 if task.local is None else task.local.narrowing(task.setup.design(()).fits)


def memory_sigma(peak_bytes: float, scale: float | None = None) -> float:
    """Standard deviation of the logarithm of the peak memory, as its 80 % interval has it.

    ``scale`` is that of the layout (``Pricer.memory_scale``); without it that of an average one.
    """
    if scale is None:
        weights = memory_spread().weights
        scale = math.exp(weights["base"] + weights["reserved"] + 0.5 * weights["dynamic"])
    return scale * Z80_STUDENT / Z80 if peak_bytes > 0 else 0.0
