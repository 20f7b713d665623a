"""Reads a table of a goal file key by key and keeps account of every fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from krzem.errors import GoalError, InputError, QuantityError, nearest, shorten

MOST_FAULTS = 12
"""Listed in one message."""


@dataclass(frozen=True, slots=True)
class Field:
    """How one key is read, an example of it, what it means."""

    read: Callable[[Any], Any]
    example: str
    means: str


class Faults:
    """The faults of one file."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.found: list[str] = []

    def add(self, text: str) -> None:
        """One more."""
        self.found.append(text)

    def stop(self) -> None:
        """Raise GoalError with all of them, if there are any."""
        if not self.found:
            return
        lines = self.found[:MOST_FAULTS]
        if len(self.found) > MOST_FAULTS:
            lines.append(f"and {len(self.found) - MOST_FAULTS} more")
        if len(lines) == 1:
            raise GoalError(f"{self.where}: {lines[0]}")
        raise GoalError("\n  ".join([f"{self.where} has {len(self.found)} faults:", *lines]))


def read_table(
    table: object, fields: Mapping[str, Field], place: str, faults: Faults
) -> dict[str, Any]:
    """The values of ``table`` as their readers give them; what is wrong goes to ``faults``."""
    if not isinstance(table, Mapping):
        faults.add(f"{place}: a table is needed")
        return {}
    found: dict[str, Any] = {}
    for name, value in table.items():
        field = fields.get(name)
        if field is None:
            near = nearest(str(name), fields, 2)
            offer = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(fields)}"
            faults.add(f"{place}.{shorten(str(name), 40)}: unknown key; {offer}")
            continue
        try:
            found[name] = field.read(value)
        except InputError as error:
            faults.add(f"{place}.{name} ({field.means}), such as {field.example}: {error}")
    return found


def text(value: object) -> str:
    """Text of 1 to 400 characters; raises QuantityError."""
    if not isinstance(value, str) or not value.strip() or len(value) > 400:
        raise QuantityError("text of 1 to 400 characters in quotes is needed")
    return value.strip()


def flag(value: object) -> bool:
    """true or false; raises QuantityError."""
    if not isinstance(value, bool):
        raise QuantityError("true or false is needed, without quotes")
    return value


def written(value: object) -> str | int | float:
    """A quantity that the planner will read; raises QuantityError."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise QuantityError("a number, or text such as 14.8T, is needed")
    return value
