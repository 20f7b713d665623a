"""The setup a step runs under: engine, date, precision recipe, bytes of states, switches.

One frozen value that planner, validation, emitters and readers share.  A switch that nobody states
is *chosen* where a plan is made (the best that the engine, its version and the layout allow), and
is a *mixture* of what the engine could have done where a measured run is judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from krzem.engine.conditions import Design, holds, names_in
from krzem.engine.description import Engine, EngineSwitch, engines
from krzem.engine.switches import Coded, Switch, switches
from krzem.errors import GoalError
from krzem.layout.layout import Optimizer, Precision, StateBytes

Array = Any
Choices = tuple[tuple[str, str], ...]
"""Switches with their choices, in the order of :func:`krzem.engine.switches.switches`."""
Values = Mapping[str, Any]

LIKELY = 0.06
"""Choices that runs make less often than this are left out of a mixture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a step runs under, beside model, cluster and layout."""

    engine: str
    year: float
    """Age of the software, as a year with its fraction."""
    stack: str = "cuda"
    """Software stack of the devices (``cuda``, ``hip``, ``npu``, ``tpu``, …)."""
    precision: Precision = Precision.BF16
    optimizer: Optimizer = Optimizer.ADAMW
    states: StateBytes = field(default_factory=StateBytes)
    stated: Choices = ()
    """Switches that somebody stated."""
    finetune: str = "none"
    """none, full, lora or qlora."""
    emitted: bool = False
    """Whether launch files are to be written: only what they can say is taken."""

    @property
    def description(self) -> Engine:
        """The engine's facts."""
        return engines()[self.engine]

    @property
    def version(self) -> str:
        """The engine's newest release at that date; empty where none is listed."""
        return self.description.release_at(self.year)

    @property
    def values(self) -> dict[str, Any]:
        """What conditions may ask of it."""
        return {
            "precision": self.precision.value,
            "optimizer": self.optimizer.value,
            "date": self.year,
            "engine": self.engine,
            "finetune": self.finetune,
            "stack": self.stack,
            "emitted": self.emitted,
            "state_weight": self.states.weight,
            "state_gradient": self.states.gradient,
            "state_master": self.states.master,
            "state_moments": self.states.moments,
        }

    def design(self, choices: Choices, zero: int = 1) -> Design:
        """The engine's design with these switches."""
        base = self.description.design_at(self.year, self.precision.value, zero, self.stack)
        numbers: dict[str, float] = {}
        for name, choice in choices:
            for number, value in _effects(self.description, name, choice):
                # What fuses element-wise work fuses it whatever else does: the least is left.
                fused = number == "elementwise"
                numbers[number] = min(value, numbers.get(number, value)) if fused else value
        return base.changed(numbers)

    def extra_bytes(self, choices: Choices) -> float:
        """Bytes per device that these switches take beyond what the formulas count."""
        found = 0.0
        for name, choice in choices:
            own = self.description.switches.get(name)
            found += 0.0 if own is None else own.memory.get(choice, 0.0) * 2.0**30
        return found


def _effects(engine: Engine, name: str, choice: str) -> Iterator[tuple[str, float]]:
    own = engine.switches.get(name)
    rows = (*switches()[name].effect, *(own.effect if own else ()))
    return ((number, value) for c, number, value in rows if c == choice)


