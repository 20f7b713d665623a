"""What shell variables hold while a script is read: text, where it was written, what is not known.

A value is a tuple of pieces.  Text that the files decide is KNOWN; what only the machine or the
caller knows (a command's output, ``$1``, an environment variable) stays symbolic: its piece shows
the source text, and every word with such a piece is unknown.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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


# Patterns of the shell (``*``, ``?``, ``[a-z]``), matched in time linear in text times p...
# ------------------------------------------------------------------------------------------

STAR = "*"


@dataclass(frozen=True, slots=True)
class Token:
    """One element of a pattern: any run, any character, a set, or one literal character."""

    kind: str
    text: str = ""

    def takes(self, char: str) -> bool:
        """Whether it matches this one character."""
        if self.kind == "?":
            return True
        if self.kind == "[":
            return _in_set(self.text, char)
        return self.text == char


def compiled(parts: Sequence[tuple[str, bool]]) -> list[Token]:
    """A pattern from text runs, each with whether it was quoted (then it is literal)."""
    tokens: list[Token] = []
    for text, quoted in parts:
        at = 0
        while at < len(text):
            char = text[at]
            end = text.find("]", at + 2) if char == "[" and not quoted else -1
            if quoted or char not in "*?[" or (char == "[" and end < 0):
                tokens.append(Token("c", char))
            elif char == "[":
                tokens.append(Token("[", text[at + 1 : end]))
                at = end
            elif char != "*" or not tokens or tokens[-1].kind != STAR:
                tokens.append(Token(char))
            at += 1
    return tokens


def ends(tokens: Sequence[Token], text: str, start: int = 0) -> list[int]:
    """All positions at which a match that begins at ``start`` may end, ascending."""
    found = []
    states = _closure({0}, tokens)
    for at in range(start, len(text) + 1):
        if len(tokens) in states:
            found.append(at)
        if at == len(text) or not states:
            break
        char = text[at]
        moved = set()
        for state in states:
            if state < len(tokens):
                if tokens[state].kind == STAR:
                    moved.add(state)
                elif tokens[state].takes(char):
                    moved.add(state + 1)
        states = _closure(moved, tokens)
    return found


def matches(tokens: Sequence[Token], text: str) -> bool:
    """Whether the whole text matches."""
    found = ends(tokens, text)
    return bool(found) and found[-1] == len(text)


def without_prefix(tokens: Sequence[Token], text: str, longest: bool) -> str:
    """``${text#pattern}`` and ``${text##pattern}``."""
    found = ends(tokens, text)
    return text[found[-1 if longest else 0] :] if found else text


def without_suffix(tokens: Sequence[Token], text: str, longest: bool) -> str:
    """``${text%pattern}`` and ``${text%%pattern}``."""
    found = ends(list(reversed(tokens)), text[::-1])
    return text[: len(text) - found[-1 if longest else 0]] if found else text


def replaced(tokens: Sequence[Token], text: str, by: str, mode: str) -> str:
    """``${text/p/by}``; ``mode``: "" the first, "/" all, "#" at the start, "%" at the end."""
    if mode == "%":
        found = ends(list(reversed(tokens)), text[::-1])
        return text[: len(text) - found[-1]] + by if found else text
    out, at = [], 0
    while at < len(text):
        found = ends(tokens, text, at)
        if found and found[-1] > at:
            out.append(by)
            at = found[-1]
            if mode != "/":
                break
        elif mode == "#":
            break
        else:
            out.append(text[at])
            at += 1
    return "".join(out) + text[at:]


def _closure(states: set[int], tokens: Sequence[Token]) -> set[int]:
    closed = set(states)
    for state in states:
        while state < len(tokens) and tokens[state].kind == STAR:
            state += 1
            closed.add(state)
    return closed


def _in_set(text: str, char: str) -> bool:
    negated = text[:1] in ("!", "^")
    body = text[1:] if negated else text
    classes = {"[:digit:": str.isdigit, "[:alpha:": str.isalpha, "[:space:": str.isspace}
    if body in classes:
        return classes[body](char) != negated
    at, found = 0, False
    while at < len(body):
        if at + 2 < len(body) and body[at + 1] == "-":
            found = found or body[at] <= char <= body[at + 2]
            at += 3
        else:
            found = found or body[at] == char
            at += 1
    return found != negated
