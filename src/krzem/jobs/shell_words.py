"""What shell variables hold while a script is read: text, where it was written, what is not known.

A value is a tuple of pieces.  Text that the files decide is KNOWN; what only the machine or the
caller knows (a command's output, ``$1``, an environment variable) stays symbolic: its piece shows
the source text, and every word with such a piece is unknown.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from krzem.errors import DataError

LARGEST_VALUE = 400_000
"""Characters of one variable or word."""


class ShellError(DataError):
    """A script that cannot be read as shell, or that asks for unreasonable work."""


class State(enum.IntEnum):
    """How much the files say about a piece of text."""

    KNOWN = 0
    MAYBE = 1
    """The text is known, but whether it is there depends on a condition that is not."""
    UNSET = 2
    """A variable that no file sets: empty unless the caller sets it."""
    UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class Origin:
    """A line of a file."""

    file: str
    line: int


NOWHERE = Origin("", 0)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text with one origin; for what is not known the text is what the script says."""

    text: str
    origin: Origin = NOWHERE
    state: State = State.KNOWN


Value = tuple[Piece, ...]
EMPTY: Value = ()


@dataclass(frozen=True, slots=True)
class ShellWord:
    """One word of a command as the program would get it."""

    text: str
    """Where the word is not known: as much of it as is, and source text for the rest."""
    origin: Origin = NOWHERE
    state: State = State.KNOWN

    @property
    def known(self) -> bool:
        """Whether the files decide the word."""
        return self.state is State.KNOWN


def known(text: str, origin: Origin = NOWHERE) -> Value:
    """A value that is known; empty text has no piece."""
    return (Piece(text, origin),) if text else ()


def unknown(text: str, origin: Origin = NOWHERE) -> Value:
    """A value of which only the source text is known."""
    return (Piece(text, origin, State.UNKNOWN),)


def plain(value: Value) -> str | None:
    """The text of a value, None where a piece of it is not known."""
    if any(piece.state is not State.KNOWN for piece in value):
        return None
    return "".join(piece.text for piece in value)


def tested(value: Value) -> str | None:
    """The text as a condition sees it: what nobody sets is empty."""
    if any(piece.state in (State.UNKNOWN, State.MAYBE) for piece in value):
        return None
    return "".join(p.text for p in value if p.state is State.KNOWN)


def shown(value: Value) -> str:
    """The text of a value with source text for what is not known."""
    return "".join(piece.text for piece in value)


def origin_of(value: Value, otherwise: Origin = NOWHERE) -> Origin:
    """The line where the text was written: that of the last piece that has one."""
    for piece in reversed(value):
        if piece.text and piece.origin.line:
            return piece.origin
    return otherwise


def word_of(value: Value, otherwise: Origin) -> ShellWord:
    """The word that a program would get."""
    states = [piece.state for piece in value]
    text = [piece for piece in value if piece.text.strip()]
    return ShellWord(
        text=shown(value),
        origin=text[0].origin if text and text[0].origin.line else otherwise,
        state=max(states, default=State.KNOWN),
    )


def joined(values: Sequence[Value], separator: str = " ") -> Value:
    """Values with a separator between them."""
    pieces: list[Piece] = []
    for index, value in enumerate(values):
        if index and separator:
            pieces.append(Piece(separator, pieces[-1].origin if pieces else NOWHERE))
        pieces.extend(value)
    return bounded(pieces)


def bounded(pieces: Iterable[Piece]) -> Value:
    """The pieces as a value; raises ShellError where it grows beyond reason."""
    value = tuple(pieces)
    if sum(len(piece.text) for piece in value) > LARGEST_VALUE or len(value) > LARGEST_VALUE // 4:
        raise ShellError(
            f"a variable of the script grows beyond {LARGEST_VALUE:,} characters; no job needs that"
        )
    return value


def split(value: Value, separators: str = " \t\n") -> list[Value]:
    """The fields of an unquoted expansion; what is not known counts as part of one field."""
    fields: list[Value] = []
    current: list[Piece] = []
    for piece in value:
        if piece.state is not State.KNOWN and piece.state is not State.MAYBE:
            current.append(piece)
            continue
        start = 0
        for index, char in enumerate(piece.text):
            if char in separators:
                if index > start:
                    current.append(Piece(piece.text[start:index], piece.origin, piece.state))
                if current:
                    fields.append(tuple(current))
                    current = []
                start = index + 1
        if start < len(piece.text):
            current.append(Piece(piece.text[start:], piece.origin, piece.state))
    if current:
        fields.append(tuple(current))
    return fields


