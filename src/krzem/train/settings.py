"""The trainer's part of ``run.toml``, read whole: every fault is found before any work begins.

The same file serves ``krzem run``: its tables ``[run]``, ``model`` and ``[goal]`` are shared, those
of pools and gates are passed over.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krzem.errors import GoalError, KrzemError, RunError
from krzem.files import read_toml
from krzem.keys import Key, listed, read_keys, read_table, text, unknown_key
from krzem.layout.layout import Layout, parse_layout
from krzem.train.keys import (
    CheckpointTable,
    DataTable,
    EvaluationTable,
    GoalTable,
    MetricsTable,
    OptimizerTable,
    ScheduleTable,
    TrainTable,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """``full`` sequences a step; before ``ramp_samples`` samples fewer, from ``first`` on.

    The ramp has ``ceil((full - first) / by)`` stages of equally many samples; a stage ends with
    the first step that reaches its end.
    """

    full: int
    first: int = 0
    """Sequences of the first step; 0 means no ramp."""
    by: int = 0
    """Sequences by which a stage is larger than the one before; 0 means ``first``."""
    ramp_samples: int = 0
    """Samples over which the batch grows."""

    def __post_init__(self) -> None:
        if self.full < 1:
            raise GoalError(f"a global batch of {self.full} sequences is no batch")
        if bool(self.first) != bool(self.ramp_samples) or (self.by and not self.first):
            raise GoalError(
                "a batch ramp needs schedule.ramp_from (sequences of the first step) and "
                "schedule.ramp_tokens (tokens over which it grows); schedule.ramp_by is the stride"
            )
        if self.first > self.full:
            raise GoalError(
                f"the batch ramp begins with {self.first:,} sequences, more than "
                f"goal.global_batch = {self.full:,}"
            )

    @property
    def stages(self) -> int:
        """Sizes before the full one."""
        return -(-(self.full - self.first) // (self.by or self.first)) if self.first else 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every size that occurs, in order."""
        return (*(self.first + i * (self.by or self.first) for i in range(self.stages)), self.full)

    def at(self, sample: int) -> int:
        """Sequences of the step whose first sample is ``sample``."""
        if sample >= self.ramp_samples or not self.stages:
            return self.full
        return self.sizes[sample * self.stages // self.ramp_samples]

    def steps(self, start: int, stop: int) -> int:
        """Steps from sample ``start`` until ``stop`` samples are reached, the last one whole."""
        steps, sample = 0, start
        for number, size in enumerate(self.sizes):
            end = stop
            if number < self.stages:
                end = min(stop, -(-(number + 1) * self.ramp_samples // self.stages))
            if sample < end:
                taken = -(-(end - sample) // size)
                steps, sample = steps + taken, sample + taken * size
        return steps


_OTHERS = frozenset({"pool", "gates", "qualify", "recovery", "switches", "trainer", "witness"})
"""Tables that the controller or the planner reads."""
RUN = {
    "name": Key(text, '"my-run"', "how it is called; else the file's name"),
    "folder": Key(text, '"runs/my-run"', "where everything of it is kept"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """All that the trainer needs to know."""

    name: str
    base: Path
    """Folder of the run file, from which relative paths start."""
    folder: Path
    model: Path | str
    layout: str
    """As ``--layout`` reads it, or ``auto``."""
    cluster: str | Mapping[str, Any] | None
    """What the planner is to plan for: ``h100:8``, a cluster file or device profile, or a table."""
    goal: GoalTable
    train: TrainTable
    data: DataTable
    optimizer: OptimizerTable
    schedule: ScheduleTable
    checkpoint: CheckpointTable
    evaluation: EvaluationTable
    metrics: MetricsTable
    phases: tuple[Mapping[str, Any], ...] = ()
    """The run file's ``[[phase]]`` tables as they stand; in a phase, those up to it."""
    phase: int = 0
    """Which phase these are the settings of (:func:`krzem.train.phases.phases_of`)."""
    begin: int = 0
    """Tokens before this phase."""
    until: int = 0
    """Tokens at which the next phase begins; 0 where there is none."""
    since: int = 0
    """Tokens before the phase whose schedule it is."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """What this phase changes of the model's config."""

    @property
    def steps(self) -> int:
        """Optimizer steps of this phase, the last one whole."""
        return self.batches.steps(self.first_sample, self.samples)

    @property
    def first_sample(self) -> int:
        """Index of this phase's first sample: those of its length that fit before it."""
        return -(-self.begin // self.goal.sequence)

    @property
    def samples(self) -> int:
        """The sample index that reaches the end of this phase."""
        tokens = (self.until or self.goal.tokens) - self.begin
        return self.first_sample + -(-tokens // self.goal.sequence)

    @property
    def last_sample(self) -> int:
        """The sample index at which this phase ends, its last step whole."""
        sample, batches = self.first_sample, self.batches
        while sample < self.samples:
            if sample >= batches.ramp_samples:
                return sample + -(-(self.samples - sample) // batches.full) * batches.full
            sample += batches.at(sample)
        return sample

    def tokens_at(self, sample: int) -> int:
        """Tokens of the run before the sample with this index of this phase."""
        return self.begin + (sample - self.first_sample) * self.goal.sequence

    @property
    def batches(self) -> Batches:
        """Sequences per step; raises GoalError for a ramp that is none."""
        s = self.schedule
        return Batches(
            full=self.goal.global_batch,
            first=s.ramp_from,
            by=s.ramp_by,
            ramp_samples=-(-s.ramp_tokens // self.goal.sequence),
        )


_TABLES: dict[str, type] = {
    "goal": GoalTable,
    "train": TrainTable,
    "data": DataTable,
    "optimizer": OptimizerTable,
    "schedule": ScheduleTable,
    "checkpoint": CheckpointTable,
    "evaluation": EvaluationTable,
    "metrics": MetricsTable,
}


class SettingsError(RunError):
    """A run file with faults; what it names could still be looked at."""

    def __init__(
        self,
        file: Path,
        faults: Sequence[str],
        *,
        folder: Path,
        model: Path | str,
        data: DataTable | None,
    ) -> None:
        self.faults, self.folder = tuple(faults), folder
        self.model = model
        """Empty where the file names none."""
        self.data = data
        """None where that table itself has faults."""
        super().__init__(listed(str(file), faults))


def read_settings(path: str | os.PathLike[str]) -> TrainSettings:
    """The settings in the run file at ``path``.

    Raises:
        SettingsError: with every fault of the file, one to a line.
        DataError: the file cannot be read, or is no TOML.
    """
    file = Path(path)
    raw = read_toml(file, hint="`krzem train --help` shows a run file")
    faults: list[str] = []
    known = {*_TABLES, "run", "model", "layout", "cluster", "phase", *_OTHERS}
    faults += [unknown_key(name, sorted(known), "", "table") for name in raw if name not in known]
    tables: dict[str, Any] = {
        n: read_table(kind, raw.get(n, {}), n, faults) for n, kind in _TABLES.items()
    }
    name, folder = _run(raw.get("run", {}), file, faults)
    model = _model(raw.get("model"), file.parent, faults)
    layout = _layout(raw.get("layout", "auto"), file.parent, faults)
    cluster = raw.get("cluster")
    phases = raw.get("phase", [])
    if not isinstance(phases, list):
        faults.append("phase has to be a list of tables, each written [[phase]]")
        phases = []
    if not isinstance(cluster, str | Mapping | None):
        faults.append('cluster has to be a text such as "h100:8", a file, or a table [cluster]')
    if faults:
        raise SettingsError(file, faults, folder=folder, model=model, data=tables["data"])
    return TrainSettings(
        name=name,
        base=file.parent,
        folder=folder,
        model=model,
        layout=layout,
        cluster=cluster,
        phases=tuple(phases),
        **tables,
    )


def _run(given: object, file: Path, faults: list[str]) -> tuple[str, Path]:
    """Name and folder of the run: by default the file's name, and ``runs/`` with it."""
    found = read_keys(given, RUN, "run", faults)
    name = found.get("name", file.stem)
    return name, file.parent / found.get("folder", Path("runs") / name)


def _model(given: object, base: Path, faults: list[str]) -> Path | str:
    """A path where there is one, else what should be a built-in name.

    ``model = "..."``, ``[model] config = "..."``, or ``name`` and ``source`` as in a plan file.
    """
    table: Mapping[str, Any] = given if isinstance(given, Mapping) else {"config": given}
    names: list[str] = [
        table[k] for k in ("config", "name", "source") if isinstance(table.get(k), str)
    ]
    names = [name for name in names if name.strip()]
    if not names:
        faults.append(
            'model is missing: write model = "deepseek-v3" (see krzem models), or the path of a '
            "config.json"
        )
        return ""
    return next((base / name for name in names if (base / name).exists()), names[0])


def _layout(given: object, base: Path, faults: list[str]) -> str:
    """``layout = "dp=2,mbs=4"``, the path of a plan file, or its table with ``text``."""
    try:
        return layout_text(given, base)
    except KrzemError as error:
        faults.append(str(error))
        return "auto"


def layout_text(given: object, base: Path) -> str:
    """``auto``, or a layout that :func:`parse_layout` reads, from what a run file or option says.

    Raises:
        LayoutError: it can be read as neither.
        RunError, DataError: the plan file has none, or cannot be read.
    """
    text = given.get("text", "auto") if isinstance(given, Mapping) else given
    if isinstance(text, str) and text.strip().endswith(".toml"):
        file = base / text.strip()
        hint = "write one with `krzem plan ... --emit krzem --emit-to plan.toml`"
        table = read_toml(file, hint=hint).get("layout")
        text = table.get("text") if isinstance(table, Mapping) else table
        if not isinstance(text, str) or text.endswith(".toml"):
            raise RunError(f"{file} is no plan file: it has no [layout] with text; {hint}")
    if not isinstance(text, str):
        raise RunError('layout has to be a text such as "dp=2,mbs=4", a plan file, or "auto"')
    if text != "auto":
        parse_layout(text)
    return text


def automatic_layout(ranks: int, experts: int, batches: Sequence[int]) -> Layout:
    """Without a plan: data parallel over all ranks, experts over as many as divide them.

    ``batches`` are the sizes of a step that occur.

    Raises:
        RunError: the ranks do not divide one of them.
    """
    for size in batches:
        if size % ranks:
            name = "goal.global_batch" if size == batches[-1] else "the ramp's batch"
            raise RunError(
                f"layout auto spreads {name} = {size} sequences over {ranks} ranks, but "
                f"{size} / {ranks} is no whole number; change one, or state a layout"
            )
    ep = max(d for d in range(1, ranks + 1) if ranks % d == 0 and max(experts, 1) % d == 0)
    each = math.gcd(*(size // ranks for size in batches))
    micro = max(d for d in range(1, min(each, 8) + 1) if each % d == 0)
    return Layout(dp=ranks, ep=ep if experts else 1, micro_batch=micro)
