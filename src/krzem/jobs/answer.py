"""The whole answer of ``krzem check``: files and log read, priced, judged, advised, calibrated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from krzem.errors import DataError, InputError
from krzem.files import read_text
from krzem.jobs.advice import Suggestion, advise, explanations
from krzem.jobs.calibrate import Calibration, added, calibrated, read_runs, run_of
from krzem.jobs.check import Check, check
from krzem.jobs.given import parse_given
from krzem.jobs.job import Job
from krzem.jobs.logs import read_log
from krzem.jobs.proof import Proved, prove, reposing
from krzem.jobs.question import Posed, pose
from krzem.jobs.reading import LARGEST_FILE, MOST_FILES, read_job

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
    texts = _texts(asking.files)
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


def _texts(paths: Sequence[Path]) -> dict[str, str]:
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