def merged(name: str, values: Sequence[Value], origin: Origin) -> Value:
    """What a variable holds after branches of which one ran, and nobody knows which."""
    first = values[0]
    if all(shown(v) == shown(first) and _states(v) == _states(first) for v in values):
        return first
    texts = [shown(v) for v in values]
    if any(text.lstrip().startswith("-") or len(text.split()) > 1 for text in texts):
        return joined(merged_words([split(v) for v in values]))
    return unknown(f"${{{name}}}", origin)


def _states(value: Value) -> list[State]:
    return [piece.state for piece in value if piece.text]


def merged_words(lists: Sequence[Sequence[Value]]) -> list[Value]:
    """Words that all lists begin and end with, and between them those that only some have."""
    shortest = min(len(words) for words in lists)
    first = lists[0]

    def same(index: int) -> bool:
        return all(
            shown(ws[index]) == shown(first[index]) and _states(ws[index]) == _states(first[index])
            for ws in lists
        )

    head = 0
    while head < shortest and same(head):
        head += 1
    tail = 0
    while tail < shortest - head and same(-1 - tail):
        tail += 1
    middle: dict[tuple[str, ...], list[Value]] = {}
    for words in lists:
        part = list(words[head : len(words) - tail])
        if part:
            middle.setdefault(tuple(map(shown, part)), [_maybe(value) for value in part])
    between = [value for part in middle.values() for value in part]
    return [*first[:head], *between, *first[len(first) - tail :]]


def _maybe(value: Value) -> Value:
    return tuple(
        Piece(p.text, p.origin, State.MAYBE) if p.state is State.KNOWN else p for p in value
    )


# -- variables

Holder = Value | list[Value] | dict[str, Value]
"""A scalar, an array, or an associative array."""


def scalar(holder: Holder) -> Value:
    """A variable where one value is wanted: an array's first."""
    if isinstance(holder, tuple):
        return holder
    if isinstance(holder, dict):
        return holder.get("0", EMPTY)
    return holder[0] if holder else EMPTY


def element_values(holder: Holder) -> list[Value]:
    """All values of a variable."""
    if isinstance(holder, tuple):
        return [holder]
    return list(holder.values()) if isinstance(holder, dict) else list(holder)


def length_of(holder: Holder) -> int:
    """How many values a variable holds."""
    return 1 if isinstance(holder, tuple) else len(holder)


def element(holder: Value | list[Value], index: int) -> Value:
    """The value at ``index``, empty where there is none."""
    values = element_values(holder)
    return values[index] if -len(values) <= index < len(values) else EMPTY


def without_origin(value: Value) -> Value:
    """A value whose pieces have forgotten their lines, to compare."""
    return tuple(replace(piece, origin=NOWHERE) for piece in value)


OUTSIDE = re.compile(
    r"(SLURM|PBS|LSB|FLUX|OMPI|PMI|PMIX|MPI|KUBERNETES|PET|VC|MA|AIP)_|(MASTER|NODE|LOCAL|WORLD|HOST|"
    r"GLOBAL|CUDA|ASCEND|HIP|ROCR|ZE|LD|CONDA|VIRTUAL|MLP|DLC)_?|RANK|HOME|USER|PWD|OLDPWD|PATH|"
    r"TMPDIR|RANDOM|SECONDS|BASH|LINENO|UID|PPID|SHELL|LOGNAME|PYTHONPATH|SCRATCH|WORK$"
)
"""Variables that a scheduler, a launcher or the login sets: never taken as empty."""


COUNTED = re.compile(r"SLURM_(JOB_NUM_NODES|N?NODES|JOB_NODES|NTASKS|NPROCS)|PBS_NUM_NODES")
"""Sizes of the job that a scheduler sets: what stands in for them elsewhere is not the job."""


Field = tuple[Value, bool]
"""A run of pieces and whether it was quoted."""


def runs_of(values: Sequence[Value]) -> list[Field | None]:
    """Runs of an unquoted expansion: fields end at blanks and between an array's elements."""
    runs: list[Field | None] = []
    for index, value in enumerate(values):
        text = shown(value)
        if index or (text[:1] in (" ", "\t", "\n") and text):
            runs.append(None)
        for number, field in enumerate(split(value)):
            if number:
                runs.append(None)
            runs.append((field, False))
        if text[-1:] in (" ", "\t", "\n") and text:
            runs.append(None)
    return runs
