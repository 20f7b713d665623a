"""Answers settled questions: the best layouts, one layout, or several clusters side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from krzem.errors import ClusterError, GoalError, KrzemError, LayoutError, shorten
from krzem.layout.layout import Layout, parse_layout
from krzem.layout.space import layouts
from krzem.plan.plan import Explanation, Plan, explain, plan
from krzem.plan.price import Pricer
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
    """The best layouts; raises GoalError and ClusterError as :func:`krzem.plan.plan.plan`."""
    return plan(
        asked.task,
        space=asked.space,
        alternatives=alternatives,
        sure=asked.sure,
        start=asked.start,
        progress=progress,
    )


def explanation_of(asked: Asked, layout: str | Layout) -> Explanation:
    """One layout, term by term; raises LayoutError where it is malformed or not legal."""
    notes: list[str] = []
    if isinstance(layout, str):
        layout = complete(layout, asked.task.cluster.devices, notes)
    found = explain(asked.task, layout, start=asked.start, whole=asked.whole)
    return replace(found, notes=(*notes, *found.notes))


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


def script_of(
    asked: Asked, answer: Plan | Explanation, engine: str, scheduler: str = "none"
) -> str:
    """The launch script of the best (or explained) layout on ``engine``, every flag explained.

    With a ``scheduler`` it is a batch file for it.  Raises UnknownNameError, and LayoutError,
    ModelError or GoalError where the engine cannot run it.
    """
    from krzem.plan.emit import batch, emit, render

    layout = answer.best.layout if isinstance(answer, Plan) else answer.plan.layout
    task = asked.task
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
    optimiser or a state that its files cannot say.
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
