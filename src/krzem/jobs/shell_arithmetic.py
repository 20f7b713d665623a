"""Arithmetic of the shell: ``$((4 * HIDDEN))``, in 64-bit integers, without running anything."""

from __future__ import annotations

import re
from collections.abc import Callable

from krzem.jobs.shell_words import ShellError

LONGEST = 4_000
_DEEPEST = 40
_TOKEN = re.compile(
    r"\s*(?:(?P<number>0[xX][0-9a-fA-F]+|\d+#\w+|\d+(?![\w.]))|(?P<name>[A-Za-z_]\w*(?:\[[^\]]*\])?)"
    r"|(?P<op>\*\*|<<=|>>=|<<|>>|<=|>=|==|!=|&&|\|\||\+\+|--|[-+*/%&|^]=|[-+*/%<>=!~&|^?:(),]))"
)
_BINARY: tuple[tuple[str, ...], ...] = (
    ("||",), ("&&",), ("|",), ("^",), ("&",), ("==", "!="), ("<", "<=", ">", ">="),
    ("<<", ">>"), ("+", "-"), ("*", "/", "%"),
)  # fmt: skip
_ASSIGN = {"=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>="}


class NotKnownError(Exception):
    """A name in the expression whose value the files do not decide."""


class Arithmetic:
    """One expression; ``look`` gives the number of a name, ``put`` takes an assignment."""

    def __init__(
        self, text: str, look: Callable[[str], int], put: Callable[[str, int], None]
    ) -> None:
        if len(text) > LONGEST:
            raise ShellError(f"an arithmetic expression of {len(text):,} characters is no setting")
        self._look, self._put = look, put
        self._tokens = self._split(text)
        self._at = 0
        self._depth = 0
        self._live = True

    @staticmethod
    def _split(text: str) -> list[tuple[str, str]]:
        tokens, at = [], 0
        text = text.strip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or match.end() == at:
                raise NotKnownError(text)
            kind = match.lastgroup or ""
            tokens.append((kind, match.group(kind)))
            at = match.end()
        return tokens

    def value(self) -> int:
        """The number; raises NotKnownError where a name or the expression is not understood."""
        if not self._tokens:
            return 0
        result = self._comma()
        if self._at != len(self._tokens):
            raise NotKnownError(self._tokens[self._at][1])
        return result

    def _peek(self) -> str:
        if self._at < len(self._tokens):
            kind, text = self._tokens[self._at]
            return text if kind == "op" else ""
        return ""

    def _take(self, op: str) -> bool:
        if self._peek() == op:
            self._at += 1
            return True
        return False

    def _comma(self) -> int:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ShellError("an arithmetic expression nests too deeply to be a setting")
        result = self._assignment()
        while self._take(","):
            result = self._assignment()
        self._depth -= 1
        return result

    def _assignment(self) -> int:
        if self._at + 1 < len(self._tokens):
            (kind, name), (next_kind, op) = self._tokens[self._at : self._at + 2]
            if kind == "name" and next_kind == "op" and op in _ASSIGN:
                self._at += 2
                right = self._nested(self._assignment)
                value = right if op == "=" else self._apply(op[:-1], self._name(name), right)
                if self._live:
                    self._put(name, value)
                return value
        return self._choice()

    def _nested(self, rule: Callable[[], int]) -> int:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ShellError("an arithmetic expression nests too deeply to be a setting")
        value = rule()
        self._depth -= 1
        return value

    def _choice(self) -> int:
        test = self._binary(0)
        if not self._take("?"):
            return test
        yes = self._dead(self._assignment, not test)
        if not self._take(":"):
            raise NotKnownError("?")
        no = self._dead(self._assignment, bool(test))
        return yes if test else no

    def _dead(self, rule: Callable[[], int], dead: bool) -> int:
        live, self._live = self._live, self._live and not dead
        value = self._nested(rule)
        self._live = live
        return value

    def _binary(self, level: int) -> int:
        if level == len(_BINARY):
            return self._power()
        left = self._binary(level + 1)
        while (op := self._peek()) in _BINARY[level]:
            self._at += 1
            skip = (op == "&&" and not left) or (op == "||" and bool(left))
            right = self._dead(lambda: self._binary(level + 1), skip)
            left = int(op == "||") if skip else self._apply(op, left, right)
        return left

    def _power(self) -> int:
        base = self._unary()
        if self._take("**"):
            exponent = self._nested(self._power)
            if exponent < 0:
                raise NotKnownError("**")
            return _wrap(pow(base, exponent, 1 << 64))
        return base

    def _unary(self) -> int:
        for op, act in (("-", lambda v: -v), ("+", lambda v: v),
                        ("!", lambda v: int(not v)), ("~", lambda v: ~v)):  # fmt: skip
            if self._take(op):
                return _wrap(act(self._nested(self._unary)))
        for op, step in (("++", 1), ("--", -1)):
            if self._take(op):
                name = self._expect_name()
                value = _wrap(self._name(name) + step)
                if self._live:
                    self._put(name, value)
                return value
        return self._atom()

    def _expect_name(self) -> str:
        if self._at < len(self._tokens) and self._tokens[self._at][0] == "name":
            self._at += 1
            return self._tokens[self._at - 1][1]
        raise NotKnownError("++")

    def _atom(self) -> int:
        if self._at >= len(self._tokens):
            raise NotKnownError("")
        kind, text = self._tokens[self._at]
        self._at += 1
        if kind == "number":
            return _number(text)
        if kind == "name":
            value = self._name(text)
            for op, step in (("++", 1), ("--", -1)):
                if self._take(op) and self._live:
                    self._put(text, _wrap(value + step))
            return value
        if text == "(":
            value = self._comma()
            if self._take(")"):
                return value
        raise NotKnownError(text)

    def _name(self, name: str) -> int:
        return self._look(name) if self._live else 0

    def _apply(self, op: str, left: int, right: int) -> int:
        if not self._live:
            return 0
        if op in ("/", "%"):
            if right == 0:
                raise NotKnownError("division by 0")
            quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
            return _wrap(quotient if op == "/" else left - quotient * right)
        if op in ("<<", ">>"):
            return _wrap(left << (right % 64) if op == "<<" else left >> (right % 64))
        return _wrap(int(_OPERATIONS[op](left, right)))


_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "||": lambda a, b: bool(a) or bool(b), "&&": lambda a, b: bool(a) and bool(b),
    "|": lambda a, b: a | b, "^": lambda a, b: a ^ b, "&": lambda a, b: a & b,
    "==": lambda a, b: a == b, "!=": lambda a, b: a != b, "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b,
}  # fmt: skip


def _number(text: str) -> int:
    try:
        if "#" in text:
            base, digits = text.split("#")
            return _wrap(int(digits[:64], int(base[:4])))
        if text[:2] in ("0x", "0X"):
            return _wrap(int(text[:70], 16))
        octal = len(text) > 1 and text[0] == "0"
        return _wrap(int(text[:70], 8 if octal else 10))
    except ValueError:
        raise NotKnownError(text) from None


def _wrap(value: int) -> int:
    """``value`` as a signed 64-bit integer, as the shell keeps it."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
