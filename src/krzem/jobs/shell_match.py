"""Patterns of the shell, and its conditions: true, false, or not known."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from krzem.jobs.shell_words import Value, shown, tested

_NUMERIC: dict[str, Callable[[int, int], bool]] = {
    "-eq": lambda a, b: a == b, "-ne": lambda a, b: a != b, "-lt": lambda a, b: a < b,
    "-le": lambda a, b: a <= b, "-gt": lambda a, b: a > b, "-ge": lambda a, b: a >= b,
}  # fmt: skip
_BINARY = {*_NUMERIC, "=", "==", "!=", "=~", "<", ">", "-nt", "-ot", "-ef"}
_UNARY = set("abcdefghknoprstuvwxzGLNORS")


@dataclass(frozen=True, slots=True)
class Operand:
    """A word of a condition: its value, and its pattern where ``[[`` reads it as one."""

    value: Value
    pattern: list[Token] | None = None
    bare: str = ""
    """The word where it is neither quoted nor expanded."""


class Test:
    """One condition; ``known_set`` tells whether a variable is set (for ``-v``)."""

    def __init__(self, words: Sequence[Operand], known_set: Callable[[str], bool]) -> None:
        self._words = list(words)
        self._set = known_set
        self._at = 0
        self._depth = 0

    def result(self) -> bool | None:
        """True, false, or None where the files do not decide it."""
        if not self._words:
            return False
        value = self._or()
        return value if self._at == len(self._words) else None

    def _bare(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._words[at].bare if at < len(self._words) else ""

    def _or(self) -> bool | None:
        left = self._and()
        while self._bare() in ("||", "-o"):
            self._at += 1
            right = self._and()
            left = True if left or right else None if None in (left, right) else False
        return left

    def _and(self) -> bool | None:
        left = self._not()
        while self._bare() in ("&&", "-a"):
            self._at += 1
            right = self._not()
            either = False in (left, right)
            left = False if either else None if None in (left, right) else True
        return left

    def _not(self) -> bool | None:
        negated = False
        while self._bare() == "!" and self._at + 1 < len(self._words):
            self._at += 1
            negated = not negated
        value = self._primary()
        return value if value is None or not negated else not value

    def _primary(self) -> bool | None:
        if self._at >= len(self._words):
            return False
        if self._bare() == "(" and self._bare(1) not in _BINARY:
            return self._bracket()
        if self._bare(1) in _BINARY and self._at + 2 < len(self._words):
            left, op, right = self._words[self._at : self._at + 3]
            self._at += 3
            return _compared(left, op.bare, right)
        bare = self._bare()
        if len(bare) == 2 and bare[0] == "-" and bare[1] in _UNARY and self._has_operand():
            self._at += 2
            return self._unary(bare[1], self._words[self._at - 1])
        word = self._words[self._at]
        self._at += 1
        text = tested(word.value)
        return None if text is None else bool(text)

    def _has_operand(self) -> bool:
        return self._at + 1 < len(self._words) and self._bare(1) not in ("&&", "||", ")")

    def _bracket(self) -> bool | None:
        self._at += 1
        self._depth += 1
        if self._depth > 30:
            return None
        value = self._or()
        self._at += 1
        self._depth -= 1
        return value

    def _unary(self, op: str, word: Operand) -> bool | None:
        text = tested(word.value)
        if op == "v":
            return self._set(shown(word.value))
        if text is None or op not in "zn":
            return None
        return bool(text) == (op == "n")


def _compared(left: Operand, op: str, right: Operand) -> bool | None:
    a, b = tested(left.value), tested(right.value)
    if a is None or b is None:
        return None
    if op in _NUMERIC:
        numbers = [int(t) for t in (a.strip(), b.strip()) if re.fullmatch(r"[+-]?\d{1,18}", t)]
        return _NUMERIC[op](*numbers) if len(numbers) == 2 else False
    if op in ("=", "==", "!="):
        same = matches(right.pattern, a) if right.pattern is not None else a == b
        return same == (op != "!=")
    if op in ("<", ">"):
        return a < b if op == "<" else a > b
    return _regular(a, b) if op == "=~" else None


def _regular(text: str, pattern: str) -> bool | None:
    """Only the expressions that ask for a number or a literal."""
    if pattern in (r"^[0-9]+$", r"^-?[0-9]+$"):
        return re.fullmatch(r"-?\d+" if "-?" in pattern else r"\d+", text) is not None
    if re.fullmatch(r"[\w ,/-]*", pattern):
        return pattern in text
    return None


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
