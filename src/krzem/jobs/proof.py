"""Finds the edits that make a suggestion, and proves them: applied, read back, priced again."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from krzem.errors import KrzemError
from krzem.jobs.advice import Suggestion
from krzem.jobs.edits import Edit, Text, applied, at_place, merged, there, written
from krzem.jobs.job import Job, Value
from krzem.jobs.priced import price_all
from krzem.jobs.question import Posed, pose
from krzem.jobs.spellings import targets, words_of
from krzem.layout.layout import Layout

SAME = 2e-3
"""Relative difference of two prices that are one price."""
MOST_READINGS = 24
"""Times that the files are read again for one suggestion."""
Read = Callable[[Mapping[str, str]], Job]
Repose = Callable[[Job], Posed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """A suggestion with the edits that make it."""

    suggestion: Suggestion
    edits: tuple[Edit, ...]
    """Empty where no place in the files was found that says it."""
    flags: str
    """The change in the engine's own flags or keys; '' where they are not known."""


def apply(files: Mapping[str, str], proved: Proved) -> dict[str, str]:
    """The files with the suggestion made."""
    return applied(files, proved.edits)


def prove(
    suggestion: Suggestion, posed: Posed, files: Mapping[str, str], read: Read, repose: Repose
) -> Proved:
    """The edits of a suggestion, if there are some that read back and reprice as promised."""
    fields = _fields(suggestion, posed)
    flags = _flags(suggestion, posed, fields, files)
    if not files:
        return Proved(suggestion=suggestion, edits=(), flags=flags)
    budget = itertools.count()
    trial = _Trial(suggestion, posed, files, read, repose, budget)
    found = _search(list(fields.items()), [], trial)
    return Proved(suggestion=suggestion, edits=tuple(found or ()), flags=flags)


@dataclass(frozen=True, slots=True)
class _Trial:
    suggestion: Suggestion
    posed: Posed
    files: Mapping[str, str]
    read: Read
    repose: Repose
    budget: Iterator[int]

    def job(self, edits: Sequence[Edit]) -> Job | None:
        """The job after ``edits``; None where it cannot be read, or too much was read already."""
        if next(self.budget) >= MOST_READINGS:
            return None
        try:
            return self.read(applied(self.files, edits))
        except KrzemError:
            return None

    def keeps(self, job: Job) -> bool:
        """Whether the edited job is the suggestion: the same question at the promised price."""
        try:
            posed = self.repose(job)
        except KrzemError:
            return False
        want, task = self.suggestion.change, self.posed.task
        same = (
            posed.task.goal.global_batch == task.goal.global_batch
            and posed.task.cluster.devices == task.cluster.devices
            and _alike(posed.layout, want.layout)
        )
        if not same:
            return False
        price = price_all(posed.pricer(), [(posed.layout, posed.task.setup)])[0]
        return abs(math.log(price.seconds / self.suggestion.priced.seconds)) < SAME


def _alike(a: Layout, b: Layout) -> bool:
    names = ("tp", "cp", "pp", "dp", "ep", "vpp", "micro_batch", "zero", "recompute")
    return all(getattr(a, n) == getattr(b, n) for n in names)


def _search(fields: list[tuple[str, Value]], done: list[Edit], trial: _Trial) -> list[Edit] | None:
    """Depth first over the places of one field after the other."""
    if not fields:
        job = trial.job(done)
        if job is None:
            return None
        if trial.keeps(job):
            return done
        left = [(n, v) for n, v in _following(trial).items() if job.get(n) != v]
        return _mend(left, done, trial) if left else None
    (name, value), *rest = fields
    for edits in _ways(name, value, done, trial):
        both = merged(done, edits)
        if rest:
            job = trial.job(both)
            if job is None or not _says(job, name, value):
                continue
        found = _search(rest, both, trial)
        if found is not None:
            return found
    return None


def _says(job: Job, name: str, value: Value) -> bool:
    return job.get(name) == value or name in ("rlayers", "schedule", "sp", "shard", "cpkind")


def _mend(fields: list[tuple[str, Value]], done: list[Edit], trial: _Trial) -> list[Edit] | None:
    """What no longer closes: replicas, passes and batch that the files state themselves."""
    for name, value in fields:
        for edits in _ways(name, value, done, trial):
            both = merged(done, edits)
            job = trial.job(both)
            if job is not None and trial.keeps(job):
                return both
            if job is not None and job.get(name) == value:
                done = both
                break
    return None


def _ways(name: str, value: Value, done: list[Edit], trial: _Trial) -> Iterator[list[Edit]]:
    text = Text(trial.files, done)
    yield from at_place(trial.posed.job.settings.get(name), value, text)
    context = _context(trial.suggestion, trial.posed)
    for way in targets(trial.posed.job.engine, name, value, context):
        yield from written(way, text)


def _fields(suggestion: Suggestion, posed: Posed) -> dict[str, Value]:
    """The fields to write: those that change, less what follows from others."""
    fields = dict(suggestion.change.fields)
    if "vpp" in fields:
        fields.pop("schedule", None)
    if "recompute" in fields or (fields.get("rlayers") and posed.layout.recompute_layers is None):
        fields.setdefault("recompute", suggestion.change.layout.recompute.value)
        fields.pop("rlayers", None)
    if suggestion.change.kind == "micro-batch":
        return fields
    if "tp" in fields and posed.layout.tp == 1 and suggestion.change.layout.sequence_parallel:
        fields.setdefault("sp", True)
    return fields


def _following(trial: _Trial) -> dict[str, Value]:
    """What must be so in the end, though it is no part of the change."""
    layout, goal = trial.suggestion.change.layout, trial.posed.task.goal
    return {
        "dp": layout.dp,
        "accumulation": goal.global_batch // (layout.dp * layout.micro_batch),
        "global_batch": goal.global_batch,
    }


def _context(suggestion: Suggestion, posed: Posed) -> dict[str, int]:
    layout = suggestion.change.layout
    return {
        "layers": posed.task.architecture.layers, "pp": layout.pp, "vpp": layout.vpp,
        "rlayers": layout.recompute_layers or 0,
    }  # fmt: skip


def _flags(
    suggestion: Suggestion, posed: Posed, fields: Mapping[str, Value], files: Mapping[str, str]
) -> str:
    """The change as flags or keys; what is to go is named only where it is there."""
    context, text = _context(suggestion, posed), Text(files)
    found = (targets(posed.job.engine, n, v, context) for n, v in fields.items())
    ways = [
        [(name, value) for name, value in ways[0] if value is not None or there(name, text)]
        for ways in found
        if ways
    ]
    return ", ".join(words_of(way) for way in ways if way)


def reposing(**asked: object) -> Repose:
    """Asks an edited job the question that the first one was asked."""
    return lambda job: pose(job, **asked)  # type: ignore[arg-type]
