"""The planner's answer for a run file: which layout, how long a step, how much memory."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from krzem.cost.memory import FRAGMENTATION, RESERVE_BYTES
from krzem.cost.trainer_memory import trainer_ranks
from krzem.errors import KrzemError, LayoutError, UnknownFactError
from krzem.estimate import Basis, Estimate
from krzem.hardware import CPU, Cluster, cluster_of, read_cluster
from krzem.layout.layout import Layout, pack
from krzem.plan.answer import plan_of
from krzem.plan.plan import LayoutPlan, describe
from krzem.plan.price import Pricer
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle
from krzem.quantity import format_bytes
from krzem.run.pool_settings import Pool
from krzem.run.preflight import CHOICES, kept_bytes, sharpened
from krzem.run.profile import cluster_for, read_profile
from krzem.train.config import ModelSpec
from krzem.train.forecast import Forecast
from krzem.train.settings import TrainSettings
from krzem.train.setup import first_runnable

if TYPE_CHECKING:
    from krzem.train.rehearsal.rank import Step

_SPREAD = 0.6
"""Spread of the logarithm of a step time on processors, which no published run calibrates."""
HOW = (
    'write cluster = "h100:8" above its tables, or cluster = "profile.toml" for what '
    "`krzem probe --out profile.toml` measured here"
)


def forecast(
    settings: TrainSettings, spec: ModelSpec, layout: Layout | None, ranks: int | None
) -> Forecast:
    """A :class:`~krzem.train.forecast.Planner`.

    Raises:
        UnknownFactError: the run file names no device, or a quantity of it is not published.
        ClusterError, GoalError, LayoutError: the planner has no layout for it.
    """
    if settings.cluster is None:
        raise UnknownFactError(f"the run file does not say which device: {HOW}")
    cluster, measured = _cluster(settings, layout.devices if layout is not None else ranks)
    asked = _asked(settings, spec, cluster, layout)
    peak = Pricer(asked.task).peak_flops()
    if measured:
        asked = replace(
            asked, task=replace(asked.task, cluster=sharpened(asked.task, cluster.measured))
        )
    chosen = layout or _best(asked, settings, spec)
    if layout is None:
        exact = _asked(settings, spec, cluster, chosen).task.goal
        asked = replace(asked, task=replace(asked.task, goal=exact))
    found = describe(Pricer(asked.task), chosen)
    seconds = found.step_seconds
    if cluster.device.id == CPU:
        seconds = Estimate.lognormal(seconds.mid, _SPREAD, Basis.MEASURED)
    source = "measured rates" if cluster.measured else "its data sheet"
    return Forecast(
        layout=chosen,
        step_seconds=seconds,
        tokens_per_step=settings.goal.global_batch * settings.goal.sequence,
        memory_bytes=found.memory_bytes,
        capacity_bytes=cluster.memory_bytes,
        peak_flops=peak,
        basis=f"{cluster.devices} x {cluster.device.id}, from {source}",
    )


def planned_peaks(
    settings: TrainSettings, spec: ModelSpec, layout: Layout, cluster: Cluster
) -> Callable[[int], float] | None:
    """Bytes of tensors that the planner gives each pipeline rank; None where it does not count
    them one by one, or has no answer for the run."""
    try:
        pricer = Pricer(_asked(settings, spec, cluster, layout).task)
    except KrzemError:
        return None
    if not pricer.counted:
        return None
    x = pack([layout])
    sizes = pricer.sizes(pricer.choose(x).settings[0])
    batch = float(settings.goal.global_batch)
    task = pricer.task
    rank = trainer_ranks(task.architecture, pricer.table, x, batch, sizes, task.goal.precision)
    return lambda stage: float(rank(np.array([stage])).total[0])


def _cluster(settings: TrainSettings, ranks: int | None) -> tuple[Cluster, bool]:
    """The run file's cluster with ``ranks`` devices; whether it is processors, as measured."""
    given = settings.cluster
    if isinstance(given, Mapping):
        cluster = cluster_of(given, "cluster")
    elif isinstance(given, str) and given.strip().endswith(".toml"):
        path = settings.base / given.strip()
        if _device_in(path) == CPU:
            profile = read_profile(path)
            pool = Pool(name=path.name, accelerator=CPU, count=ranks or profile.devices)
            return cluster_for(pool, profile.measured), True
        cluster = read_cluster(path)
    else:
        cluster = read_cluster(str(given))
    if ranks is None or ranks == cluster.devices:
        return cluster, False
    per_node = min(cluster.devices_per_node, ranks)
    return replace(cluster, devices=ranks, devices_per_node=per_node), False


