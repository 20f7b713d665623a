"""Keys of the TOML files that people write: one declaration each, from which everything else comes.

A :class:`Key` says how a value is read, shows an example of it and says what it means.  Keys stand
in a table (cluster and goal files), or in a dataclass whose fields :func:`setting` made (run
files)::

    "price": Key(parse_price, '"$2/h"', "per device and hour", most="$1000000/h")
    below: float = setting(0.6, parse_ratio, '"60%"', "share of the planned tokens/s")

:func:`read_keys` and :func:`read_table` read a parsed table by them and add a sentence for every
fault, so that a file is told all of them at once; :func:`schema_of` is the same as JSON Schema.
Reference pages are made of the same declarations (``scripts/reference``).
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from enum import StrEnum
from typing import Any, TypeVar

from krzem.errors import KrzemError, QuantityError, nearest, shorten

Values = TypeVar("Values")
REQUIRED: Any = MISSING
"""Default of a key that has to be there."""
MOST_FAULTS = 40
"""Listed in one message."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its reader, its example, what it means."""

    read: Callable[[Any], Any]
    """Raises an InputError that says what is needed."""
    example: str
    """As TOML."""
    means: str
    least: str = ""
    """Written as a value of this key; what is smaller is a slip."""
    most: str = ""
    name: str = ""
    """What the value is called by those who use it, where that is not the key."""
    types: tuple[str, ...] = ()
    """JSON types that it may have, where the example shows one of several."""

    def value(self, written: Any) -> Any:
        """``written`` in base units; InputError where it is unreadable or out of bounds."""
        found = self.read(written)
        if self.least and found < self.read(self.least):
            raise QuantityError(f"less than {self.least} cannot be meant.")
        if self.most and found > self.read(self.most):
            raise QuantityError(f"more than {self.most} cannot be meant.")
        return found


def setting(
    default: Any, read: Callable[[Any], Any], example: str, means: str, *, key: str = "",
    types: tuple[str, ...] = (),
) -> Any:  # fmt: skip
    """A dataclass field that is a key of a table; ``key`` if it has another name there."""
    about = {"key": Key(read, example, means, types=types), "written": key}
    if default is REQUIRED:
        return field(metadata=about)
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=about)
    return field(default=default, metadata=about)


def keys_of(kind: type) -> dict[str, Key]:
    """The keys of a dataclass by their names in the file."""
    return {f.metadata["written"] or f.name: f.metadata["key"] for f in _settings(kind)}


def _settings(kind: type) -> list[Any]:
    return [f for f in fields(kind) if "key" in f.metadata]


# -- reading


def read_keys(
    table: object, keys: Mapping[str, Key], place: str, faults: list[str]
) -> dict[str, Any]:
    """The values of ``table`` by their keys; what is wrong becomes sentences in ``faults``.

    ``place`` is what stands before a key in messages: the name of the table, empty at the top.
    """
    if not isinstance(table, Mapping):
        faults.append(f"{place}: it must be a table: write [{place}] on its own line.")
        return {}
    found: dict[str, Any] = {}
    for name, written in table.items():
        key = keys.get(name)
        if key is None:
            faults.append(unknown_key(str(name), keys, place))
            continue
        try:
            found[name] = key.value(written)
        except KrzemError as error:
            why = str(error).rstrip()
            stop = "" if why.endswith((".", "?", "!")) else "."
            faults.append(
                f"{_at(place, name)}: {why}{stop} Here ({key.means}): {name} = {key.example}"
            )
    return found


def read_table(
    kind: type[Values], table: object, place: str, faults: list[str], **given: Any
) -> Values | None:
    """``kind`` from ``table``; None, with sentences in ``faults``, where that cannot be.

    ``given`` are fields that do not come from the table.
    """
    before, keys = len(faults), keys_of(kind)
    found = read_keys(table, keys, place, faults)
    values = dict(given)
    for about in _settings(kind):
        name = about.metadata["written"] or about.name
        if name in found:
            values[about.name] = found[name]
        elif _is_missing(about) and isinstance(table, Mapping) and name not in table:
            key = keys[name]
            faults.append(
                f"{_at(place, name)} is missing ({key.means}): write {name} = {key.example}"
            )
    if len(faults) > before:
        return None
    try:
        return kind(**values)
    except KrzemError as error:
        faults.append(f"{place}: {error}")
        return None


def _is_missing(about: Any) -> bool:
    return about.default is MISSING and about.default_factory is MISSING


def _at(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def unknown_key(name: str, known: Iterable[str], place: str, what: str = "key") -> str:
    """What to say of a key or table that is not ``known``: those that are close, or all."""
    known = list(known)
    near = nearest(name, known, 2)
    offer = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}"
    return f"{_at(place, shorten(name, 40))}: unknown {what}; {offer}"


def listed(where: object, faults: Sequence[str]) -> str:
    """All faults of the file ``where`` in one message."""
    if len(faults) == 1:
        return f"{where}: {faults[0]}"
    told = list(faults[:MOST_FAULTS])
    if len(faults) > MOST_FAULTS:
        told.append(f"and {len(faults) - MOST_FAULTS} more")
    return "\n  ".join([f"{where} has {len(faults)} faults:", *told])