def check_stated(setup: Setup, values: Values) -> None:
    """Refuse stated switches that the engine of that date does not have or does not allow.

    ``values`` are those of the model, the device and the batch; conditions on the layout are
    judged layout by layout.

    Raises GoalError with the choices that there are and the reason.
    """
    for name, choice in setup.stated:
        own = setup.description.switches.get(name)
        if own is None:
            if choice != switches()[name].choices[0]:
                raise GoalError(
                    f"{setup.engine} has no switch {name}; it has"
                    f" {', '.join(setup.description.switches) or 'none'}"
                )
            continue
        if choice not in own.choices:
            raise GoalError(
                f"{name}={choice}: {setup.engine} has {', '.join(own.choices)} and nothing else"
            )
        if choice not in own.at(setup.year):
            raise GoalError(
                f"{name}={choice} came to {setup.engine} in {month_of(own.since[choice])}; the"
                f" software is of {month_of(setup.year)}: give a later --date, or leave it out"
            )
        for condition, why in _needs(own, choice):
            found = _judged(condition, values)
            if found is False:
                raise GoalError(f"{name}={choice} on {setup.engine} needs {condition}: {why}")


def month_of(year: float) -> str:
    """``2025-08`` of a year with its fraction."""
    whole = int(year + 1e-9)
    return f"{whole}-{int((year - whole) * 12 + 1e-6) + 1:02d}"


def _needs(own: EngineSwitch, choice: str) -> Iterator[tuple[str, str]]:
    return ((when, why) for c, when, why in own.needs if c == choice)


def _judged(condition: str, values: Values) -> Any:
    """True, False, an array, or None where something it asks is not known yet."""
    if not names_in(condition) <= set(values):
        return None
    return holds(condition, values)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which switches each of N layouts is run with."""

    settings: tuple[Choices, ...]
    which: Array
    """[N] index into ``settings``; 0 (an integer) where there is one setting only."""
    allowed: Array
    """[N] mask of the layouts that allow what was stated; True where all do."""

    def take(self, index: Array) -> Chosen:
        """The same for the layouts at ``index``."""
        which = self.which if np.ndim(self.which) == 0 else self.which[index]
        allowed = self.allowed if np.ndim(self.allowed) == 0 else self.allowed[index]
        return Chosen(self.settings, which, allowed)

    def at(self, index: int) -> Choices:
        """The switches of one layout."""
        return self.settings[int(self.which) if np.ndim(self.which) == 0 else self.which[index]]


def choose(setup: Setup, values: Values, count: int) -> Chosen:
    """The switches of ``count`` layouts: what is stated, else the best that each allows.

    A switch that the engine does not have, or that does not matter for a layout, is left out.
    """
    found: dict[str, Any] = {**values, **setup.values}
    stated = dict(setup.stated)
    own = setup.description.switches
    for name, switch in switches().items():
        choice = stated.get(name) or (own[name].default if name in own else switch.choices[0])
        found[switch.word] = choice
    columns: list[tuple[str, tuple[str, ...], Any]] = []
    words: tuple[str, ...]
    codes: Any
    allowed: Any = True
    for name, switch in switches().items():
        if name not in own:
            continue
        matters = holds(switch.matters, found)
        if matters is False:
            continue
        if name in stated:
            fine = _fine(own[name], stated[name], found)
            allowed = allowed & (fine | ~np.asarray(matters))
            words, codes = (stated[name],), 0
        else:
            words, codes = _best(setup, switch, own[name], found, count)
            found[switch.word] = words[0] if np.ndim(codes) == 0 else Coded(codes, words)
        if isinstance(matters, np.ndarray):
            codes = np.where(matters, codes, -1)
        columns.append((name, words, codes))
    return _collected(columns, allowed)


def _fine(own: EngineSwitch, choice: str, values: Values) -> Any:
    """Whether a choice is allowed: a bool or an array of them."""
    fine: Any = True
    for condition, _ in _needs(own, choice):
        fine = fine & holds(condition, values)
    return fine


def _best(
    setup: Setup, switch: Switch, own: EngineSwitch, values: Values, count: int
) -> tuple[tuple[str, ...], Any]:
    """The words tried, best first, and which of them each layout takes."""
    there = own.at(setup.year)
    words = [c for c in switch.prefer if c in there] or [own.default]
    words += [c for c in (own.default, *there) if c not in words]
    kept: list[str] = []
    codes: Any = None
    left: Any = True
    for word in words:
        fine = left & _fine(own, word, values)
        if not np.any(fine):
            continue
        kept.append(word)
        if not isinstance(fine, np.ndarray):
            if codes is None:
                return (word,), 0
            fine = left
        codes = np.full(count, -1) if codes is None else codes
        codes[fine] = len(kept) - 1
        left = left & ~fine
        if not np.any(left):
            break
    if codes is None:
        return (own.default,), 0
    if np.any(codes < 0):
        kept.append(own.default)
        codes[codes < 0] = len(kept) - 1
    return tuple(kept), codes if len(kept) > 1 else 0


def _collected(columns: Sequence[tuple[str, tuple[str, ...], Any]], allowed: Any) -> Chosen:
    """Distinct settings and the index of each layout's."""
    moving = [c for c in columns if np.ndim(c[2]) > 0]
    if not moving:
        return Chosen((tuple((n, w[c]) for n, w, c in columns),), 0, allowed)
    key = 0
    for _, words, codes in moving:
        key = key * (len(words) + 1) + codes + 1
    distinct, first, which = np.unique(key, return_index=True, return_inverse=True)
    settings = []
    for index in first:
        row = []
        for name, words, codes in columns:
            code = int(codes) if np.ndim(codes) == 0 else int(codes[index])
            if code >= 0:
                row.append((name, words[code]))
        settings.append(tuple(row))
    return Chosen(tuple(settings), which if len(distinct) > 1 else 0, allowed)


