"""The planner's answer for a run file: which layout, how long a step, how much memory."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from krzem.errors import LayoutError, UnknownFactError
from krzem.estimate import Basis, Estimate
from krzem.hardware import CPU, Cluster, cluster_of, read_cluster
from krzem.layout.layout import Layout
from krzem.plan.answer import plan_of
from krzem.plan.plan import LayoutPlan, describe
from krzem.plan.price import Pricer
from krzem.plan.question import Question
from krzem.plan.request import Asked, settle
from krzem.quantity import format_bytes
from krzem.run.before import CHOICES, cluster_for, kept_bytes, sharpened
from krzem.run.profile import read_profile
from krzem.run.settings import Pool
from krzem.train.config import ModelSpec
from krzem.train.forecast import Forecast
from krzem.train.runnable import first_runnable
from krzem.train.settings import TrainSettings

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
    from krzem.train.command.rehearsing import is_near, needed, rehearsed_peak

    cluster = asked.task.cluster
    planned = describe(Pricer(asked.task), layout).memory_bytes.mid
    if cluster.device.id == CPU or not is_near(planned, cluster.memory_bytes):
        return planned <= cluster.memory_bytes
    return needed(rehearsed_peak(settings, spec, layout)) <= cluster.memory_bytes
