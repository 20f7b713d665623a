"""Patterns of the shell (``*``, ``?``, ``[a-z]``), matched in time linear in text times pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
