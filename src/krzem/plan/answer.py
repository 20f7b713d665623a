"""Answers settled questions: the best layouts, one layout, or several clusters side by side."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import NormalDist

import numpy as np

from krzem.cost.coefficients import Z80
from krzem.errors import ClusterError, GoalError, KrzemError, LayoutError, shorten
from krzem.layout.layout import Layout, parse_layout
from krzem.layout.space import layouts
from krzem.plan.footprint import footprint_of
from krzem.plan.plan import Explanation, Plan, explain, plan
from krzem.plan.price import Pricer, Task
from krzem.plan.request import Asked

Progress = Callable[[int], None]
"""Called with the number of layouts priced so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One cluster of a comparison: its plan, or why there is none."""

    asked: Asked
    plan: Plan | None
    error: str | None


def plan_of(asked: Asked, *, alternatives: int = 5, progress: Progress | None = None) -> Plan:
    """The best layouts; raises GoalError and ClusterError as :func:`krzem.plan.plan.plan`.

    A batch that no layout divides gives way to the nearest one that some layout does, noted.
    """
    asked = fitting_batch(asked)
    found = plan(
        asked.task,
        space=asked.space,
        alternatives=alternatives,
        sure=asked.sure,
        start=asked.start,
        progress=progress,
    )
    return replace(
        found,
        notes=(*asked.batch_notes, *found.notes),
        footprint=footprint_of(found.task, found.whole_run, asked.grid),
    )


BATCH_SHARE = 0.25
"""How far from the batch that was asked for another one may lie."""
BATCHES = 12
"""How many other batches are tried."""


def fitting_batch(asked: Asked) -> Asked:
    """The question with the nearest batch, within a quarter, that some layout divides.

    It is unchanged where its own batch is divided, or where no batch near it is.
    """
    if _divided(asked, asked.task):
        return asked
    goal = asked.task.goal
    for batch in islice(_near(goal.global_batch, asked.task.cluster.devices), BATCHES):
        task = replace(asked.task, goal=replace(goal, global_batch=batch))
        if _divided(asked, task):
            note = _instead(goal.global_batch, batch, "no legal layout divides that many")
            return replace(asked, task=task, batch_notes=(note,))
    return asked


def _near(batch: int, devices: int) -> Iterator[int]:
    """Batches within a quarter, nearest first, that share more factors with the devices."""
    shared = math.gcd(batch, devices)
    for away in range(1, int(batch * BATCH_SHARE) + 1):
        for other in (batch - away, batch + away):
            if math.gcd(other, devices) > shared:
                shared = math.gcd(other, devices)
                yield other


def divides(asked: Asked) -> bool:
    """Whether some layout that the engine runs divides the batch that is asked for."""
    return _divided(asked, asked.task)


def _divided(asked: Asked, task: Task) -> bool:
    """Whether some layout that the engine runs divides the batch of ``task``."""
    pricer = Pricer(task)
    blocks = layouts(task.problem, asked.space)
    return any(bool(np.any(pricer.allowed(block, asked.space.limits))) for block in blocks)


def _instead(wanted: int, taken: int, why: str) -> str:
    return f"a batch of {taken:,} sequences is planned instead of {wanted:,}: {why}"


def explanation_of(asked: Asked, layout: str | Layout) -> Explanation:
    """One layout, term by term; raises LayoutError where it is malformed or not legal."""
    notes: list[str] = []
    if isinstance(layout, str):
        layout = complete(layout, asked.task.cluster.devices, notes)
    asked = _whole_micro_batches(asked, layout, notes)
    found = explain(asked.task, layout, start=asked.start, whole=asked.whole)
    run = found.whole_run
    return replace(
        found,
        notes=(*notes, *found.notes),
        footprint=None if run is None else footprint_of(found.task, run, asked.grid),
    )


def _whole_micro_batches(asked: Asked, layout: Layout, notes: list[str]) -> Asked:
    """The batch as the nearest multiple of ``dp * mbs``, noted where that is another one."""
    goal, ranks = asked.task.goal, layout.dp * layout.micro_batch
    if goal.global_batch % ranks == 0:
        return asked
    taken = max(1, round(goal.global_batch / ranks)) * ranks
    if abs(taken - goal.global_batch) > goal.global_batch * BATCH_SHARE:
        return asked
    why = f"dp * mbs = {layout.dp} * {layout.micro_batch} = {ranks} has to divide it"
    notes.append(_instead(goal.global_batch, taken, why))
    return replace(asked, task=replace(asked.task, goal=replace(goal, global_batch=taken)))


def candidates_of(
    several: Sequence[Asked], *, alternatives: int = 5, progress: Progress | None = None
) -> tuple[Candidate, ...]:
    """A plan for each that has one.

    Raises the error of the first where none has.
    """
    found, errors = [], []
    for asked in several:
        try:
            done = plan_of(asked, alternatives=alternatives, progress=progress)
            found.append(Candidate(asked=asked, plan=done, error=None))
        except (ClusterError, GoalError) as error:
            errors.append(error)
            found.append(Candidate(asked=asked, plan=None, error=str(error)))
    if not found:
        raise ClusterError("no cluster to compare: give at least one")
    if len(errors) == len(found):
        raise _joined(errors)
    return tuple(found)


def chance_cheaper(first: Candidate, second: Candidate) -> float | None:
    """The chance that the first costs less than the second; None where a cost is unknown.

    The middle of a cost is its median, its interval log-normal; the model's own error is the same
    on both only in part, so the two are taken as independent, which errs towards a half.
    """
    if first.plan is None or second.plan is None:
        return None
    one, other = first.plan.whole_run.cost_usd, second.plan.whole_run.cost_usd
    if one is None or other is None:
        return None
    wide = math.hypot(*(math.log(cost.high / cost.low) / (2 * Z80) for cost in (one, other)))
    apart = math.log(other.mid / one.mid)
    return NormalDist().cdf(apart / wide) if wide else float(apart > 0)


def script_of(
    asked: Asked, answer: Plan | Explanation, engine: str, scheduler: str = "none"
) -> str:
    """The launch script of the best (or explained) layout on ``engine``, every flag explained.

    With a ``scheduler`` it is a batch file for it.  Raises UnknownNameError, and LayoutError,
    ModelError or GoalError where the engine cannot run it.
    """
    from krzem.plan.emit import batch, emit, render

    layout = answer.best.layout if isinstance(answer, Plan) else answer.plan.layout
    task = answer.task
    launch = emit(
        engine,
        layout,
        task.goal,
        task.architecture,
        task.cluster,
        asked.config,
        None if answer.whole_run is None else answer.whole_run.checkpoint.interval_steps,
        dict(answer.best.switches if isinstance(answer, Plan) else answer.plan.switches),
    )
    return batch(render(launch), launch, task.cluster, scheduler, layout.devices)


def check_emission(asked: Asked, engine: str) -> None:
    """Refuse, before anything is searched, what no layout can be emitted for.

    Raises ModelError where the engine has no words for the model, GoalError for a precision, an
    optimizer or a state that its files cannot say.
    """
    from krzem.plan.emit import emit

    task, pricer = asked.task, Pricer(asked.task)
    for block in layouts(task.problem, asked.space):
        allowed = block.take(pricer.allowed(block, asked.space.limits))
        if not len(allowed):
            continue
        first = allowed.take(slice(0, 1))
        with contextlib.suppress(LayoutError):
            emit(engine, first.at(0), task.goal, task.architecture, task.cluster, asked.config,
                 None, dict(pricer.choose(first).at(0)))  # fmt: skip
        return


def _joined(errors: Sequence[KrzemError]) -> KrzemError:
    return errors[0] if len(errors) == 1 else ClusterError("\n".join(map(str, errors)))


def complete(text: str, devices: int, notes: list[str]) -> Layout:
    """The layout that ``text`` describes; a missing ``dp`` is what the other degrees leave over.

    Raises LayoutError where the text is malformed or the degrees do not divide the devices.
    """
    degrees = {"tp": 1, "cp": 1, "pp": 1}
    named = set()
    for part in text.split(","):
        key, _, raw = (piece.strip().lower() for piece in part.partition("="))
        named.add(key)
        if key in degrees and raw.isascii() and raw.isdigit() and 0 < len(raw) <= 8:
            degrees[key] = int(raw)
    if not named - {""}:
        raise LayoutError("the layout is empty: write tp=1,pp=16,ep=64,mbs=1")
    text = _interleaved(text, named, notes)
    product = degrees["tp"] * degrees["cp"] * degrees["pp"]
    if "dp" in named or product == 0:
        return parse_layout(text)
    sums = " * ".join(f"{name}={degree}" for name, degree in degrees.items())
    if devices % product:
        parse_layout(",".join(part for part in text.split(",") if "shard" not in part))
        raise LayoutError(
            f"layout {shorten(text)}: {sums} = {product:,} does not divide the {devices:,}"
            " devices, so that no data-parallel degree fits"
        )
    notes.append(f"dp={devices // product} follows from {devices:,} devices / ({sums})")
    return parse_layout(f"{text.rstrip(', ')},dp={devices // product}")


def _interleaved(text: str, named: set[str], notes: list[str]) -> str:
    """Several chunks a rank without a schedule are the interleaved one."""
    chunks = next((p.partition("=")[2].strip() for p in text.split(",")
                   if p.partition("=")[0].strip().lower() == "vpp"), "1")  # fmt: skip
    if "schedule" in named or chunks in ("", "1"):
        return text
    notes.append(f"vpp={chunks} is the interleaved schedule")
    return f"{text.rstrip(', ')},schedule=interleaved"
