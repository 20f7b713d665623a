"""``krzem check FILES --rehearse``: a torchtitan job's step, run on tensors without values."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import click

from krzem.errors import InputError
from krzem.files import check_target
from krzem.jobs.answer import Answer, Asking, answer, job_texts
from krzem.jobs.reading import canonical, find_reader, written_files
from krzem.jobs.registry import Sources
from krzem.jobs.titan_jobs import TitanCommand, command_of
from krzem.plan.emit import emit, render
from krzem.plan.goal import config_of
from krzem.plan.plan import RankMemory
from krzem.report.selfcontained import need_extra
from krzem.train.command.planning import say
from krzem.train.command.rehearsing import (
    Wish,
    crowding_of,
    ranks_of,
    rates_of,
    text,
    write_files,
)
from krzem.train.rehearsal.stages import as_document, rehearse
from krzem.train.rehearsal.titan import TitanStep, titan_summary
from krzem.train.rehearsal.titan_config import TitanStart, resolved
from krzem.train.rehearsal.titan_import import need_torchtitan

ENGINE = "torchtitan"
_EMITTED = (
    "the files are of a generation before recipes: rehearsed is the recipe that krzem emits for "
    "the same setup"
)
_KINDS = {
    "weights": "weights",
    "gradients": "gradients",
    "states": "optimizer",
    "activations": "activations",
    "transient": "transient",
}
"""Kinds of a rehearsal, and how a plan calls them."""


def rehearse_job(asking: Asking, wish: Wish) -> int:
    """Rehearse the job's step and show it; 0, or 1 where it would hang or does not fit.

    Raises:
        InputError: files that are no torchtitan job, or that leave something open.
        RunError: torchtitan is not there, or refuses the job.
    """
    for target in (wish.html, wish.trace):
        if target is not None:
            check_target(target)
    if wish.html is not None:
        need_extra()
    texts = _texts(asking)
    version = need_torchtitan()
    command = command_of(Sources(files=texts))
    start, notes = None, [_EMITTED]
    if command.words:
        start, notes = _start(command, _folders(asking)), []
    found = _answer(asking, start)
    start = start or emitted(found)
    step = step_of(found, start, crowding_of(wish.routing))
    done = rehearse(step, ranks_of(wish.rank, step.layout), one=titan_summary, progress=say)
    document = as_document(done) | {
        "model": found.posed.task.architecture.name,
        "engine": f"{ENGINE} {version}",
        "capacity_bytes": found.posed.task.cluster.memory_bytes,
        "notes": list(dict.fromkeys([*notes, *(n for rank in done.ranks for n in rank.notes)])),
    }
    for rank in document["ranks"]:
        rank["planned"] = planned(found, rank["stage"]) if step.crowding == 1.0 else None
        rank["planned_bytes"] = rank["planned"] and round(sum(rank["planned"].values()))
    write_files(done, document, wish, rates_of(found.posed.task.cluster, step.precision))
    click.echo(json.dumps(document, indent=2) if wish.as_json else text(document))
    too_much = done.fullest.peak.total > document["capacity_bytes"]
    return 1 if done.faults or too_much else 0


def step_of(found: Answer, start: TitanStart, crowding: float) -> TitanStep:
    """The step as krzem reads the job."""
    posed = found.posed
    goal, layout = posed.task.goal, posed.layout
    return TitanStep(
        start=start,
        layout=layout,
        sequence=goal.sequence,
        micro_batches=goal.global_batch // (layout.dp * layout.micro_batch),
        precision=str(goal.precision),
        optimizer_name=str(goal.optimizer),
        crowding=crowding,
    )


def planned(found: Answer, stage: int) -> dict[str, float]:
    """The planner's bytes by kind on the first rank of a pipeline stage."""
    ranks: dict[str, RankMemory] = {rank.rank: rank for rank in found.check.plan.ranks}
    last = found.posed.layout.pp - 1
    rank = ranks["first" if stage == 0 else "last" if stage == last else "middle"]
    return {kind: getattr(rank, name) for kind, name in _KINDS.items()}


def _texts(asking: Asking) -> dict[str, str]:
    """The job's files, with those that its script writes; raises InputError for other engines."""
    texts = job_texts(asking.files)
    texts |= written_files(texts)
    named = None if asking.engine is None else canonical(asking.engine)
    engine = find_reader(Sources(files=texts, engine=named))[1].engine
    if engine != ENGINE:
        raise InputError(
            f"--rehearse runs torchtitan's own code, and this is a job of {engine}; a run of "
            "krzem's trainer is rehearsed by `krzem train RUN_FILE --rehearse`"
        )
    return texts


def _folders(asking: Asking) -> tuple[str, ...]:
    """Where the job's modules are looked for: beside its files, and here."""
    folders = (*(str(path.resolve().parent) for path in asking.files), str(Path.cwd()))
    return tuple(dict.fromkeys(folders))


def _answer(asking: Asking, start: TitanStart | None) -> Answer:
    """The plan of the job; what its files leave to torchtitan's recipes, torchtitan says."""
    asking = replace(asking, most=0)
    if start is None:
        return answer(asking)
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "torchtitan-says.toml")
        said.write_text(resolved(start), encoding="utf-8")
        return answer(replace(asking, files=(*asking.files, said)))


def emitted(found: Answer) -> TitanStart:
    """The recipe that krzem emits for the job's setup.

    Raises KrzemError for what torchtitan's recipes cannot say.
    """
    posed, task = found.posed, found.posed.task
    launch = emit(
        ENGINE, posed.layout, task.goal, task.architecture, task.cluster,
        config_of(task.architecture.name, task.architecture), 250,
        dict(found.check.priced.choices),
    )  # fmt: skip
    return _start(command_of(Sources(files={"run.sh": render(launch)})), ())


def _start(command: TitanCommand, folders: tuple[str, ...]) -> TitanStart:
    """What only the user's shell knows (a rate, a data set) changes no step: it is one."""
    return TitanStart(
        words=command.words,
        files=command.files,
        folders=folders,
        environment={name: value or "1" for name, value in command.environment.items()},
    )
