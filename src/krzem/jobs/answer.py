"""The whole answer of ``krzem check``: files and log read, priced, judged, advised, calibrated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from krzem.errors import DataError, InputError, KrzemError
from krzem.files import read_text
from krzem.jobs.advice import Suggestion, advise, moved, switch_changes
from krzem.jobs.calibrate import Calibration, added, calibrated, read_runs, run_of
from krzem.jobs.check import Check, Verdict, check
from krzem.jobs.edits import Edit, Text, applied, at_place, merged, there, written
from krzem.jobs.given import parse_given
from krzem.jobs.job import Job, Value
from krzem.jobs.logs import read_log
from krzem.jobs.priced import price_all
from krzem.jobs.question import Posed, pose
from krzem.jobs.reading import LARGEST_FILE, MOST_FILES, read_job
from krzem.jobs.spellings import targets, words_of
from krzem.layout.layout import Layout, Recompute
from krzem.plan.price import Pricer

# Finds the edits that make a suggestion, and proves them: applied, read back, priced again
# -----------------------------------------------------------------------------------------

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
    place: str = ""
    """``FILE:LINE`` beside which they stand or go; '' where the files have no such place."""


def apply(files: Mapping[str, str], proved: Proved) -> dict[str, str]:
    """The files with the suggestion made."""
    return applied(files, proved.edits)


def prove(
    suggestion: Suggestion, posed: Posed, files: Mapping[str, str], read: Read, repose: Repose
) -> Proved:
    """The edits of a suggestion, if there are some that read back and reprice as promised."""
    fields = _fields(suggestion, posed)
    flags, place = _flags(suggestion, posed, fields, files)
    if not files:
        return Proved(suggestion=suggestion, edits=(), flags=flags)
    budget = itertools.count()
    trial = _Trial(suggestion, posed, files, read, repose, budget)
    found = _search(list(fields.items()), [], trial)
    return Proved(suggestion=suggestion, edits=tuple(found or ()), flags=flags, place=place)


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
    if done and (job := trial.job(done)) is not None and job.get(name) == value:
        return _search(rest, done, trial)
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
                others = [(n, v) for n, v in _following(trial).items() if n != name]
                return _mend([(n, v) for n, v in others if job.get(n) != v], both, trial)
    return None


def _ways(name: str, value: Value, done: list[Edit], trial: _Trial) -> Iterator[list[Edit]]:
    text = Text(trial.files, done)
    yield from at_place(trial.posed.job.settings.get(name), value, text)
    context = _context(trial.suggestion, trial.posed)
    for way in targets(trial.posed.job.spelling, name, value, context):
        yield from written(way, text)


def _fields(suggestion: Suggestion, posed: Posed) -> dict[str, Value]:
    """The fields to write: those that change, less what follows from others."""
    fields = dict(suggestion.change.fields)
    if "vpp" in fields:
        fields.pop("schedule", None)
    if "recompute" in fields or (fields.get("rlayers") and posed.layout.recompute_layers is None):
        fields.setdefault("recompute", suggestion.change.layout.recompute.value)
        fields.pop("rlayers", None)
    if not targets(posed.job.spelling, "cpkind", fields.get("cpkind", ""), {}):
        fields.pop("cpkind", None)
    if suggestion.change.kind == "micro-batch":
        return fields
    if "tp" in fields and posed.layout.tp == 1 and suggestion.change.layout.sequence_parallel:
        fields.setdefault("sp", True)
    return fields


def _following(trial: _Trial) -> dict[str, Value]:
    """What must be so in the end, though it is no part of the change."""
    layout, goal = trial.suggestion.change.layout, trial.posed.task.goal
    chunks: dict[str, Value] = {"vpp": layout.vpp} if layout.pp > 1 and layout.vpp > 1 else {}
    return chunks | {
        "dp": layout.dp,
        "accumulation": goal.global_batch // (layout.dp * layout.micro_batch),
        "global_batch": goal.global_batch,
    }


def _context(suggestion: Suggestion, posed: Posed) -> dict[str, int]:
    layout = suggestion.change.layout
    return {
        "layers": posed.task.architecture.layers, "pp": layout.pp, "vpp": layout.vpp,
        "rlayers": layout.recompute_layers or 0, "cp": layout.cp,
        "shard": min(layout.shard or layout.dp * layout.cp, layout.dp * layout.cp),
    }  # fmt: skip


def _flags(
    suggestion: Suggestion, posed: Posed, fields: Mapping[str, Value], files: Mapping[str, str]
) -> tuple[str, str]:
    """The change as flags or keys, and where they go; what is to go is named where it is there."""
    context, text = _context(suggestion, posed), Text(files)
    said: list[str] = []
    places: list[str] = []
    for name, value in fields.items():
        ways = targets(posed.job.spelling, name, value, context)
        made = ((way, next(written(way, text), [])) for way in ways)
        way, edits = next((found for found in made if found[1]), (ways[0] if ways else [], []))
        way = [(n, v) for n, v in way if v is not None or there(n, text)]
        said += [words_of(way)] if way else []
        places += [f"{edit.file}:{edit.line}" for edit in edits[:1]]
    return ", ".join(said), next(iter(places), "")


def reposing(**asked: object) -> Repose:
    """Asks an edited job the question that the first one was asked."""
    return lambda job: pose(job, **asked)  # type: ignore[arg-type]


# The whole answer of ``krzem check``
# -----------------------------------

HINT = "give the files of a training job: its script and the configurations it names"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What ``krzem check`` is asked."""

    files: tuple[Path, ...]
    logs: tuple[Path, ...] = ()
    on: str | None = None
    model: str | None = None
    engine: str | None = None
    given: tuple[str, ...] = ()
    """``field=value`` each."""
    calibration: Path | None = None
    """A file of local factors to use."""
    calibrate: Path | None = None
    """A file of local factors to write, this run among them."""
    most: int = 6
    """Suggestions at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer, ready to be shown."""

    asking: Asking
    check: Check
    suggestions: tuple[Proved, ...]
    explanations: tuple[str, ...]
    """Settings under which the prediction would meet what was measured."""
    calibration: Calibration | None
    notes: tuple[str, ...]

    @property
    def posed(self) -> Posed:
        """The question."""
        return self.check.posed


