"""Plan a run: the best layouts, what the whole run takes, where the wall is."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType

import numpy as np

from krzem.cost.memory import RankBytes
from krzem.cost.stages import StepSeconds
from krzem.engine.setup import Choices
from krzem.errors import ClusterError, GoalError
from krzem.estimate import Basis, Estimate
from krzem.hardware.cluster_keys import assumption
from krzem.layout.layout import Layout, pack
from krzem.layout.rules import check
from krzem.layout.space import Space
from krzem.model.catalogue import is_built_in
from krzem.model.parameters import count
from krzem.plan.footprint import Footprint
from krzem.plan.forecast import WholeRun, whole_run
from krzem.plan.goal import SURE
from krzem.plan.price import Pricer, Task, memory_sigma, step_sigma
from krzem.plan.search import (
    Ends,
    Found,
    decided,
    effects,
    ends_of,
    fitting,
    front,
    least_known,
    picked,
    picked_note,
    remarks,
    search,
    widening,
)
from krzem.plan.tuning import adapter_parameters
from krzem.plan.wall import Gain, binding, gains

GIB = 2.0**30
TIE = 0.03
"""Step times closer than this are not told apart: errors of two layouts of one model on one
cluster are nearly the same error, and what is left of their difference is about this large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Bytes on one pipeline rank, by what they hold."""

    rank: str
    """``first``, ``middle`` or ``last``."""
    weights: float
    gradients: float
    optimizer: float
    activations: float
    transient: float
    """Logits, unsharded weights, dispatch buffers, one recomputed layer."""
    reserve: float
    """What allocator, context and communication library hold beside tensors (median)."""

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(getattr(self, f.name) for f in fields(self) if f.name != "rank"))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPlan:
    """One layout with everything that is predicted of it."""

    layout: Layout
    step_seconds: Estimate
    tokens_per_s_per_device: Estimate
    mfu: Estimate
    """Model FLOPs (causal attention once, nothing recomputed) over the dense peak."""
    memory_bytes: Estimate
    """Peak on the fullest rank."""
    fits_probability: float
    terms: Mapping[str, float]
    """Seconds of the step by cause; they add up to the middle of ``step_seconds``."""
    ranks: tuple[RankMemory, ...]
    micro_batches: int
    switches: Choices = ()
    """What the engine is set to; what does not matter for this layout is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """A layout that no other beats in both time and memory."""

    layout: Layout
    step_seconds: float
    memory_bytes: float
    fits_probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer to one question."""

    task: Task
    parameters: int
    active_parameters: int
    best: LayoutPlan
    alternatives: tuple[LayoutPlan, ...]
    """The next best layouts, at most one per parallel shape (degrees and schedule)."""
    ties: int
    """Layouts within the error bar of the best one."""
    front: tuple[FrontPoint, ...]
    wall: str
    """The resource of which 10 % more gains most."""
    gains: tuple[Gain, ...]
    whole_run: WholeRun
    layouts_evaluated: int
    layouts_timed: int
    search_seconds: float
    picked: float = 1.0
    """By which the best step is to be expected slower than predicted, since predictions that err
    on the fast side are picked out (:func:`krzem.plan.search.picked`)."""
    notes: tuple[str, ...] = ()
    footprint: Footprint | None = None
    """Compute, carbon and loss; None where nobody asked for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One given layout, term by term."""

    task: Task
    parameters: int
    active_parameters: int
    plan: LayoutPlan
    wall: str
    gains: tuple[Gain, ...]
    whole_run: WholeRun | None
    """None where no number of tokens is known."""
    notes: tuple[str, ...] = ()
    footprint: Footprint | None = None
    """Compute, carbon and loss; None where no number of tokens is known."""
    refused: tuple[str, ...] = ()
    """Why the engine does not run this layout; empty where it does."""


def plan(
    task: Task,
    *,
    space: Space | None = None,
    alternatives: int = 5,
    sure: float = SURE,
    start: datetime.date | None = None,
    progress: Callable[[int], None] | None = None,
) -> Plan:
    """Search every legal layout and forecast the run with the best one.

    A layout is recommended only if it fits with probability ``sure``.

    Raises:
        GoalError: no layout divides the batch.
        ClusterError: the model does not fit this cluster; the message says by how much.
        UnknownFactError: an unpublished quantity decides too much to be left open.
    """
    pricer = Pricer(task)
    found = search(pricer, space, progress)
    return planned(pricer, found, alternatives=alternatives, sure=sure, start=start)


def planned(
    pricer: Pricer,
    found: Found,
    *,
    alternatives: int = 5,
    sure: float = SURE,
    start: datetime.date | None = None,
) -> Plan:
    """The plan that a finished search gives; raises what :func:`plan` raises."""
    task = pricer.task
    best = _choose(task, found, sure)
    ends = ends_of(pricer)
    open_ = decided(ends, found, sure)
    first = describe(pricer, found.layouts.at(int(best[0])), ends)
    others = found.distinct(best, alternatives + 1)[1:]
    optimism = picked(task, found, best)
    ties = int(np.sum(found.seconds[best] <= found.seconds[best[0]] * (1.0 + TIE)))
    resources = gains(pricer, found, first.layout, sure)
    total = count(task.architecture)
    run = whole_run(
        pricer, first.layout, first.step_seconds, parameters=trained(task, total.total), start=start
    )
    return Plan(
        task=task,
        parameters=total.total,
        active_parameters=total.active,
        best=first,
        alternatives=tuple(describe(pricer, found.layouts.at(i), ends) for i in others),
        ties=ties,
        front=_front(found),
        wall=binding(resources),
        gains=resources,
        whole_run=run,
        layouts_evaluated=found.evaluated,
        layouts_timed=found.timed,
        search_seconds=found.search_seconds,
        picked=optimism,
        notes=(*_notes(task), *remarks(open_), *picked_note(first.step_seconds.mid, optimism)),
    )


def explain(
    task: Task, layout: Layout, *, start: datetime.date | None = None, whole: bool = True
) -> Explanation:
    """Price one layout; the whole run only where ``whole`` says that its tokens are known.

    Raises LayoutError where it is not legal, with the arithmetic of every rule it breaks.
    """
    check(task.problem, layout)
    pricer = Pricer(task)
    ends = ends_of(pricer)
    described = describe(pricer, layout, ends)
    resources = gains(pricer, None, layout, SURE)
    total = count(task.architecture)
    return Explanation(
        task=task,
        parameters=total.total,
        active_parameters=total.active,
        plan=described,
        wall=binding(resources),
        gains=resources,
        whole_run=whole_run(
            pricer,
            layout,
            described.step_seconds,
            parameters=trained(task, total.total),
            start=start,
            given=True,
        )
        if whole
        else None,
        notes=(*_notes(task), *remarks(effects(ends, pack([layout])))),
        refused=pricer.judge.reasons(layout),
    )


def trained(task: Task, parameters: int) -> int:
    """Parameters that are trained and saved: all, or those of the adapters."""
    tuning = task.goal.tuning
    return adapter_parameters(tuning, task.architecture) if tuning.adapters else parameters


def describe(pricer: Pricer, layout: Layout, ends: Sequence[Ends] | None = None) -> LayoutPlan:
    """Everything predicted of one layout.

    ``ends`` are :func:`krzem.plan.search.ends_of` of the pricer, for those who describe many.
    """
    ends = ends_of(pricer) if ends is None else ends
    x = pack([layout])
    chosen = pricer.choose(x)
    step = pricer.step(x, chosen)
    memory = pricer.memory(x, chosen)
    task = pricer.task
    known = max(
        step_sigma(task, layout, step),
        least_known(ends, lambda end: step_sigma(end.task, layout, end.step(x))),
    )
    sigma = math.hypot(known, widening(effects(ends, x)))
    seconds = Estimate.lognormal(_one(step.total), sigma, Basis.CALIBRATED)
    tokens = task.goal.tokens_per_step / task.cluster.devices
    flops = pricer.step_flops() / task.cluster.devices / pricer.peak_flops()
    peak = _one(memory.peak)
    named = zip(
        ("first", "middle", "last"), (memory.first, memory.middle, memory.last), strict=True
    )
    reserve = max(peak - _one(memory.tensors), 0.0)
    return LayoutPlan(
        layout=layout,
        step_seconds=seconds,
        tokens_per_s_per_device=seconds.inverse(tokens),
        mfu=seconds.inverse(flops),
        memory_bytes=Estimate.lognormal(
            peak, memory_sigma(peak, pricer.memory_scale(memory)), Basis.CALIBRATED
        ),
        fits_probability=fitting(ends, x, _one(pricer.fits(memory))),
        terms=_terms(step),
        ranks=tuple(
            _rank(name, rank, reserve)
            for name, rank in named
            if layout.pp > 2 or (layout.pp == 2 and name != "middle") or name == "first"
        ),
        micro_batches=round(_one(step.micro_batches)),
        switches=chosen.at(0),
    )


def _one(values: object) -> float:
    return float(np.ravel(np.asarray(values, dtype=float))[0])


def _terms(step: StepSeconds) -> Mapping[str, float]:
    names = [f.name for f in fields(StepSeconds) if f.name != "micro_batches"]
    return MappingProxyType({name: _one(getattr(step, name)) for name in names})


def _rank(name: str, rank: RankBytes, reserve: float) -> RankMemory:
    parts = {f.name: _one(getattr(rank, f.name)) for f in fields(RankBytes)}
    return RankMemory(rank=name, reserve=reserve, **parts)


def _choose(task: Task, found: Found, sure: float) -> np.ndarray:
    if not found.evaluated:
        raise GoalError(_nothing_legal(task))
    best = found.best(sure)
    if len(best):
        return best
    have, need = task.cluster.memory_bytes / GIB, found.least_bytes / GIB
    if len(found.fits):
        chance = float(np.max(found.fits))
        raise ClusterError(
            f"{task.architecture.name} on {task.cluster.devices:,} x {task.cluster.device.id}: no "
            f"layout has a {sure:.0%} chance of fitting; the best has {chance:.0%}. Lower "
            "--sure, add devices, shorten the sequence, or allow an offloaded optimizer (--offload)"
        )
    raise ClusterError(
        f"{task.architecture.name} does not fit {task.cluster.devices:,} x "
        f"{task.cluster.device.id}: the leanest of {found.evaluated:,} legal layouts needs "
        f"{need:.1f} GiB per device and {have:.1f} GiB are there, {need / have:.1f} times too "
        "little. Use more devices, devices with more memory, a shorter sequence, or --offload"
    )


def _nothing_legal(task: Task) -> str:
    goal, devices = task.goal, task.cluster.devices
    return (
        f"no legal layout: a global batch of {goal.global_batch:,} sequences over {devices:,} "
        f"devices. The data-parallel degree must divide both the devices ({devices:,} = "
        f"{_factors(devices)}) and the batch ({goal.global_batch:,} = "
        f"{_factors(goal.global_batch)}), and what is left must be tensor, context and pipeline "
        f"degrees that divide {_listed(task.problem.heads)} heads and at most "
        f"{task.architecture.layers} layers. Choose a batch that shares factors with the devices"
    )


def _listed(numbers: Iterable[int]) -> str:
    return " and ".join(f"{number:,}" for number in sorted(numbers))


def _factors(number: int) -> str:
    found, rest, d = [], number, 2
    while d * d <= rest:
        while rest % d == 0:
            found.append(d)
            rest //= d
        d += 1
    if rest > 1 or not found:
        found.append(rest)
    return " x ".join(map(str, found))


def _front(found: Found, most: int = 40) -> tuple[FrontPoint, ...]:
    index = front(found.seconds, found.peak_bytes)
    if len(index) > most:
        index = index[np.linspace(0, len(index) - 1, most).round().astype(int)]
    return tuple(
        FrontPoint(
            layout=found.layouts.at(int(i)),
            step_seconds=float(found.seconds[i]),
            memory_bytes=float(found.peak_bytes[i]),
            fits_probability=float(found.fits[i]),
        )
        for i in index
    )


def _notes(task: Task) -> tuple[str, ...]:
    cluster, device, model = task.cluster, task.cluster.device, task.architecture
    notes = [] if is_built_in(model) else [f"{model.name}: {note}" for note in model.notes]
    notes += [*cluster.notes, *(assumption(device, a) for a in cluster.assumed.values())]
    if device.device_is != "card":
        notes.append(f"one device is {device.device_is} of {device.name}")
    return tuple(notes)
