"""Gates as a run file declares them: what fires, after how long, and what is then done."""

# ruff: noqa: RUF009 - setting() is a dataclass field
from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from krzem.errors import nearest
from krzem.keys import Number, Whole, choice, read_table, setting
from krzem.quantity import parse_duration, parse_ratio


class Action(enum.StrEnum):
    """What a gate that fires does."""

    WARN = "warn"
    RESTART = "restart"
    """From the last good checkpoint, on the same pool."""
    MOVE = "move"
    """To the next pool, from the last good checkpoint."""
    STOP = "stop"
    """Save, stop, and let people look."""


def _action(default: Action) -> Any:
    return setting(default, choice(Action), '"move"', "warn, restart, move or stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Median speed of the last steps against the plan (or the pool's own ``tokens_per_s``)."""

    below: float = setting(0.6, parse_ratio, '"60%"', "share of the planned tokens/s")
    steps: int = setting(200, Whole(1), "200", "steps that the median is taken over")
    skip: int = setting(20, Whole(0), "20", "first steps of an attempt, left out")
    action: Action = _action(Action.MOVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """The speed of the last steps against what ``goal.deadline`` asks for, to the end and after."""

    late: float = setting(0.0, parse_ratio, '"10%"', "of the time that is left, still accepted")
    steps: int = setting(200, Whole(1), "200", "steps that the median is taken over")
    skip: int = setting(20, Whole(0), "20", "first steps of an attempt, left out")
    action: Action = _action(Action.WARN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarts:
    """Faults of a pool within any 24 hours of the run's clock."""

    per_day: int = setting(6, Whole(0), "6", "restarts a day that are still accepted")
    action: Action = _action(Action.MOVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Attempts that end in a fault one after the other, and none of them brings a checkpoint."""

    times: int = setting(5, Whole(2), "5", "such attempts in a row on a pool")
    action: Action = _action(Action.MOVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the attempts cost, against ``goal.budget``."""

    action: Action = _action(Action.STOP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """A loss far above its own recent trend that does not come back."""

    sigmas: float = setting(6.0, Number(1), "6.0", "robust standard deviations above the median")
    share: float = setting(0.05, parse_ratio, '"5%"', "and at least this much above it")
    window: int = setting(100, Whole(10), "100", "steps before it that make the trend")
    recover: int = setting(300, Whole(1), "300", "steps within which it must come back")
    action: Action = _action(Action.MOVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nonfinite:
    """NaN or infinity: once is a fault (restart); again at the same place is not chance."""

    times: int = setting(2, Whole(1), "2", "attempts of a pool that end this way")
    action: Action = _action(Action.MOVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientNorm:
    """A gradient norm far above its own recent median."""

    factor: float = setting(10.0, Number(1), "10", "times the median of the window before")
    window: int = setting(100, Whole(10), "100", "steps before that make the median")
    steps: int = setting(10, Whole(1), "10", "steps in a row")
    action: Action = _action(Action.WARN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """No heartbeat of any rank has changed: a hung collective, a dead disk, a frozen host."""

    seconds: float = setting(120.0, parse_duration, '"2 min"', "in a step, at least")
    factor: float = setting(10.0, Number(1), "10", "or this many usual steps, if that is longer")
    load: float = setting(1800.0, parse_duration, '"30 min"', "while starting, loading or saving")
    action: Action = _action(Action.RESTART)


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """One rank's own work takes longer than the others'."""

    ratio: float = setting(1.5, Number(1), "1.5", "times the median rank")
    steps: int = setting(50, Whole(1), "50", "steps that the median is taken over")
    action: Action = _action(Action.WARN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory in use against the pool's limit."""

    above: float = setting(0.95, parse_ratio, '"95%"', "share of limits.memory")
    steps: int = setting(20, Whole(1), "20", "looks in a row")
    action: Action = _action(Action.WARN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """The check of a checkpoint on other hardware fails, or there is nothing to check it by."""

    action: Action = _action(Action.MOVE)
    not_checked: Action = setting(
        Action.STOP, choice(Action), '"warn"',
        "the same where nothing could be compared: stop asks you, warn continues unproven",
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """All gates; None for one that the run file switches off."""

    throughput: Throughput | None = field(default_factory=Throughput)
    deadline: Deadline | None = field(default_factory=Deadline)
    budget: Budget | None = field(default_factory=Budget)
    restarts: Restarts | None = field(default_factory=Restarts)
    progress: Progress | None = field(default_factory=Progress)
    spike: Spike | None = field(default_factory=Spike)
    nonfinite: Nonfinite | None = field(default_factory=Nonfinite)
    gradient_norm: GradientNorm | None = field(default_factory=GradientNorm)
    stall: Stall | None = field(default_factory=Stall)
    straggler: Straggler | None = field(default_factory=Straggler)
    memory: Memory | None = field(default_factory=Memory)
    witness: Witness | None = field(default_factory=Witness)


KINDS: Mapping[str, type] = {
    "throughput": Throughput,
    "deadline": Deadline,
    "budget": Budget,
    "restarts": Restarts,
    "progress": Progress,
    "spike": Spike,
    "nonfinite": Nonfinite,
    "gradient_norm": GradientNorm,
    "stall": Stall,
    "straggler": Straggler,
    "memory": Memory,
    "witness": Witness,
}


def read_gates(table: object, faults: list[str]) -> Gates | None:
    """The ``[gates]`` table: a gate that is not named has its defaults, ``false`` is off."""
    if not isinstance(table, Mapping):
        faults.append("gates: it must be a table, written [gates] on a line of its own")
        return None
    before = len(faults)
    for name in table:
        if name not in KINDS:
            near = ", ".join(nearest(name, KINDS, 2)) or ", ".join(KINDS)
            faults.append(f"gates.{name}: unknown gate; did you mean {near}?")
    given = {name: _gate(name, table[name], faults) for name in KINDS if name in table}
    return None if len(faults) > before else Gates(**given)


def _gate(name: str, value: object, faults: list[str]) -> Any:
    if value is False:
        return None
    return read_table(KINDS[name], {} if value is True else value, f"gates.{name}", faults)


def describe(gates: Gates) -> dict[str, dict[str, Any] | None]:
    """Every gate with its values, for the ledger and ``--json``."""
    found: dict[str, dict[str, Any] | None] = {}
    for name in KINDS:
        gate = getattr(gates, name)
        found[name] = gate and {f.name: getattr(gate, f.name) for f in fields(gate)}
    return found