def answer(asking: Asking) -> Answer:
    """Read, price, judge and advise.

    Raises:
        DataError: a file that cannot be read, or a log without a step.
        InputError: no engine, what is missing by name, or a job that cannot run.
    """
    texts = job_texts(asking.files)
    given = parse_given(asking.given)
    job = read_job(text=texts, engine=asking.engine)
    log = None if not asking.logs else read_log(asking.logs, engine=job.engine)
    fields = {} if log is None else log.fields
    posed = pose(
        job, given=given, log=fields, on=asking.on, model=asking.model, texts=texts,
        calibration=asking.calibration,
    )  # fmt: skip
    pricer = posed.pricer()
    found = check(posed, log, pricer)
    repose = reposing(
        given=given, log=fields, on=asking.on, model=asking.model, texts=texts,
        calibration=asking.calibration,
    )  # fmt: skip

    def read(files: Mapping[str, str]) -> Job:
        return read_job(text=files, engine=asking.engine)

    advice = advise(found, pricer, TRIED) if asking.most else ()
    suggestions = _proved(advice, lambda s: prove(s, posed, texts, read, repose), asking.most)
    return Answer(
        asking=asking, check=found, suggestions=suggestions,
        explanations=explanations(found, pricer), calibration=_calibration(asking, found),
        notes=_notes(found),
    )  # fmt: skip


def explanations(found: Check, pricer: Pricer) -> tuple[str, ...]:
    """Settings under which the prediction would meet what was measured, nearest first."""
    if found.speed is None or found.verdict not in (Verdict.SLOWER, Verdict.FASTER):
        return ()
    want = math.log(found.speed.seconds / found.priced.seconds)
    changes = list(switch_changes(found.posed, all_choices=True))
    for mode in (Recompute.NONE, Recompute.FULL):
        if found.posed.layout.recompute is not mode:
            words = f"recompute={mode.value}"
            changes.append(moved(found.posed, words, "recomputation", {"recompute": mode.value}))
    told = []
    priced = price_all(pricer, [(c.layout, c.setup) for c in changes])
    for change, other in zip(changes, priced, strict=True):
        by = math.log(other.seconds / found.priced.seconds)
        if by * want > 0 and abs(by) > 0.03 and abs(by - want) < abs(want):
            told.append((abs(by - want), f"{change.words} ({math.expm1(by):+.0%} time)"))
    return tuple(words for _, words in sorted(told)[:4])


TRIED = 14
"""Changes that are tried in the files, the best first."""


def _proved(
    found: Sequence[Suggestion], prove_it: Callable[[Suggestion], Proved], most: int
) -> tuple[Proved, ...]:
    """The best changes whose edits are proved, then those that only flags can say."""
    made: list[Proved] = []
    other: list[Proved] = []
    for suggestion in found:
        if len(made) >= most:
            break
        proved = prove_it(suggestion)
        if proved.edits:
            made.append(proved)
        elif proved.flags:
            other.append(proved)
    return (*made, *other[: max(0, most - len(made))])


def job_texts(paths: Sequence[Path]) -> dict[str, str]:
    """The files of the job; a file given twice counts once."""
    if not paths:
        raise InputError(f"no file of a job was given: {HINT}")
    if len(paths) > MOST_FILES:
        raise DataError(f"{len(paths)} files are no job; at most {MOST_FILES} are read: {HINT}")
    return {str(path): read_text(path, most=LARGEST_FILE, hint=HINT) for path in paths}


def _calibration(asking: Asking, found: Check) -> Calibration | None:
    if asking.calibrate is None:
        return None
    if found.log is None:
        raise InputError("--calibrate needs a measured run: give its log with --log")
    name = ", ".join(p.name for p in asking.logs)
    runs = added(read_runs(asking.calibrate), run_of(found, name, asking.on, asking.model))
    return calibrated(runs, found.posed.task.cluster.device.id)


def _notes(found: Check) -> tuple[str, ...]:
    posed, log = found.posed, found.log
    local = posed.task.local
    notes = [*posed.notes, *posed.task.cluster.notes, *posed.job.notes]
    if local is not None:
        notes.append(local.note)
    if log is not None:
        notes += [str(c) for c in log.checks if not c.closes]
        notes += log.notes
    return tuple(dict.fromkeys(notes))