def stop_at(faults: Sequence[str], where: str, error: type[KrzemError]) -> None:
    """Raise one ``error`` for all of them; nothing where there is none."""
    if faults:
        raise error(listed(where, faults))


# -- readers of single values


def shown(value: object) -> str:
    """A value as messages quote it."""
    return shorten(repr(value), 40)


def anything(value: Any) -> Any:
    """A value that others read."""
    return value


def flag(value: object) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise QuantityError(f"it must be true or false, without quotes, not {shown(value)}.")
    return value


def mapping(value: object) -> Mapping[str, Any]:
    """A table."""
    if not isinstance(value, Mapping):
        raise QuantityError(f"it must be a table, not {shown(value)}.")
    return value


@dataclass(frozen=True, slots=True)
class Text:
    """Text of 1 to ``most`` characters; of one line without control characters if ``line``."""

    most: int = 4000
    line: bool = False

    def __call__(self, value: object) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > self.most:
            raise QuantityError(
                f"it must be text of 1 to {self.most:,} characters in quotes, not {shown(value)}."
            )
        found = value.strip()
        if self.line and not found.isprintable():
            raise QuantityError("it must be one line without control characters.")
        return found


text, line = Text(), Text(line=True)


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number in a range."""

    least: int = 0
    most: int = 10**9

    def __call__(self, value: object) -> int:
        plain = isinstance(value, int) and not isinstance(value, bool)
        if not plain or not self.least <= value <= self.most:  # type: ignore[operator]
            raise QuantityError(
                f"it must be a whole number from {self.least:,} to {self.most:,}, "
                f"not {shown(value)}."
            )
        return value  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number in a range."""

    least: float = 0.0
    most: float = math.inf

    def __call__(self, value: object) -> float:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not plain or not math.isfinite(value) or not self.least <= value <= self.most:  # type: ignore[arg-type, operator]
            wanted = f"from {self.least:g} to {self.most:g}"
            if self.most == math.inf:
                wanted = f"of {self.least:g} or more"
            raise QuantityError(f"it must be a number {wanted}, not {shown(value)}.")
        return float(value)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of the names that there are."""

    names: tuple[str, ...]

    def __call__(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise QuantityError(f"it must be one of {', '.join(self.names)}, not {shown(value)}.")
        return value


def one_of(*names: str) -> OneOf:
    """A reader of one of ``names``."""
    return OneOf(names)


@dataclass(frozen=True, slots=True)
class Choice(OneOf):
    """One member of an enumeration, by its name."""

    kind: type[StrEnum] = StrEnum

    def __call__(self, value: object) -> StrEnum:
        return self.kind(OneOf.__call__(self, value))


def choice(kind: type[StrEnum]) -> Choice:
    """A reader of one member of ``kind``."""
    return Choice(tuple(member.value for member in kind), kind)


def texts(value: object) -> tuple[str, ...]:
    """A list of texts."""
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise QuantityError(f"it must be a list of texts, not {shown(value)}.")
    return tuple(value)


def lines(value: object) -> tuple[str, ...]:
    """A list of texts of one line."""
    return tuple(line(item) for item in texts(value))


def variables(value: object) -> Mapping[str, str]:
    """Names and values of environment variables."""
    if not isinstance(value, Mapping):
        raise QuantityError(f"it must be a table of names and values, not {shown(value)}.")
    bad = [k for k in value if not k.isidentifier()]
    if bad:
        raise QuantityError(f"{shorten(bad[0], 40)!r} is no name of an environment variable.")
    if not all(isinstance(v, str | int | float) for v in value.values()):
        raise QuantityError("values must be text or numbers.")
    return {key: str(item) for key, item in value.items()}


# -- the same as JSON Schema


def schema_of(keys: Mapping[str, Key]) -> dict[str, Any]:
    """The properties of a JSON Schema (2020-12) for a table with these keys."""
    return {
        name: {"description": f"{key.means}; such as {key.example}"} | _types(key)
        for name, key in keys.items()
    }


def _types(key: Key) -> dict[str, Any]:
    """The JSON types that a key takes: quantities may be text or numbers."""
    if key.types:
        return {"type": list(key.types)}
    match key.read:
        case Whole(least=least, most=most):
            return {"type": "integer", "minimum": least, "maximum": most}
        case Number(least=least):
            return {"type": "number", "minimum": least}
        case OneOf(names=names):
            return {"enum": list(names)}
        case Text():
            return {"type": "string"}
    try:
        value = tomllib.loads(f"x = {key.example}")["x"]
    except tomllib.TOMLDecodeError:
        return {}
    if isinstance(value, bool | list | dict):
        kinds = {bool: "boolean", list: "array", dict: "object"}
        return {"type": kinds[type(value)]}
    return {"type": ["string", "number"]} if isinstance(value, str | int | float) else {}
