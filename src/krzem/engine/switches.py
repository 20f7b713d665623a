"""The switches of training engines, by the names that people see (``facts/switches.toml``)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import krzem.facts
from krzem.errors import InputError, nearest, shorten

PATH = Path(krzem.facts.__file__).parent / "switches.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One switch; engines say which choices they have and when."""

    name: str
    meaning: str
    choices: tuple[str, ...]
    """The first is the plain one."""
    prefer: tuple[str, ...]
    """What a plan takes where nobody says, best first; empty: the engine's default."""
    matters: str
    """Condition under which it changes the price."""
    effect: tuple[tuple[str, str, float], ...]
    """(choice, number of the design, value)."""

    @property
    def word(self) -> str:
        """The name as conditions write it."""
        return self.name.replace("-", "_")


@cache
def switches() -> Mapping[str, Switch]:
    """All switches by name, in the order in which they are decided."""
    raw = tomllib.loads(PATH.read_text(encoding="utf-8"))
    return MappingProxyType(
        {
            name: Switch(
                name=name,
                meaning=values["meaning"],
                choices=tuple(values["choices"]),
                prefer=tuple(values.get("prefer", ())),
                matters=values["matters"],
                effect=tuple((c, n, float(v)) for c, n, v in values.get("effect", ())),
            )
            for name, values in raw.items()
        }
    )


@cache
def _alone() -> Mapping[str, str]:
    """Choices that only one switch has, and that switch."""
    found: dict[str, list[str]] = {}
    for switch in switches().values():
        for choice in switch.choices:
            found.setdefault(choice, []).append(switch.name)
    return {choice: names[0] for choice, names in found.items() if len(names) == 1}


def parse_switches(on: Iterable[str], off: Iterable[str] = ()) -> dict[str, str]:
    """What ``--with`` and ``--without`` state, by switch.

    ``deepep``, ``overlap-a2a``, ``cuda-graphs=full``; several in one text are separated by commas.

    Raises:
        InputError: an unknown switch or choice, with what there is; the same switch twice.
    """
    stated: dict[str, str] = {}
    for written in _parts(on):
        _put(stated, *_switched_on(written))
    for written in _parts(off):
        switch = _switch(written)
        if len(switch.choices) > 2 and written != switch.name:
            raise InputError(f"--without {written}: write --without {switch.name}")
        _put(stated, switch.name, switch.choices[0])
    return stated


def _parts(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        for part in text.split(","):
            if word := part.strip().lower().replace("_", "-"):
                yield word


def _put(stated: dict[str, str], name: str, choice: str) -> None:
    if stated.get(name, choice) != choice:
        raise InputError(
            f"switch {name} is stated twice: {stated[name]} and {choice}; keep one of them"
        )
    stated[name] = choice


def _switched_on(written: str) -> tuple[str, str]:
    name, equals, choice = (piece.strip() for piece in written.partition("="))
    if not equals and name in _alone():
        return _alone()[name], name
    switch = _switch(name)
    if not equals:
        if "on" not in switch.choices:
            raise InputError(
                f"--with {name}: which of {', '.join(switch.choices)}? Write --with"
                f" {name}={switch.choices[-1]}"
            )
        return switch.name, "on"
    if choice not in switch.choices:
        raise InputError(
            f"--with {written}: {name} has no {shorten(choice)!r}. Choose from"
            f" {', '.join(switch.choices)}"
        )
    return switch.name, choice


def _switch(name: str) -> Switch:
    found = switches().get(_alone().get(name, name))
    if found is None:
        known = (*switches(), *(c for c in _alone() if c not in ("on", "off")))
        near = nearest(name, known)
        offer = f" Did you mean {' or '.join(near)}?" if near else ""
        raise InputError(
            f"unknown switch {shorten(name)!r}.{offer} Switches: {', '.join(switches())}"
        )
    return found
