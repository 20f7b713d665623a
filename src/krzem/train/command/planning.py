"""The planner's answer for a run file: which layout, how long a step, how much memory."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from krzem.errors import KrzemError, LayoutError, UnknownFactError
from krzem.estimate import Basis, Estimate
from krzem.hardware import Cluster, cluster_of, read_cluster
from krzem.layout.layout import Layout
from krzem.plan.answer import plan_of
from krzem.plan.plan import LayoutPlan, describe
from krzem.plan.price import Pricer
from krzem.plan.request import Asked, Question, settle
from krzem.run.before import cluster_for, sharpened
from krzem.run.profile import read_profile
from krzem.run.run_file import CPU
from krzem.run.settings import Pool
from krzem.train.config import ModelSpec
from krzem.train.engine import check_layout
from krzem.train.forecast import Forecast
from krzem.train.loop import check_batch
from krzem.train.parallel.stages import parts
from krzem.train.settings import TrainSettings

_SPREAD = 0.6
"""Spread of the logarithm of a step time on processors, which no published run calibrates."""
_CHOICES = 40
"""Parallel shapes of the planner that are tried on the trainer, fastest first."""
HOW = 'name the device, cluster = "h100:8", or what krzem probe measured, cluster = "profile.toml"'


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
    """The run as the planner's question: parameters, gradients and moments are float32.

    Between steps a sharded layout below zero=3 also keeps the gathered weights, as computed with.
    """
    goal = settings.goal
    weight, master, moments = 4, 0, 8 if goal.optimizer == "adamw" else 4
    if layout is not None and layout.zero in (1, 2) and layout.dp * layout.cp > 1:
        weight, master = 4 if goal.precision == "fp32" else 2, 4
    return settle(
        Question(
            model=spec.arch,
            on=cluster,
            tokens=max(goal.tokens, goal.global_batch * goal.sequence),
            sequence=goal.sequence,
            global_batch=goal.global_batch,
            precision=goal.precision,
            optimizer=goal.optimizer,
            state_bytes=f"weight={weight},gradient=4,master={master},moments={moments}",
            engine="krzem",
        )
    )


def _best(asked: Asked, settings: TrainSettings, spec: ModelSpec) -> Layout:
    """The fastest layout of the plan that the trainer runs as well, if need be (within a batch
    ramp) with a smaller micro-batch.

    Raises LayoutError with the reason of the fastest one where it runs none.
    """
    found = plan_of(asked, alternatives=_CHOICES)
    choices: list[LayoutPlan] = [found.best, *found.alternatives]
    reasons = []
    for choice in choices:
        mbs = choice.layout.micro_batch
        for micro_batch in (m for m in range(mbs, 0, -1) if mbs % m == 0):
            layout = replace(choice.layout, micro_batch=micro_batch)
            try:
                check_layout(spec, layout)
                parts(len(spec.layers), layout)
                check_batch(settings, layout)
            except KrzemError as error:
                reasons.append(str(error))
                continue
            return layout
    raise LayoutError(
        f"the trainer runs none of the {len(choices)} fastest layouts of the planner; the fastest: "
        f"{reasons[0]}. State a layout"
    )
