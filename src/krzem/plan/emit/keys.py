"""Tables of an engine's keys: names, types and choices, as its source declares them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from krzem.errors import DataError
from krzem.facts.table import read_table
from krzem.plan.emit.launch import Flag
from krzem.plan.emit.parts import ASKED


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One setting of an engine."""

    name: str
    kind: str
    """Its type as declared."""
    default: str
    """JSON, or Python where it is computed."""
    choices: tuple[str, ...]


@cache
def keys_of(table: str) -> Mapping[str, Key]:
    """The keys of ``facts/engine_flags/<table>.csv`` by name."""
    rows = read_table(f"engine_flags/{table}.csv")
    return {
        row["name"]: Key(
            name=row["name"], kind=row["type"], default=row["default"],
            choices=tuple(row["choices"].split()),
        )
        for row in rows
    }  # fmt: skip


def known(flags: Iterable[Flag], table: str, prefix: str = "") -> Iterator[Flag]:
    """``flags`` with ``prefix`` before their names, each found in the table.

    Raises DataError for a name that the engine does not have.
    """
    keys = keys_of(table)
    for flag in flags:
        if flag.name not in keys:
            raise DataError(f"{flag.name} is no key of {table}")
        yield Flag(f"{prefix}{flag.name}", flag.value, flag.why)


def fits(value: str, key: Key) -> bool:
    """Whether a value, written as JSON, has the type and is among the choices of ``key``.

    What is asked of the user stands for a value that fits.
    """
    if ASKED.fullmatch(value.strip('"')):
        return True
    found = json.loads(value)
    kind = key.kind.lower()
    if found is None:
        return "none" in kind or "optional" in kind or key.default == "null" or kind == "any"
    if kind == "any":
        return True
    if isinstance(found, bool):
        return "bool" in kind or key.default in ('"true"', '"false"')
    if isinstance(found, int) and str(found) in key.choices:
        return True
    if isinstance(found, int | float):
        return "float" in kind or (
            isinstance(found, int) and any(w in kind for w in ("int", "freq", "stage"))
        )
    if isinstance(found, list):
        return any(word in kind for word in ("list", "tuple", "freq", "sequence"))
    if isinstance(found, dict):
        return "dict" in kind or key.kind[:1].isupper()
    numeric = kind in ("int", "float", "bool", "int | none", "float | none")
    empty = found == "" and key.default == '""'
    return not numeric and (empty or not key.choices or found in key.choices)
