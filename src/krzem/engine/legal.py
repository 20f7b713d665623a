"""What an engine refuses: of a model as a whole, and layout by layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from krzem.engine.conditions import holds, names_in
from krzem.engine.description import Engine, Omission, Refusal, supported_until
from krzem.engine.setup import Setup
from krzem.engine.switches import layout_values, parts_of, switches
from krzem.errors import GoalError, LayoutError, ModelError
from krzem.layout.layout import Layout, Layouts, pack
from krzem.layout.rules import Problem
from krzem.model.architecture import Architecture
from krzem.model.description import describe, described_types

Array = Any
_FAMILY = "family-code"
"""What the shapes of a model do not say."""


@dataclass(frozen=True, slots=True)
class LayoutJudge:
    """The refusals of an engine that depend on the layout."""

    engine: Engine
    refusals: tuple[Refusal, ...]
    values: Mapping[str, Any]
    problem: Problem

    def mask(self, x: Layouts) -> Array:
        """[N] which layouts the engine runs, as far as its own code says."""
        fine: Any = np.ones(len(x), dtype=bool)
        if not self.refusals:
            return fine
        values = {**self.values, **layout_values(x, self.problem)}
        for refusal in self.refusals:
            fine = fine & np.logical_not(holds(refusal.when, values))
        return fine

    def reasons(self, layout: Layout) -> tuple[str, ...]:
        """Why the engine does not run ``layout``, each with its source; empty where it does."""
        runs = self.engine.runs
        found = [
            f"it has no {what}={value} (it has {', '.join(map(str, known)) or 'none'})"
            for what, value, known in (
                ("schedule", layout.schedule.value if layout.pp > 1 else None, runs.schedules),
                ("zero", layout.zero if layout.dp * layout.cp > 1 else None, (0, *runs.zero)),
                ("cpkind", layout.context_parallel.value if layout.cp > 1 else None, runs.contexts),
                ("recompute", layout.recompute.value, runs.recompute),
            )
            if value is not None and value not in known
        ]
        for name, most in (("tp", runs.max_tp), ("pp", runs.max_pp), ("ep", runs.max_ep)):
            if most is not None and getattr(layout, name) > most:
                found.append(f"{name}={getattr(layout, name)} is above its {most}")
        if layout.offload_optimizer and not runs.offload:
            found.append("it keeps optimizer states on the device (offload=1)")
        values = {**self.values, **layout_values(pack([layout]), self.problem)}
        found += [
            f"{r.why} ({r.source})"
            for r in self.refusals
            if bool(np.all(np.asarray(holds(r.when, values))))
        ]
        return tuple(found)


def layout_judge(setup: Setup, values: Mapping[str, Any], problem: Problem) -> LayoutJudge:
    """The refusals in force, those that no layout can meet left out."""
    free = _free_names()
    asked = _with_switches(setup, values)
    kept = []
    for refusal in setup.description.refusals_at(setup.year):
        if names_in(refusal.when) & free or bool(holds(refusal.when, asked)):
            kept.append(refusal)
    return LayoutJudge(setup.description, tuple(kept), asked, problem)


def _free_names() -> frozenset[str]:
    one = pack([Layout()])
    probe = Problem(
        architecture=Architecture(
            name="", model_type="", hidden=1, vocab=1, runs=(), max_positions=1
        ),
        devices=1, sequence=1, global_batch=1,
    )  # fmt: skip
    return frozenset(layout_values(one, probe))


def _with_switches(setup: Setup, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with a word for every switch: as stated, else as the engine has it by default."""
    own, stated = setup.description.switches, dict(setup.stated)
    words = {
        s.word: stated.get(n) or (own[n].default if n in own else s.choices[0])
        for n, s in switches().items()
    }
    return {**values, **setup.values, **words}


def check_engine(setup: Setup, arch: Architecture, family: str) -> None:
    """Refuse what the engine cannot build or run under any layout, before anything is searched.

    Raises:
        ModelError: a part of the model that the engine does not have.
        GoalError: a precision or optimizer that it does not have.
    """
    engine = setup.description
    lacks = sorted(_lacking(engine, arch))
    if lacks:
        raise ModelError(
            f"{engine.title} ({engine.read}) has no {', '.join(lacks)}, which {arch.name} needs"
            f"{_place(engine)}: choose another --engine, or write the model in this one yourself"
        )
    for what, value, known in (
        ("precision", setup.precision.value, engine.runs.precisions),
        ("optimizer", setup.optimizer.value, engine.runs.optimizers),
        ("finetune", setup.finetune, engine.runs.finetune),
    ):
        if known and value not in known:
            raise GoalError(
                f"{engine.title} ({engine.read}) has no {what} {value}{_place(engine)}; it has"
                f" {', '.join(known)}: choose one with --{what}, or another --engine"
            )


def _lacking(engine: Engine, arch: Architecture) -> frozenset[str]:
    """Parts of the model that the engine does not build."""
    runs = engine.runs
    if not runs.models:
        return frozenset()
    lacks = parts_of(arch) - runs.models
    if runs.own_families:
        known = arch.model_type in described_types() and describe(arch.model_type).built
        lacks = lacks - {_FAMILY} if known else lacks | {_FAMILY}
    return lacks


def _place(engine: Engine) -> str:
    return f" (see {engine.runs.lacks_source})" if engine.runs.lacks_source else ""


def trained_without(setup: Setup, values: Mapping[str, Any]) -> tuple[Omission, ...]:
    """Parts of the model that the engine (or what is emitted for it) trains without."""
    asked = _with_switches(setup, values)
    return tuple(
        o
        for o in setup.description.without
        if asked.get(o.part.replace("-", "_")) and bool(holds(o.when, asked))
    )


def check_refusals(setup: Setup, values: Mapping[str, Any]) -> None:
    """Refuse what the engine's own code refuses under every layout.

    ``values`` are those of the model, the device and the batch.  Raises GoalError with the reason
    and its place in the source.
    """
    asked, free = _with_switches(setup, values), _free_names()
    words = {s.word for s in switches().values()}
    for refusal in setup.description.refusals_at(setup.year):
        if names_in(refusal.when) & (free | words) or not bool(holds(refusal.when, asked)):
            continue
        written = "no launch files for this" if "emitted" in names_in(refusal.when) else "not this"
        raise GoalError(
            f"{setup.description.title}: {written}: {refusal.why} ({refusal.source}); change the"
            " precision, the optimizer, --state-bytes or --engine"
        )


def software_year(setup_year: float, engine: str, family: str) -> tuple[float, str | None]:
    """The age of the newest software that supports the chips, and why it is not newer."""
    end = supported_until(engine, family)
    if end is None or setup_year < end.until:
        return setup_year, None
    return end.until, f"{end.why} ({end.source})"


def refuse(layout: Layout, engine: Engine, reasons: tuple[str, ...]) -> LayoutError:
    """The error for a layout that ``engine`` does not run."""
    return LayoutError(f"{engine.title} does not run {layout}: {'; '.join(reasons)}")
