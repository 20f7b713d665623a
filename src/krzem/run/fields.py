"""Reads TOML tables into dataclasses and collects every fault instead of stopping at the first.

A dataclass states, field by field, how its value is read, an example and what it means::

    below: float = setting(0.6, parse_ratio, '"60%"', "of the planned tokens/s")

:func:`read_table` turns a parsed table into that dataclass; unknown keys, missing ones and values
that cannot be read become sentences with the key's place in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, field, fields
from enum import StrEnum
from typing import Any, TypeVar

from krzem.errors import KrzemError, QuantityError, nearest, shorten
from krzem.run.untrusted import as_name, is_name, printable

Values = TypeVar("Values")

REQUIRED: Any = MISSING
"""Default of a key that has to be there."""


def setting(
    default: Any, read: Callable[[Any], Any], example: str, means: str, *, key: str = ""
) -> Any:
    """A dataclass field that is a key of a TOML table; ``key`` if it has another name there."""
    about = {"read": read, "example": example, "means": means, "key": key}
    if default is REQUIRED:
        return field(metadata=about)
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=about)
    return field(default=default, metadata=about)


def read_table(
    kind: type[Values], table: object, where: str, faults: list[str], **given: Any
) -> Values | None:
    """``kind`` from ``table``; None, with sentences in ``faults``, where that cannot be.

    ``given`` are fields that do not come from the table.
    """
    if not isinstance(table, Mapping):
        faults.append(f"{where}: it must be a table, written [{where}] on a line of its own")
        return None
    keys = keys_of(kind)
    before = len(faults)
    faults.extend(_unknown(name, keys, where) for name in table if name not in keys)
    found = dict(given)
    for key, about in keys.items():
        _take(key, about, table, where, found, faults)
    if len(faults) > before:
        return None
    try:
        return kind(**found)
    except KrzemError as error:
        faults.append(f"{where}: {error}")
        return None


def keys_of(kind: type) -> dict[str, Field[Any]]:
    """The TOML keys of a dataclass."""
    return {f.metadata["key"] or f.name: f for f in fields(kind) if "read" in f.metadata}


def _take(
    key: str,
    about: Field[Any],
    table: Mapping[str, Any],
    where: str,
    found: dict[str, Any],
    faults: list[str],
) -> None:
    example, means = about.metadata["example"], about.metadata["means"]
    if key not in table:
        if about.default is MISSING and about.default_factory is MISSING:
            faults.append(f"{where}.{key} is missing ({means}): write {key} = {example}")
        return
    try:
        found[about.name] = about.metadata["read"](table[key])
    except KrzemError as error:
        faults.append(f"{where}.{key}: {error} Here ({means}): {key} = {example}")


def _unknown(name: str, keys: Mapping[str, Any], where: str) -> str:
    near = nearest(name, keys, 2)
    offer = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(keys)}"
    return f"{where}.{shorten(name, 40)}: unknown key; {offer}"


def text(value: object) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value.strip() or len(value) > 4000:
        raise QuantityError("it must be text in quotes.")
    return value.strip()


def line(value: object) -> str:
    """Text of one line, without control characters: it becomes part of a command's option."""
    found = text(value)
    if not found.isprintable():
        raise QuantityError("it must be one line without control characters.")
    return found


def lines(value: object) -> tuple[str, ...]:
    """A list of texts of one line."""
    return tuple(line(item) for item in texts(value))


def plain_name(value: object) -> str:
    """A name that can be part of a path, of a job's name and of a line."""
    found = text(value)
    if not is_name(found):
        raise QuantityError(
            f"{shorten(printable(found), 40)!r} is no name: letters, digits, spaces and . _ + - "
            f"are, up to 64 of them, beginning with a letter or digit, such as "
            f'"{as_name(found)}".'
        )
    return found


def texts(value: object) -> tuple[str, ...]:
    """A list of texts."""
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise QuantityError("it must be a list of texts.")
    return tuple(value)


def flag(value: object) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise QuantityError("it must be true or false.")
    return value


def whole(low: int, high: int = 10**9) -> Callable[[object], int]:
    """A whole number in a range."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise QuantityError(f"it must be a whole number from {low:,} to {high:,}.")
        return value

    return read


def number(low: float, high: float = 1e30) -> Callable[[object], float]:
    """A number in a range."""

    def read(value: object) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            raise QuantityError(f"it must be a number from {low:g} to {high:g}.")
        return float(value)

    return read


def choice(kind: type[StrEnum]) -> Callable[[object], StrEnum]:
    """One of the names of an enumeration."""

    def read(value: object) -> StrEnum:
        names = [member.value for member in kind]
        if not isinstance(value, str) or value not in names:
            raise QuantityError(f"it must be one of {', '.join(names)}.")
        return kind(value)

    return read


def variables(value: object) -> Mapping[str, str]:
    """Names and values of environment variables."""
    if not isinstance(value, Mapping):
        raise QuantityError("it must be a table of names and values.")
    bad = [k for k in value if not k.isidentifier()]
    if bad:
        raise QuantityError(f"{shorten(bad[0], 40)!r} is no name of an environment variable.")
    if not all(isinstance(v, str | int | float) for v in value.values()):
        raise QuantityError("values must be text or numbers.")
    return {key: str(item) for key, item in value.items()}
