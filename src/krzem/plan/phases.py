"""A run of several phases (4k, then 32k, then 128k tokens a sequence; growing batches) as one plan.

Each phase is planned by itself, with a layout of its own: frameworks reshard a checkpoint between
phases.  Within a phase a batch may grow (``batch=512..2048``): it keeps its layout.  The errors of
the phases are taken as one, since model, cluster and engine are: bounds add up as middles do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

from krzem.cost.coefficients import Z80
from krzem.errors import ClusterError, GoalError, QuantityError, nearest, shorten
from krzem.estimate import Estimate
from krzem.files import read_toml
from krzem.plan.answer import Progress, plan_of
from krzem.plan.footprint import Footprint, footprint_with
from krzem.plan.goal import Stage, grown
from krzem.plan.plan import LayoutPlan, Plan
from krzem.plan.question import Question, read
from krzem.plan.request import Asked, settle
from krzem.quantity import parse_count, parse_length

KEYS = ("tokens", "seq", "batch", "batch-tokens", "precision")
SUMMED = ("training_days", "days", "device_hours", "node_hours", "energy_mwh", "cost_usd")
_SPELLED = {
    "tokens": "tokens", "at": "at", "seq": "seq", "sequence": "seq", "batch": "batch",
    "global_batch": "batch", "batch_tokens": "batch-tokens", "precision": "precision",
}  # fmt: skip
"""Keys of a ``[[phase]]`` in a file, as run files and the command line spell them."""
PRICELESS = ("name", "data", "documents", "rate", "schedule", "rope", "max_positions")
"""Keys of a trainer's phase that change what is learned and not what a step costs."""
MOST = 16
"""Phases of one run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePlan:
    """One phase with its best layout."""

    text: str
    """As it was asked for."""
    asked: Asked
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """A run of several phases."""

    phases: tuple[PhasePlan, ...]
    totals: dict[str, Estimate | None]
    """Sums by field of WholeRun; None where a phase does not know its part."""
    deadline_probability: float | None
    budget_probability: float | None
    footprint: Footprint | None
    """Of all phases together; losses are of all tokens."""

    @property
    def worst(self) -> int:
        """Index of the phase whose best layout is least likely to fit in memory."""
        return min(range(len(self.phases)), key=lambda i: self._best(i).fits_probability)

    def _best(self, index: int) -> LayoutPlan:
        return self.phases[index].plan.best


def spelled(texts: Sequence[str]) -> list[str]:
    """The phases one by one: a text as it stands, a TOML file as the texts of its ``[[phase]]``.

    A file is a list of phases with ``tokens`` each, or a run file, whose ``[goal]`` says what comes
    before the first phase and whose phases say ``at`` which token they begin.

    Raises DataError for what is no TOML file, QuantityError with the table that cannot be read.
    """
    return [
        phase
        for text in texts
        for phase in (_of_file(Path(text)) if text.lower().endswith(".toml") else [text])
    ]


def _of_file(path: Path) -> list[str]:
    raw = read_toml(path, hint="a list of [[phase]] tables, each with tokens, sequence, ...")
    tables, goal = raw.get("phase"), raw.get("goal", {})
    if (
        not isinstance(tables, list)
        or not (tables or goal)
        or not all(isinstance(t, Mapping) for t in tables)
    ):
        raise QuantityError(f"--phase {shorten(path.name)}: it has no [[phase]] tables")
    if not isinstance(goal, Mapping):
        raise QuantityError(f"--phase {shorten(path.name)}: [goal] has to be a table")
    if goal:
        tables = _since(goal, tables, path.name)
    ends = [*(t.get("at") for t in tables[1:]), goal.get("tokens")]
    return [_text(table, end, path.name) for table, end in zip(tables, ends, strict=True)]


def _since(
    goal: Mapping[str, Any], tables: Sequence[Mapping[str, Any]], name: str
) -> list[Mapping[str, Any]]:
    """The phases of a run file from its first token on: what one does not state stays as it was."""
    if "tokens" not in goal or not all("at" in table for table in tables):
        raise QuantityError(
            f"--phase {shorten(name)}: in a run file [goal] says tokens, and each [[phase]] the"
            ' token at which it begins, at = "2T"'
        )
    found: list[Mapping[str, Any]] = []
    stated: dict[str, Any] = {"at": 0}
    for table in ({k: v for k, v in goal.items() if k in _SPELLED and k != "tokens"}, *tables):
        stated = stated | dict(table)
        found.append(stated)
    return found


def _text(table: Mapping[str, Any], end: Any, name: str) -> str:
    """``tokens=800B,seq=32k`` from a table; ``end`` is the token at which the next one begins."""
    strange = [key for key in table if key not in _SPELLED and key not in PRICELESS]
    if strange:
        known = ", ".join([*_SPELLED, *PRICELESS])
        raise QuantityError(
            f"--phase {shorten(name)}: [[phase]] has {shorten(strange[0], 30)!r}, which a plan"
            f" cannot take; known are {known}"
        )
    found = {short: table[key] for key, short in _SPELLED.items() if key in table}
    first = found.pop("at", None)
    if first is not None and end is not None:
        found["tokens"] = parse_count(end) - (parse_count(first) if first else 0)
    return ",".join(f"{key}={value}" for key, value in found.items())


def parse_phase(text: str) -> dict[str, str]:
    """``tokens=800B,seq=32k,batch-tokens=16M`` as text by key.

    Raises QuantityError with the keys that there are.
    """
    found: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        key = key.lower().replace("_", "-")
        if key not in KEYS or not equals or not value or key in found:
            near = nearest(key, KEYS)
            offer = f" Did you mean {near[0]}?" if near and key not in KEYS else ""
            raise QuantityError(
                f"--phase {shorten(text)!r}: {shorten(part, 30)!r} is not a part of a phase; write"
                f" each of {', '.join(KEYS)} at most once, such as tokens=800B,seq=32k.{offer}"
            )
        found[key] = value
    if "tokens" not in found:
        raise QuantityError(f"--phase {shorten(text)!r}: how many tokens? Add tokens=800B")
    return found


def phases_of(
    question: Question, texts: Sequence[str], *, alternatives: int = 5,
    progress: Progress | None = None,
) -> Phases:  # fmt: skip
    """Plan each phase and add them up; what a phase leaves out is as ``question`` says.

    Raises what a plan raises, its message starting with the phase; GoalError for too many.
    """
    texts = spelled(texts)
    if len(texts) > MOST:
        raise GoalError(f"{len(texts)} phases: at most {MOST} are planned as one run")
    if question.tokens is not None:
        raise GoalError("--tokens with --phase: each phase says its own, tokens=800B; leave it out")
    found = [_planned(question, text, alternatives, progress) for text in texts]
    totals = {name: _sum([getattr(p.plan.whole_run, name) for p in found]) for name in SUMMED}
    goal = found[0].asked.task.goal
    tokens = sum(p.asked.task.goal.tokens for p in found)
    last = found[-1].asked
    whole = replace(last.task, goal=replace(last.task.goal, tokens=tokens))
    flop = sum(p.plan.footprint.flop for p in found if p.plan.footprint is not None)
    return Phases(
        phases=tuple(found),
        totals=totals,
        deadline_probability=_within(totals["days"], goal.deadline_days),
        budget_probability=_within(totals["cost_usd"], goal.budget_usd),
        footprint=footprint_with(whole, flop, totals["energy_mwh"], last.grid),
    )


def _planned(
    question: Question, text: str, alternatives: int, progress: Progress | None
) -> PhasePlan:
    try:
        asked = _asked(question, parse_phase(text))
        found = plan_of(asked, alternatives=alternatives, progress=progress)
    except (GoalError, ClusterError) as error:
        raise type(error)(f"--phase {shorten(text)!r}: {error}") from None
    return PhasePlan(text=text, asked=asked, plan=found)


def _asked(question: Question, phase: dict[str, str]) -> Asked:
    low, dots, high = phase.get("batch", "").partition("..")
    changes: dict[str, Any] = {"tokens": phase["tokens"]}
    if "seq" in phase:
        changes["sequence"] = read("seq", parse_length, phase["seq"])
    if "precision" in phase:
        changes["precision"] = phase["precision"]
    if "batch" in phase:
        changes |= {"global_batch": high if dots else low, "batch_tokens": None}
    elif "batch-tokens" in phase:
        changes |= {"batch_tokens": phase["batch-tokens"], "global_batch": None}
    asked = settle(replace(question, **changes))
    if not dots:
        return asked
    return _ramped(asked, read("batch", parse_count, low))


def _ramped(asked: Asked, first: int) -> Asked:
    """The phase with a batch that grows from ``first`` over all of its tokens."""
    goal = asked.task.goal
    if not 1 <= first < goal.global_batch:
        raise GoalError(
            f"batch={first}..{goal.global_batch}: a batch grows from the smaller to the larger"
        )
    ramp: tuple[Stage, ...] = tuple(grown(first, goal.global_batch, goal.tokens))
    return replace(asked, task=replace(asked.task, goal=replace(goal, ramp=ramp)))


def _sum(parts: Sequence[Estimate | None]) -> Estimate | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return Estimate(*(sum(getattr(p, end) for p in known) for end in ("low", "mid", "high")))


def _within(total: Estimate | None, limit: float | None) -> float | None:
    """The chance that a log-normal quantity stays within ``limit``."""
    if total is None or limit is None:
        return None
    side = total.high if limit > total.mid else total.low
    sigma = abs(math.log(side / total.mid)) / Z80
    return NormalDist().cdf(math.log(limit / total.mid) / sigma) if sigma else 1.0