@dataclass(frozen=True, slots=True)
class Deviation:
    """Another choice that a run may have made of one switch."""

    switch: str
    choices: Choices
    """All switches, this one changed."""
    share: float
    """How likely it is."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """What a run may have been set to, where it does not say.

    Switches are taken as independent and their effects on the logarithm of time as adding up, so
    that one deviation from the likeliest setting is priced for each choice.
    """

    likeliest: Choices
    deviations: tuple[Deviation, ...]
    unknown: tuple[str, ...]
    """Switches that matter and that nobody stated."""


def mixture(setup: Setup, values: Values) -> Mixture:
    """The settings that the engine could have had at that date, with how likely each is.

    ``values`` hold one value for each name.  What is stated is taken as stated: the run ran.
    """
    found: dict[str, Any] = {**values, **setup.values}
    stated, own = dict(setup.stated), setup.description.switches
    for name, switch in switches().items():
        found[switch.word] = stated.get(name) or (
            own[name].default if name in own else switch.choices[0]
        )
    likeliest: dict[str, str] = {}
    open_: dict[str, dict[str, float]] = {}
    for name, switch in switches().items():
        if not bool(holds(switch.matters, found)):
            continue
        if name in stated:
            likeliest[name] = stated[name]
        elif name in own:
            shares = _shares(setup, own[name], found)
            if shares:
                open_[name] = shares
                likeliest[name] = max(shares, key=lambda c: shares[c])
                found[switch.word] = likeliest[name]
    return Mixture(
        tuple(likeliest.items()),
        tuple(
            Deviation(name, tuple({**likeliest, name: choice}.items()), share)
            for name, shares in open_.items()
            for choice, share in shares.items()
            if choice != likeliest[name]
        ),
        tuple(name for name, shares in open_.items() if len(shares) > 1),
    )


def _shares(setup: Setup, own: EngineSwitch, values: Values) -> dict[str, float]:
    """How likely each choice is that the date and the layout allow; empty where nobody knows."""
    there = own.at(setup.year)
    shares = {
        c: share
        for c, share in own.usual.items()
        if c in there and share > 0 and bool(_fine(own, c, values))
    }
    total = sum(shares.values())
    if not shares:
        legal = [c for c in (own.default, *there) if bool(_fine(own, c, values))]
        return {(legal or [own.default])[0]: 1.0} if own.usual else {}
    return {c: s / total for c, s in shares.items() if s / total >= LIKELY}
