"""The whole run of one priced layout: its ramp, and what published runs took beyond their steps."""

from __future__ import annotations

import datetime

import numpy as np

from krzem.estimate import Estimate
from krzem.layout.arrays import pack
from krzem.layout.layout import Layout
from krzem.plan.calendar import beyond
from krzem.plan.forecast import Phase, WholeRun, forecast
from krzem.plan.price import Pricer


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
