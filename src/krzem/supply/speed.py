"""What the planner says of a pool: how long the whole run would take on so many of its devices.

The search is the planner's own, over a smaller space (``lean``): a fleet asks for many plans, and
layouts outside it were at most 2 % faster on the models and devices of ``tests/supply``.  Where
nothing in it fits, the whole space is searched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from krzem.errors import ClusterError, GoalError, UnknownFactError
from krzem.estimate import Estimate
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import cluster_of
from krzem.layout.space import Space
from krzem.model.parameters import count
from krzem.plan.forecast import WholeRun, whole_run
from krzem.plan.goodput import ENERGY_FIELDS, quantity
from krzem.plan.plan import LayoutPlan, describe
from krzem.plan.price import Pricer
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle
from krzem.plan.search import decided, ends_of, search
from krzem.supply.goal import FleetGoal, Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """One run on one number of devices."""

    devices: int
    nodes: int
    tokens: float
    """Of the whole run."""
    days: Estimate
    """Wall clock of the whole run, everything included as in a plan."""
    step_seconds: Estimate
    tokens_per_s: Estimate
    mfu: Estimate
    memory_bytes: Estimate
    goodput: Estimate | None
    layout: str
    checkpoint_bytes: float
    family: str
    """Calibration family of the device."""
    stack: str
    """Its software: cuda, npu, hip, ..."""
    watts_per_device: Estimate | None
    """At the site's meter."""
    precision: str
    engine: str
    notes: tuple[str, ...] = ()

    @property
    def share_per_day(self) -> float:
        """Of the run's tokens, on a median day."""
        return 1.0 / self.days.mid


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A pool at one of its sizes, with its speed."""

    pool: int
    """Index into the goal's pools."""
    speed: Speed


Progress = Callable[[str], None]
"""Called with the name of what is planned next."""


def lean(space: Space) -> Space:
    """The part of ``space`` that a fleet searches."""
    return replace(
        space,
        max_micro_batch=min(space.max_micro_batch, 4),
        zero=(1, 2),
        max_tp=min(space.max_tp, 16),
        max_cp=min(space.max_cp, 4),
    )


def speed(goal: FleetGoal, pool: Pool, devices: int) -> Speed:
    """The speed of one size of a pool.

    Raises what the planner raises: ClusterError where the model does not fit, GoalError where no
    layout divides the batch, UnknownFactError where days cannot be forecast.
    """
    cluster = cluster_of(dict(pool.given) | {"devices": devices}, f"pool {pool.name}")
    given: dict[str, Any] = dict(goal.run)
    if pool.precision is not None:
        given["precision"] = pool.precision
    if pool.engine is not None:
        given["engine"] = pool.engine
    question = Question(model=goal.model, on=cluster, start=goal.start.isoformat(), **given)
    return speed_of(settle(question))


def speed_of(asked: Asked) -> Speed:
    """The speed of a settled question; raises as :func:`speed`."""
    described, run = _planned(asked)
    task = asked.task
    if run.days is None:
        raise UnknownFactError(run.unknown[0])
    return Speed(
        devices=task.cluster.devices,
        nodes=task.cluster.nodes,
        tokens=task.goal.tokens,
        days=run.days,
        step_seconds=described.step_seconds,
        tokens_per_s=described.tokens_per_s_per_device.scaled(task.cluster.devices),
        mfu=described.mfu,
        memory_bytes=described.memory_bytes,
        goodput=run.goodput,
        layout=str(described.layout),
        checkpoint_bytes=run.checkpoint.bytes,
        family=task.cluster.device.family,
        stack=task.cluster.device.software,
        watts_per_device=_watts(task.cluster),
        precision=str(task.goal.precision),
        engine=task.engine,
        notes=(*asked.notes, *task.cluster.notes, *run.notes),
    )


def best_layout(asked: Asked) -> LayoutPlan:
    """The fastest layout that surely fits; raises ClusterError or GoalError."""
    return _planned(asked)[0]


def slots(
    goal: FleetGoal, progress: Progress | None = None
) -> tuple[tuple[Slot, ...], Mapping[str, str]]:
    """Every size of every pool that can run the model, and why the others cannot.

    Raises the first reason where none can, and UnknownFactError always: what nobody has published
    is for the user to give, not to be left out in silence.
    """
    found: list[Slot] = []
    reasons: dict[str, str] = {}
    errors: list[Exception] = []
    for index, pool in enumerate(goal.pools):
        for devices in pool.sizes:
            label = f"{pool.name} at {devices:,} devices"
            if progress is not None:
                progress(label)
            try:
                measured = speed(goal, pool, devices)
                _within_power(pool, measured)
            except UnknownFactError as error:
                raise UnknownFactError(f"pool {pool.name}: {error}") from None
            except (ClusterError, GoalError) as error:
                reasons[label] = str(error)
                errors.append(error)
                continue
            found.append(Slot(pool=index, speed=measured))
    if not found and errors:
        raise errors[0]
    return tuple(found), reasons


def _within_power(pool: Pool, measured: Speed) -> None:
    if pool.site_power_w is None:
        return
    if measured.watts_per_device is None:
        raise UnknownFactError("its power is not known: give power in the pool's cluster")
    need = measured.watts_per_device.mid * measured.devices
    if need > pool.site_power_w:
        raise ClusterError(
            f"{measured.devices:,} devices x {measured.watts_per_device.mid:,.0f} W ="
            f" {need / 1e6:.1f} MW at the meter, above the site's {pool.site_power_w / 1e6:.1f} MW"
        )


def _planned(asked: Asked) -> tuple[LayoutPlan, WholeRun]:
    pricer = Pricer(asked.task)
    found = search(pricer, lean(asked.space))
    best = found.best(asked.sure)
    if not len(best):
        found = search(pricer, asked.space)
        best = found.best(asked.sure)
    task = asked.task
    if not found.evaluated:
        raise GoalError(
            f"no legal layout: a batch of {task.goal.global_batch:,} sequences cannot be shared"
            f" among {task.cluster.devices:,} devices; choose another size or batch"
        )
    if not len(best):
        have, need = task.cluster.memory_bytes / 2**30, found.least_bytes / 2**30
        raise ClusterError(
            f"{task.architecture.name} does not fit {task.cluster.devices:,} x"
            f" {task.cluster.device.id}: the leanest layout needs {need:.1f} GiB of {have:.1f}"
        )
    ends = ends_of(pricer)
    decided(ends, found, asked.sure)
    described = describe(pricer, found.layouts.at(int(best[0])), ends)
    run = whole_run(
        pricer,
        described.layout,
        described.step_seconds,
        parameters=float(_parameters(asked)),
        start=asked.start,
    )
    return described, run


def _parameters(asked: Asked) -> int:
    return count(asked.task.architecture).total


def _watts(cluster: Cluster) -> Estimate | None:
    product: Estimate | None = None
    for name in ENERGY_FIELDS:
        part = quantity(cluster, name)
        if part is None:
            return None
        product = part if product is None else Estimate(
            product.low * part.low, product.mid * part.mid, product.high * part.high, part.basis
        )  # fmt: skip
    return product
