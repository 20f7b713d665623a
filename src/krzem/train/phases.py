"""Mid-training: a run in phases, each with data, length, rotation, batch or rate of its own.

A phase begins with the first step that starts at or after its token.  Weights and moments go on;
what a step trains on stays a function of the sample index: a phase counts samples of its own
length from the tokens before it, so that a phase with the same data and length goes on in the same
order.  Phases are stated in the run file as ``[[phase]]``, or added later (:func:`add_phases`),
which writes them into the run's folder.
"""

# ruff: noqa: RUF009 - setting() is a dataclass field
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from krzem.errors import KrzemError, RunError
from krzem.files import read_toml
from krzem.keys import Number, flag, mapping, read_table, setting, text
from krzem.quantity import parse_count, parse_length
from krzem.train.checkpoint import latest_good, load_meta
from krzem.train.durable import write_atomic
from krzem.train.keys import FOLDERS, ScheduleTable, read_folders
from krzem.train.settings import TrainSettings, layout_text, read_settings

ADDED = "phases.json"
"""In the run's folder: phases that were added after the run file was written."""
ROTATION_KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "max_position_embeddings")
"""What a phase may change of the model's config: nothing that has weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTable:
    """``[[phase]]``: what is other from a token on; what is not stated stays as it was."""

    at: int = setting(0, parse_count, '"1T"', "tokens before it")
    name: str = setting("", text, '"long context"', "how reports call it")
    sequence: int | None = setting(None, parse_length, '"4k"', "tokens of a sequence")
    global_batch: int | None = setting(None, parse_count, "512", "sequences per step")
    data: Any = setting(
        None, read_folders, '"tokens-32k"', "a folder, or folders with weights", types=FOLDERS
    )
    documents: bool | None = setting(None, flag, "true", "keep attention within a document")
    rate: float | None = setting(None, Number(), "3e-4", "peak learning rate")
    schedule: Any = setting(None, mapping, '{ kind = "wsd" }', "a [schedule] over this phase alone")
    layout: str | None = setting(None, text, '"dp=8,cp=4"', "a layout of as many ranks")
    rope: Any = setting(None, mapping, "{ rope_theta = 1e6 }", "rope_parameters of the config")
    max_positions: int | None = setting(None, parse_length, '"32k"', "max_position_embeddings")


def phases_of(settings: TrainSettings) -> tuple[TrainSettings, ...]:
    """The settings of every phase of the run, in order; one where it has none.

    Raises:
        RunError: with every fault of the phases.
    """
    stated = [*settings.phases, *_added(settings.folder)]
    faults: list[str] = []
    tables = [_read(raw, number, faults) for number, raw in enumerate(stated, start=1)]
    places = [table.at for table in tables if table is not None]
    if places != sorted(set(places)) or any(not 0 < at < settings.goal.tokens for at in places):
        faults.append(
            f"phases begin at {', '.join(f'{at:,}' for at in places)} tokens: that has to grow, "
            f"and to lie between 0 and goal.tokens = {settings.goal.tokens:,}"
        )
    if faults:
        raise RunError("; ".join(faults))
    found = [settings]
    for number, table in enumerate(tables, start=1):
        assert table is not None
        found[-1] = replace(found[-1], until=table.at)
        found.append(_next(found[-1], table, number, stated[:number]))
    return tuple(found)


def _read(raw: Any, number: int, faults: list[str]) -> PhaseTable | None:
    where = f"phase[{number}]"
    table = read_table(PhaseTable, raw, where, faults)
    if table is not None and table.schedule is not None:
        read_table(ScheduleTable, table.schedule, f"{where}.schedule", faults)
        if any(k.startswith("ramp") for k in table.schedule):
            faults.append(f"{where}.schedule: a batch ramp is of the first phase alone")
    return table


def _next(
    before: TrainSettings, table: PhaseTable, number: int, stated: Sequence[Mapping[str, Any]]
) -> TrainSettings:
    """The phase after ``before``, whose last step is whole."""
    goal, data, optimizer = before.goal, before.data, before.optimizer
    goal = replace(
        goal,
        sequence=table.sequence or goal.sequence,
        global_batch=table.global_batch or goal.global_batch,
    )
    if table.data is not None:
        data = replace(data, path=table.data)
    if table.documents is not None:
        data = replace(data, documents=table.documents)
    if table.rate is not None:
        optimizer = replace(optimizer, rate=table.rate)
    begin = before.tokens_at(before.last_sample)
    schedule, since = replace(before.schedule, ramp_from=0, ramp_by=0, ramp_tokens=0), before.since
    if table.schedule is not None:
        schedule, since = _schedule(table.schedule), begin
    return replace(
        before,
        goal=goal,
        data=data,
        optimizer=optimizer,
        schedule=schedule,
        layout=layout_text(table.layout, before.base) if table.layout else before.layout,
        begin=begin,
        until=0,
        since=since,
        phase=number,
        phases=tuple(stated),
        changes={**before.changes, **_changes(table)},
    )


def _schedule(raw: Mapping[str, Any]) -> ScheduleTable:
    faults: list[str] = []
    table = read_table(ScheduleTable, raw, "schedule", faults)
    assert table is not None
    return table


def _changes(table: PhaseTable) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    if table.rope is not None:
        changed |= {"rope_parameters": dict(table.rope), "rope_scaling": None}
    if table.max_positions is not None:
        changed["max_position_embeddings"] = table.max_positions
    return changed


def of_phase(config: Mapping[str, Any], settings: TrainSettings) -> dict[str, Any]:
    """The model's config as the phase of ``settings`` has it; only rotations differ."""
    changed = {**config, **settings.changes}
    return {k: v for k, v in changed.items() if not (v is None and k in settings.changes)}


