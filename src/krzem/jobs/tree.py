"""Settings of a configuration by dotted name, and tables that say what each one means.

Every format (YAML, JSON, TOML, a Python recipe, overrides on a command line) becomes a
:class:`Tree`: one :class:`Entry` for each leaf, with its line.  A :class:`Table` of an engine maps
names to readers; what no table knows is kept as not understood.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from krzem.errors import shorten
from krzem.jobs.job import JobBuilder, Place, Value

LONGEST_LINE = 200
"""Characters of a line that are kept to be shown."""


@dataclass(frozen=True, slots=True)
class Open:
    """A value that the files do not decide: an expression over things that stand elsewhere."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A constructor or function that a recipe calls, or the class that ``_target_`` names."""

    name: str
    arguments: tuple[object, ...] = ()
    keywords: tuple[tuple[str, object], ...] = ()

    @property
    def short(self) -> str:
        """The name without the modules before it; of ``Trainer.Config`` the class too."""
        parts = self.name.split(".")
        return ".".join(parts[-2:]) if parts[-1] == "Config" else parts[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One leaf: its dotted name as written, its value and its line."""

    key: str
    value: object
    """bool, int, float, str, None, a list, :class:`Open` or :class:`Call`."""
    place: Place


@dataclass(slots=True)
class Tree:
    """Leaves by dotted name; a later one of the same name replaces the earlier."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def put(self, entry: Entry) -> None:
        """Add a leaf; a leaf replaces a table of the same name, and the other way round."""
        self.entries.pop(entry.key, None)
        self.entries[entry.key] = entry

    def update(self, other: Tree, prefix: str = "") -> None:
        """Everything of ``other``, which wins, below ``prefix``."""
        for key, entry in other.entries.items():
            name = f"{prefix}{key}"
            self.put(Entry(key=name, value=entry.value, place=entry.place))

    def sub(self, prefix: str) -> Tree:
        """The leaves below ``prefix`` (a name without its final dot), named from there."""
        start = f"{prefix}."
        return Tree({
            key[len(start) :]: Entry(key=key[len(start) :], value=e.value, place=e.place)
            for key, e in self.entries.items() if key.startswith(start)
        })  # fmt: skip

    def has(self, *keys: str) -> bool:
        """Whether one of the names, or a table of that name, is there."""
        return any(key in self.entries or self.any_below(key) for key in keys)

    def any_below(self, prefix: str) -> bool:
        """Whether a table of this name holds anything."""
        return any(key.startswith(f"{prefix}.") for key in self.entries)

    def value(self, *keys: str) -> object:
        """The value of the first of these names that is there and not null."""
        for key in keys:
            entry = self.entries.get(key)
            if entry is not None and entry.value is not None:
                return entry.value
        return None

    def place(self, *keys: str) -> Place:
        """The line of the first of these names that is there."""
        for key in keys:
            if key in self.entries:
                return self.entries[key].place
        return Place()

    def tops(self) -> set[str]:
        """The names of the outermost tables and leaves."""
        return {key.partition(".")[0] for key in self.entries}


class UnclearError(ValueError):
    """A value that is not one the key may have; the message says why."""


Found = Mapping[str, Value]
Defaults = Mapping[str, tuple[Value, str]]
"""What an engine's source decides where files are silent: value and reason by field."""

# -- values


def whole(value: object) -> int:
    """A count of at least 1; ``1e9``, ``4_096`` and ``8192.0`` are counts too."""
    number = integer(value)
    if number < 1:
        raise UnclearError(f"{show(value)} is no count of at least 1")
    return number


def integer(value: object) -> int:
    """A whole number; raises :class:`UnclearError` for anything else, NaN and infinity too."""
    if isinstance(value, bool) or value is None:
        raise UnclearError(f"{value} is no number")
    if isinstance(value, int):
        number: float = value
    else:
        number = real(value)
    if isinstance(number, float) and (not math.isfinite(number) or number != int(number)):
        raise UnclearError(f"{number} is no whole number")
    if abs(number) > 10**18:
        raise UnclearError("more than 10^18 of something is no count")
    return int(number)


def real(value: object) -> float:
    """A finite number, also when written as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UnclearError(f"{show(value)} is no number")
    try:
        number = float(value.strip().rstrip(",") if isinstance(value, str) else value)
    except (ValueError, OverflowError):
        raise UnclearError(f"{show(value)} is no number") from None
    if not math.isfinite(number):
        raise UnclearError(f"{show(value)} is no finite number")
    return number


_WORDS = {"true": True, "yes": True, "on": True, "1": True,
          "false": False, "no": False, "off": False, "0": False}  # fmt: skip


def truth(value: object) -> bool:
    """A switch; words and 0 or 1 are read as such."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | str):
        found = _WORDS.get(str(value).strip().strip("'\"").lower())
        if found is not None:
            return found
    raise UnclearError(f"{show(value)} is neither true nor false")


def word(value: object) -> str:
    """Text, without quotes and blanks around it."""
    if isinstance(value, Call):
        return value.short
    if not isinstance(value, str) or not value.strip():
        raise UnclearError(f"{show(value)} is no name")
    return value.strip().strip("'\"")


def show(value: object) -> str:
    """A value for a message."""
    if isinstance(value, Open):
        return shorten(value.text, 60)
    if isinstance(value, Call):
        return shorten(f"{value.name}(…)", 60)
    return shorten(repr(value), 60)


def listed(value: object) -> tuple[str, ...]:
    """Words of a list, or of text with commas between them."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.strip("[]").split(",") if part.strip())
    if isinstance(value, list | tuple):
        return tuple(word(part) for part in value)
    raise UnclearError(f"{show(value)} is no list of names")


# -- readers of one field


@dataclass(frozen=True, slots=True)
class Read:
    """How the value of a key settles fields."""

    fields: tuple[str, ...]
    """What it may settle; none where arithmetic uses the key later."""
    parse: Callable[[object], Found]
    """From a value to fields; raises :class:`UnclearError`."""
    takes_none: bool = False
    """Whether the word ``none`` is a value, not the absence of one."""


def count(name: str) -> Read:
    """A field that counts something."""
    return Read((name,), lambda value: {name: whole(value)})


def some(name: str, least: int = 0) -> Read:
    """A count that may be ``least``; smaller numbers, as -1, say nothing."""

    def parse(value: object) -> Found:
        number = integer(value)
        return {name: number} if number >= least else {}

    return Read((name,), parse)


def positive(name: str) -> Read:
    """A count where 0 and negative numbers mean that the engine decides."""
    return some(name, 1)


def yes_no(name: str) -> Read:
    """A field that is true or false."""
    return Read((name,), lambda value: {name: truth(value)})


def inverse(name: str) -> Read:
    """A field that is true where the key is false."""
    return Read((name,), lambda value: {name: not truth(value)})


def switch(name: str, on: str = "on", off: str = "off") -> Read:
    """A switch of an engine, by truth."""
    field_name = f"switch.{name}"
    return Read((field_name,), lambda value: {field_name: on if truth(value) else off})


def text(name: str) -> Read:
    """A name as it is written."""
    return Read((name,), lambda value: {name: word(value)})


def names(name: str) -> Read:
    """A list of names."""
    return Read((name,), lambda value: {name: listed(value)})


def words(name: str, choices: Mapping[str, Value]) -> Read:
    """One of a list of words; letter case does not matter."""
    return Read((name,), lambda value: {name: chosen(value, choices)}, "none" in choices)


def chosen(value: object, choices: Mapping[str, Value]) -> Value:
    """What the word stands for; letter case does not matter; raises :class:`UnclearError`."""
    said = (str(value) if isinstance(value, bool | int) else word(value)).strip()
    found = choices.get(said.lower())
    if found is None:
        raise UnclearError(f"{shorten(said, 40)!r} is none of {', '.join(choices)}")
    return found


def when_true(fields: Mapping[str, Value]) -> Read:
    """Fields that a key settles when it is true; false says nothing."""
    return Read(tuple(fields), lambda value: fields if truth(value) else {})


KEPT = Read((), lambda value: {})
"""A key that arithmetic uses later."""


def unset(value: object, *, none_too: bool = True) -> bool:
    """Whether a value leaves its key at the engine's default: null, nothing, ``None``."""
    words = ("", "none", "null", "~") if none_too else ("",)
    return value is None or (isinstance(value, str) and value.strip().lower() in words)


# -- tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What the keys of an engine mean."""

    keys: Mapping[str, Read]
    """By dotted name; ``*.name`` is a leaf of that name in any table."""
    ignored: tuple[str, ...] = ()
    """Patterns of names (regular expressions, whole name) that the price does not depend on."""
    why: str = "says nothing about time or memory"

    def reader(self, key: str) -> Read | None:
        """The reader of a key, or None where the table has none."""
        return self.keys.get(key) or self.keys.get(f"*.{key.rpartition('.')[2]}")

    def leaves_out(self, key: str) -> bool:
        """Whether the key is known not to matter."""
        return any(re.fullmatch(pattern, key) for pattern in self.ignored)


def apply(tree: Tree, table: Table, job: JobBuilder, skip: Iterable[str] = ()) -> None:
    """Settle every field that the leaves decide; the rest is ignored, asked or not understood."""
    left = set(skip)
    for key, entry in tree.entries.items():
        if key in left:
            continue
        read = table.reader(key)
        if read is not None:
            settle(entry, read, job)
        elif entry.value is None or table.leaves_out(key):
            job.ignore(entry.place, table.why)
        else:
            job.not_understood(entry.place, f"{shorten(key, 80)}: no reader knows this key")


def settle(entry: Entry, read: Read, job: JobBuilder) -> None:
    """What one leaf decides; an open value is asked for where its field is known."""
    if unset(entry.value, none_too=not read.takes_none):
        job.ignore(entry.place, "left at the engine's default")
        return
    if isinstance(entry.value, Open):
        name = shorten(entry.value.text, 60)
        said = f"{shorten(entry.key, 60)} = {name}, which the files leave open"
        if not read.fields:
            job.not_understood(entry.place, said)
        _ask(entry, read, said, job)
        return
    try:
        for name, value in read.parse(entry.value).items():
            job.state(name, value, entry.place, override=True)
    except UnclearError as error:
        said = f"{shorten(entry.key, 80)}: {error}"
        job.not_understood(entry.place, said)
        _ask(entry, read, said, job)


def _ask(entry: Entry, read: Read, said: str, job: JobBuilder) -> None:
    """Neither a default nor what stood before holds where a key has a value of its own."""
    for name in read.fields:
        job.drop(name)
        job.ask(name, f"{said} ({entry.place})", "give its value")


def fall_back(job: JobBuilder, table: Defaults) -> None:
    """What the engine's source decides where nothing else did: value and reason by field."""
    for name, (value, why) in table.items():
        job.default(name, value, why)


# -- values that arithmetic takes from a tree


def number(tree: Tree, *keys: str) -> int | None:
    """A whole number of the first key that has one; None where it is open or unreadable."""
    value = tree.value(*keys)
    try:
        return None if value is None or isinstance(value, Open) else integer(value)
    except UnclearError:
        return None


def size_of(tree: Tree, *keys: str) -> int | None:
    """A count of at least 1 of the first key that has a number; None for anything else."""
    found = number(tree, *keys)
    return found if found is not None and found > 0 else None


def names_of(tree: Tree, *keys: str) -> tuple[str, ...]:
    """The names of a list; none where it is open or no list of names."""
    value = tree.value(*keys)
    try:
        return () if value is None or isinstance(value, Open) else listed(value)
    except UnclearError:
        return ()


def truth_of(tree: Tree, *keys: str) -> bool | None:
    """Truth of the first key that has one; None where it is open or unreadable."""
    value = tree.value(*keys)
    try:
        return None if value is None or isinstance(value, Open) else truth(value)
    except UnclearError:
        return None


def word_of(tree: Tree, *keys: str) -> str | None:
    """The word of the first key that has one; None where it is open or unset."""
    value = tree.value(*keys)
    try:
        return None if unset(value, none_too=False) or isinstance(value, Open) else word(value)
    except UnclearError:
        return None
