"""The whole run: from the time of one step to days, device-hours, energy, money and dates.

Every answer is an 80 % interval.  The uncertain inputs (step time, interruption rate, restart
time, storage rate, power, price) are log-normal, and so is nothing they add up to: so they are
propagated by sampling (a fixed Latin hypercube, :mod:`krzem.plan.goodput`), and the probabilities
of keeping the deadline and the budget are shares of the same draws.  The luck of the run itself,
how many interruptions it meets and when, is one more source of chance.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from krzem.errors import GoalError
from krzem.estimate import Estimate
from krzem.hardware.cluster import Cluster
from krzem.layout.layout import Layout, pack
from krzem.plan.calendar import Beyond, Part, Times, beyond, parts, stepping, stopped
from krzem.plan.goal import Goal
from krzem.plan.goodput import (
    ENERGY_FIELDS,
    PRICE_FIELDS,
    Draws,
    by_class,
    cost_usd,
    draw,
    energy_mwh,
    goodput,
    lost_variance,
    missing,
    normal,
    optimal_interval,
    quantity,
    summary,
)
from krzem.plan.price import Pricer

DAY = 86_400.0
_NEVER = 1e12
"""Seconds between interruptions of a cluster that is said to have none."""
FAULT_FIELDS = ("failures_per_device_day", "restart_seconds", "checkpoint_write_bytes_per_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of a batch ramp: ``tokens`` trained with ``global_batch`` sequences a step."""

    tokens: float
    global_batch: int
    step_seconds: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointing:
    """What is saved, how long that stops the run, and how often it is done."""

    bytes: float
    """Weights, master weights and optimiser moments, without gradients."""
    write_seconds: Estimate | None
    interval_seconds: float | None
    """Seconds of steps between two saves."""
    interval_steps: int | None
    optimal: bool
    """Whether the interval was chosen here to lose the least time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeRun:
    """The forecast; what is None is explained in ``unknown``."""

    steps: int
    training_days: Estimate
    """Time in steps alone: what the run would take if nothing ever stopped it."""
    days: Estimate | None
    device_hours: Estimate | None
    node_hours: Estimate | None
    energy_mwh: Estimate | None
    cost_usd: Estimate | None
    goodput: Estimate | None
    """Kept step time over wall clock."""
    interruptions: Estimate | None
    """Expected number over the run."""
    failures: Estimate | None
    """How many of them a run meets, chance included: whole numbers that bound the central 80 %."""
    recovery_seconds: Estimate | None
    """From an interruption to training again, the loading of the checkpoint included."""
    checkpoint: Checkpointing
    finish: tuple[datetime.date, datetime.date, datetime.date] | None
    """Early, middle and late end of the 80 % interval, where a start was given."""
    deadline_probability: float | None
    """Of finishing within ``goal.deadline_days``; None without a deadline."""
    budget_probability: float | None
    """Of costing at most ``goal.budget_usd``; None without a budget."""
    unknown: tuple[str, ...]
    notes: tuple[str, ...]
    parts: tuple[Part, ...] = ()
    """Where the days go; their middles add up to the middle of ``days``.  Empty without days."""


def forecast(
    step_seconds: Estimate,
    *,
    goal: Goal,
    cluster: Cluster,
    parameters: float,
    ramp: Sequence[Phase] = (),
    start: datetime.date | None = None,
    checkpoint_interval_seconds: float | None = None,
    more: Beyond | None = None,
) -> WholeRun:
    """Forecast a run of ``goal.tokens`` whose full-batch step takes ``step_seconds``.

    ``parameters`` is the total count, for the size of a checkpoint.  ``ramp`` holds what is
    trained before, with smaller batches; its tokens count towards ``goal.tokens``.  The errors of
    all step times are taken as one: if the full batch is slower than predicted, so is the ramp.
    ``more`` is what a real run takes beyond steps, checkpoints and interruptions; None: nothing.

    Raises GoalError where the ramp has more tokens than the goal, a batch above the goal's, or
    the checkpoint interval is not above zero.
    """
    if checkpoint_interval_seconds is not None and not 0 < checkpoint_interval_seconds < math.inf:
        raise GoalError(
            f"a checkpoint every {checkpoint_interval_seconds} s: a number above 0 is needed"
        )
    phases = _phases(step_seconds, goal, ramp)
    steps = sum(count for count, _ in phases)
    training = np.sum([count * draw(time, "step_seconds") for count, time in phases], axis=0)
    stepped = stepping(training, more)
    faults = _faults(stepped, step_seconds.mid, goal, cluster, parameters,
                     checkpoint_interval_seconds)  # fmt: skip
    wall = None if faults.wall is None else stopped(faults.wall, more)
    hours = None if wall is None else wall / 3600.0 * cluster.devices
    # What is known of prices and power is used whatever else is not: then for the steps alone.
    paid = stepped / 3600.0 * cluster.devices if hours is None else hours
    energy = energy_mwh(paid, cluster)
    cost = cost_usd(paid, cluster)
    days = None if wall is None else wall / DAY
    middle = _summary(days)
    return WholeRun(
        steps=steps,
        training_days=summary(training / DAY, step_seconds.basis),
        days=middle,
        device_hours=_summary(hours),
        node_hours=_summary(hours, cluster.nodes / cluster.devices),
        energy_mwh=_summary(energy),
        cost_usd=_summary(cost),
        goodput=_summary(faults.goodput),
        interruptions=_summary(faults.interruptions),
        failures=_counted(faults.interruptions),
        recovery_seconds=_summary(faults.recovery),
        checkpoint=faults.checkpoint,
        finish=_dates(start, middle),
        deadline_probability=_share(days, goal.deadline_days),
        budget_probability=_share(cost, goal.budget_usd),
        unknown=_unknown(cluster),
        notes=(*_notes(faults, cluster), *by_class(cluster, FAULT_FIELDS)),
        parts=_parts(step_seconds, goal, training, stepped, faults, wall, more),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Faults:
    """Draws of what interruptions and checkpoints do to the run; None where unknown."""

    checkpoint: Checkpointing
    wall: Draws | None = None
    goodput: Draws | None = None
    interruptions: Draws | None = None
    recovery: Draws | None = None
    saving: Draws | None = None
    """Seconds that checkpoints stop the run."""


def _parts(
    step: Estimate, goal: Goal, training: Draws, stepped: Draws, faults: _Faults,
    wall: Draws | None, more: Beyond | None,
) -> tuple[Part, ...]:  # fmt: skip
    """Where the days go; nothing where they are not known."""
    if wall is None or faults.wall is None or faults.saving is None:
        return ()
    steps = _steps(goal.tokens, goal.tokens_per_step)
    times = Times(
        full=steps * draw(step, "step_seconds"),
        training=training,
        stepping=stepped,
        saving=faults.saving,
        wall=faults.wall,
        total=wall,
    )
    return parts(times, more, summary(wall / DAY))


def _phases(step: Estimate, goal: Goal, ramp: Sequence[Phase]) -> tuple[tuple[int, Estimate], ...]:
    """Steps and step time of each phase, the full batch last."""
    ramped = sum(phase.tokens for phase in ramp)
    if ramped > goal.tokens:
        raise GoalError(
            f"the batch ramp holds {ramped:,.0f} tokens, more than the {goal.tokens:,.0f} of the"
            " whole run; shorten the ramp or raise --tokens"
        )
    result = []
    for phase in ramp:
        if not (0 < phase.global_batch <= goal.global_batch and phase.tokens > 0):
            raise GoalError(
                f"batch ramp: {phase.tokens:,.0f} tokens at {phase.global_batch} sequences a step;"
                f" tokens above 0 and a batch from 1 to the full {goal.global_batch} are needed"
            )
        result.append((_steps(phase.tokens, phase.global_batch * goal.sequence),
                       phase.step_seconds))  # fmt: skip
    rest = goal.tokens - ramped
    if rest > 0:
        result.append((_steps(rest, goal.tokens_per_step), step))
    return tuple(result)


def _steps(tokens: float, per_step: int) -> int:
    return max(1, math.ceil(tokens / per_step))


def _faults(
    training: Draws, step: float, goal: Goal, cluster: Cluster, parameters: float,
    interval: float | None,
) -> _Faults:  # fmt: skip
    """Draws of goodput and wall clock; the interval is one for all draws, as in a real run."""
    saved = parameters * (goal.states.weight + goal.states.master + goal.states.moments)
    bandwidth = quantity(cluster, "checkpoint_write_bytes_per_s")
    rate = quantity(cluster, "failures_per_device_day")
    restart = quantity(cluster, "restart_seconds")
    write = None if bandwidth is None else bandwidth.inverse(saved)
    optimal = interval is None
    if write is None or bandwidth is None or rate is None or restart is None:
        return _Faults(checkpoint=_checkpointing(saved, write, interval, step, optimal))
    per_second = draw(rate, "failures_per_device_day") * cluster.devices / DAY
    mean_times = 1.0 / np.maximum(per_second, 1.0 / _NEVER)
    if interval is None:
        best = float(optimal_interval(write.mid, np.median(mean_times)))
        interval = max(min(best, float(np.median(training))), step)
    writing = saved / draw(bandwidth, "checkpoint_write_bytes_per_s")
    # Loading is taken to be as slow as writing: the one published pair reads 1.8 times faster.
    recovery = draw(restart, "restart_seconds") + writing
    kept = goodput(interval, writing, recovery, mean_times)
    wall = training / kept
    luck = normal("chance") * np.sqrt(lost_variance(interval, recovery, wall * per_second))
    return _Faults(
        checkpoint=_checkpointing(saved, write, interval, step, optimal),
        wall=np.maximum(wall + luck, training * (1.0 + writing / interval)),
        goodput=kept,
        interruptions=wall * per_second,
        recovery=recovery,
        saving=training * writing / interval,
    )


def _checkpointing(
    saved: float, write: Estimate | None, interval: float | None, step: float, optimal: bool
) -> Checkpointing:
    return Checkpointing(
        bytes=saved,
        write_seconds=write,
        interval_seconds=interval,
        interval_steps=None if interval is None else max(1, round(interval / step)),
        optimal=optimal,
    )


def _summary(values: Draws | None, factor: float = 1.0) -> Estimate | None:
    return None if values is None else summary(values).scaled(factor)


def _counted(expected: Draws | None) -> Estimate | None:
    """The range of a number of events whose expectation is as uncertain as ``expected``."""
    if expected is None:
        return None
    events = np.random.default_rng(20261123).poisson(np.minimum(expected, 1e15))
    low, mid, high = np.quantile(events, (0.1, 0.5, 0.9), method="nearest")
    return Estimate(float(low), float(mid), float(high))


def _share(values: Draws | None, limit: float | None) -> float | None:
    if values is None or limit is None:
        return None
    return float(np.mean(values <= limit))


def _dates(
    start: datetime.date | None, days: Estimate | None
) -> tuple[datetime.date, datetime.date, datetime.date] | None:
    if start is None or days is None:
        return None
    last = (datetime.date.max - start).days
    early, middle, late = (
        start + datetime.timedelta(days=min(math.ceil(value), last))
        for value in (days.low, days.mid, days.high)
    )
    return early, middle, late


def _unknown(cluster: Cluster) -> tuple[str, ...]:
    sentences = (
        missing(
            cluster,
            FAULT_FIELDS,
            "Goodput and days with interruptions (energy and cost count the steps alone) are",
        ),
        missing(cluster, ENERGY_FIELDS, "Energy is"),
        missing(cluster, PRICE_FIELDS, "Cost is"),
    )
    return tuple(sentence for sentence in sentences if sentence is not None)


def _notes(faults: _Faults, cluster: Cluster) -> tuple[str, ...]:
    rate, kept, recovery = cluster.failures_per_device_day, faults.goodput, faults.recovery
    if not rate or kept is None or recovery is None or float(np.median(kept)) >= 0.5:
        return ()
    mean_time = DAY / (rate * cluster.devices)
    return (
        f"more than half of the time is lost: {cluster.devices:,} devices are interrupted every"
        f" {mean_time:,.0f} s and a recovery takes {np.median(recovery):,.0f} s; recover faster"
        " (restart_time) or train on fewer devices",
    )


# The whole run of one priced layout: its ramp, and what published runs took beyond steps
# ---------------------------------------------------------------------------------------


def whole_run(
    pricer: Pricer,
    layout: Layout,
    step_seconds: Estimate,
    *,
    parameters: float,
    start: datetime.date | None = None,
    given: bool = False,
) -> WholeRun:
    """The forecast of a run with ``layout``; ``given`` says that it is one that runs, not the best
    of a search, whose layouts are picked by their errors too.

    Raises GoalError as :func:`krzem.plan.forecast.forecast`.
    """
    task = pricer.task
    more = beyond(given, task.cluster.nodes)
    return forecast(
        step_seconds,
        goal=task.goal,
        cluster=task.cluster,
        parameters=parameters,
        ramp=ramp(pricer, layout, step_seconds),
        start=start,
        more=more,
    )


def ramp(pricer: Pricer, layout: Layout, step_seconds: Estimate) -> tuple[Phase, ...]:
    """The goal's ramp with the step time of each batch in this layout.

    A batch that does not fill every data-parallel rank once takes as long as one that does: the
    others wait.  Errors are those of the full batch.
    """
    goal, x = pricer.task.goal, pack([layout])
    chosen = pricer.choose(x)
    least = layout.dp * layout.micro_batch
    full = float(np.ravel(pricer.step(x, chosen).total)[0]) if goal.ramp else 1.0
    found = []
    for stage in goal.ramp:
        seconds = pricer.with_batch(max(stage.global_batch, least)).step(x, chosen).total
        found.append(
            Phase(
                tokens=stage.tokens,
                global_batch=stage.global_batch,
                step_seconds=step_seconds.scaled(min(float(np.ravel(seconds)[0]) / full, 1.0)),
            )
        )
    return tuple(found)