def _device_in(path: Path) -> Any:
    """The device that a profile or cluster file names; faults of the file are read_cluster's."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")).get("device")
    except (OSError, ValueError):
        return None


def _asked(
    settings: TrainSettings, spec: ModelSpec, cluster: Cluster, layout: Layout | None
) -> Asked:
    """The run as the planner's question."""
    goal = settings.goal
    return settle(
        Question(
            model=spec.arch,
            on=cluster,
            tokens=max(goal.tokens, goal.global_batch * goal.sequence),
            sequence=goal.sequence,
            global_batch=goal.global_batch,
            precision=goal.precision,
            optimizer=goal.optimizer,
            state_bytes=kept_bytes(goal.precision, goal.optimizer, layout),
            engine="krzem",
        )
    )


def best_layout(settings: TrainSettings, spec: ModelSpec, cluster: Cluster) -> Layout:
    """The planner's fastest layout of the run on ``cluster`` that the trainer runs.

    Raises:
        KrzemError: there is none, or the planner lacks a fact.
    """
    return _best(_asked(settings, spec, cluster, None), settings, spec)


def _best(asked: Asked, settings: TrainSettings, spec: ModelSpec) -> Layout:
    """The fastest layout of the plan that the trainer runs as well."""
    found = plan_of(asked, alternatives=CHOICES)
    choices: list[LayoutPlan] = [found.best, *found.alternatives]
    layouts = [choice.layout for choice in choices]
    first = first_runnable(layouts, spec, settings)
    refused = 0
    for layout in layouts:
        try:
            runnable = first_runnable([layout], spec, settings)
        except LayoutError:
            continue
        if _holds(asked, settings, spec, runnable):
            return runnable
        refused += 1
    cluster = asked.task.cluster
    if cluster.device.id == CPU:
        return first
    raise LayoutError(
        f"none of the {refused} best layouts on {cluster.devices} x {cluster.device.id} fits in "
        f"{format_bytes(cluster.memory_bytes, 3)}, the fastest being {first}: ask for more devices "
        "or a smaller batch, or state a layout of your own"
    )


def _holds(asked: Asked, settings: TrainSettings, spec: ModelSpec, layout: Layout) -> bool:
    """Whether the layout fits: by the plan, and near the device's memory by its rehearsal."""
    cluster = asked.task.cluster
    planned = describe(Pricer(asked.task), layout).memory_bytes.mid
    if cluster.device.id == CPU or not is_near(planned, cluster.memory_bytes):
        return planned <= cluster.memory_bytes
    return needed(rehearsed_peak(settings, spec, layout)) <= cluster.memory_bytes


# Near the edge of memory a layout is rehearsed before it is believed
# -------------------------------------------------------------------

_NEAR = (0.75, 1.35)
"""Planned over present memory where a layout is rehearsed before it is believed."""


def step_of(
    settings: TrainSettings, spec: ModelSpec, layout: Layout, *, crowding: float = 1.0
) -> Step:
    """The run's full step under ``layout``."""
    from krzem.train.model.experts import Dispatch
    from krzem.train.rehearsal.rank import Step
    from krzem.train.setup import loss_weights, optimizer_config

    return Step(
        spec=spec,
        layout=layout,
        sequence=settings.goal.sequence,
        micro_batches=settings.batches.full // (layout.dp * layout.micro_batch),
        precision=settings.goal.precision,
        by_rows=settings.train.expert_scales == "row",
        optimizer=optimizer_config(settings),
        weights=loss_weights(settings),
        bias_rate=settings.train.bias_rate,
        documents=settings.data.documents,
        crowding=crowding,
        dispatch=Dispatch(capacity=settings.train.capacity, beside=True),
    )


def rehearsed_peak(settings: TrainSettings, spec: ModelSpec, layout: Layout) -> int:
    """Bytes of tensors on the fullest of the first, the second and the last stage's first ranks.

    With stages that are as even as layers allow, no other holds more.
    """
    from krzem.train.rehearsal.stages import rehearse, stage_rank, summary_of

    stages = sorted({0, min(1, layout.pp - 1), layout.pp - 1})
    ranks = [stage_rank(layout, stage) for stage in stages]
    step = step_of(settings, spec, layout)
    return rehearse(step, ranks, one=summary_of, progress=say).fullest.peak.total


def needed(tensors: float) -> float:
    """Bytes that a device must have for so many of tensors: with the driver's context, buffers of
    collectives and fragmentation, as every plan counts them."""
    return tensors * (1.0 + FRAGMENTATION) + RESERVE_BYTES


def is_near(planned: float, room: float) -> bool:
    """Whether the planner's figure alone does not decide that a layout fits."""
    return _NEAR[0] <= planned / room <= _NEAR[1]


def say(said: str) -> None:
    click.echo(said, err=True)
