"""Tables of a run file as dataclasses: how each key is read, and every fault told at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import Any, TypeVar

from krzem.errors import KrzemError, RunError, nearest, shorten

Values = TypeVar("Values")


def as_key(default: Any, read: Callable[[Any], Any], means: str) -> Any:
    """A field of a table: how it is read and what it means."""
    about = {"read": read, "means": means}
    return field(metadata=about) if default is MISSING else field(default=default, metadata=about)


def read_text_value(value: Any) -> str:
    """A text in quotes."""
    if not isinstance(value, str) or not value.strip():
        raise RunError("it has to be a text in quotes")
    return value


def read_flag(value: Any) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise RunError("it has to be true or false")
    return value


def read_number(value: Any) -> float:
    """A finite number, 0 or more."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or value < 0 or not math.isfinite(value):
        raise RunError("it has to be a number, 0 or more")
    return float(value)


def read_multiple(value: Any) -> float:
    """A finite number, 1 or more."""
    if read_number(value) < 1:
        raise RunError("it has to be a number, 1 or more")
    return float(value)


def read_share(value: Any) -> float:
    """A share between 0 and 1."""
    if read_number(value) > 1:
        raise RunError("it has to be a share between 0 and 1")
    return float(value)


def read_whole(value: Any) -> int:
    """A whole number, 0 or more."""
    if not _is_whole(value) or value < 0:
        raise RunError("it has to be a whole number, 0 or more")
    return int(value)


def read_some(value: Any) -> int:
    """A whole number, 1 or more."""
    if not _is_whole(value) or value < 1:
        raise RunError("it has to be a whole number, 1 or more")
    return int(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def read_steps(value: Any) -> tuple[int, int]:
    """Steps "10:13": the first, and the one after the last."""
    first, colon, after = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not (first + after).isdigit() or not first or not after:
        raise RunError('it has to be steps such as "10:13", the last one not among them')
    if not 0 < int(first) < int(after):
        raise RunError("the first step has to be 1 or more, and below the second number")
    return int(first), int(after)


def read_folders(value: Any) -> Any:
    """A folder, or folders with weights."""
    if isinstance(value, Mapping) and value:
        for folder, weight in value.items():
            if not _is_whole(weight) and not isinstance(weight, float):
                raise RunError(f"the weight of {shorten(folder)} has to be a number")
        return value
    if not isinstance(value, str) or not value.strip():
        raise RunError(
            'it has to be a folder in quotes, or folders with weights: { "a" = 0.7, "b" = 0.3 }'
        )
    return value


def read_one_of(*choices: str) -> Callable[[Any], str]:
    """A reader of one of ``choices``."""

    def read(value: Any) -> str:
        if value not in choices:
            raise RunError(f"it has to be one of {', '.join(choices)}")
        return str(value)

    return read


def read_anything(value: Any) -> Any:
    """A value that others read."""
    return value


def read_table(kind: type[Values], given: object, where: str, faults: list[str]) -> Values | None:
    """A table of the run file as ``kind``; None where it has faults, which are added."""
    if not isinstance(given, Mapping):
        faults.append(f"{where} has to be a table, written [{where}]")
        return None
    keys: dict[str, Field[Any]] = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    faults += [unknown("key", k, keys, f"{where}.") for k in given if k not in keys]
    found: dict[str, Any] = {}
    before = len(faults)
    for name, about in keys.items():
        if name in given:
            try:
                found[name] = about.metadata["read"](given[name])
            except (KrzemError, TypeError, ValueError) as error:
                faults.append(f"{where}.{name} = {shorten(repr(given[name]))}: {error}")
        elif about.default is MISSING:
            faults.append(f"{where}.{name} is missing: {about.metadata['means']}")
    return kind(**found) if len(faults) == before else None


def unknown(what: str, name: str, known: Sequence[str] | Any, where: str) -> str:
    """What to say of a name that is not ``known``: those that are close, or all."""
    close = nearest(name, known)
    offer = f"; did you mean {', '.join(close)}?" if close else f"; there are {', '.join(known)}"
    return f"unknown {what} {where}{shorten(name)}{offer}"