def standing(phases: Sequence[TrainSettings], resume_from: Path | None) -> TrainSettings:
    """The phase in which the run goes on: that of its newest good checkpoint, or the one after it.

    Raises:
        RunError: phases that are over were stated otherwise when they were trained.
    """
    if len(phases) == 1:
        return phases[0]
    root = phases[0].folder / "checkpoints"
    found = resume_from or (latest_good(root) if root.is_dir() else None)
    if found is None:
        return phases[0]
    meta = load_meta(found)
    tokens = int(meta.get("tokens", 0))
    if "imported_from" in meta:
        return max((p for p in phases if p.begin <= tokens), key=lambda p: p.begin)
    number, past = int(meta.get("phase", 0)), list(meta.get("phases", ()))
    stated = [*phases[-1].phases][: len(past)]
    if json.loads(json.dumps(stated)) != past or number >= len(phases):
        raise RunError(
            f"{found} was trained in phases that the run file states otherwise now; phases that "
            "have begun cannot be changed, only later ones"
        )
    over = tokens >= phases[number].tokens_at(phases[number].last_sample)
    return phases[min(number + over, len(phases) - 1)]


def add_phases(run_file: Path, phase_file: Path) -> tuple[int, ...]:
    """Add the phases in ``phase_file`` to the run of ``run_file``; returns their tokens.

    The file holds the keys of one phase, or a ``[[phase]]`` for each of several.  The first may
    leave out ``at``: it begins where the newest good checkpoint stands.  Phases that were added
    already are not added again.

    Raises:
        RunError: a phase has faults, or begins before what is trained already.
    """
    settings = read_settings(run_file)
    root = settings.folder / "checkpoints"
    found = latest_good(root) if root.is_dir() else None
    done = 0 if found is None else int(load_meta(found).get("tokens", 0))
    asked = _in_file(phase_file)
    asked[0].setdefault("at", done)
    before = _added(settings.folder)
    new = [raw for raw in asked if raw not in before]
    tables = (*settings.phases, *before, *new)
    try:
        phases_of(replace(settings, phases=tables, folder=Path("/")))
    except KrzemError as error:
        raise RunError(f"{phase_file}: {error}") from error
    late = [raw["at"] for raw in new if parse_count(raw["at"]) < done]
    if late:
        raise RunError(
            f"{phase_file}: the phase begins at {late[0]} tokens, and {done:,} are trained"
        )
    if new:
        settings.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(settings.folder / ADDED, json.dumps([*before, *new], indent=1).encode())
    return tuple(int(parse_count(raw["at"])) for raw in asked)


def _in_file(phase_file: Path) -> list[dict[str, Any]]:
    """The phases that a file states, at least one."""
    raw = dict(read_toml(phase_file, hint="a file with the keys of a [[phase]]"))
    if "phase" not in raw:
        return [raw]
    tables, others = raw.pop("phase"), sorted(raw)
    if others:
        raise RunError(
            f"{phase_file}: {', '.join(others)} beside [[phase]]: a file holds the keys of one "
            "phase, or [[phase]] tables and nothing else"
        )
    tables = [tables] if isinstance(tables, Mapping) else tables
    fine = isinstance(tables, list) and all(isinstance(table, Mapping) for table in tables)
    if not fine or not tables:
        raise RunError(
            f"{phase_file}: phase = {tables!r} is no phase: write [[phase]] and its keys under it"
        )
    return [dict(table) for table in tables]


def _added(folder: Path) -> list[dict[str, Any]]:
    file = folder / ADDED
    if not file.exists():
        return []
    try:
        return [dict(raw) for raw in json.loads(file.read_bytes())]
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"cannot read the phases in {file}: {error}") from error
