"""The small language in which engine descriptions say when something is legal.

``zero >= 2 and pp > 1``, ``dispatcher in ('deepep', 'hybridep')``, ``not moe or ep > 1``: names,
numbers, strings in single quotes, comparisons, ``in`` with a tuple, ``and``, ``or``, ``not``,
``+ - * // %``.  A name stands for one value or for an array with a value for every layout, so that
one condition judges a block of layouts at once.  Nothing else is accepted and nothing is executed.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from krzem.errors import DataError, shorten

Array = Any
Values = Mapping[str, Any]
"""What names stand for: numbers, strings or booleans, or arrays of them."""
Condition = Callable[[Values], Any]

LONGEST = 2_000
"""Characters of a condition."""


def _divisor(value: Any) -> Any:
    """Dividing by zero is dividing by one: a degree of 0 stands for one that is not set."""
    return np.where(value == 0, 1, value) if isinstance(value, np.ndarray) else value or 1


_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.FloorDiv: lambda a, b: a // _divisor(b), ast.Mod: lambda a, b: a % _divisor(b),
}  # fmt: skip


@cache
def compiled(text: str) -> Condition:
    """The condition that ``text`` states.

    Raises DataError with the part that the language does not have.
    """
    if len(text) > LONGEST:
        raise DataError(f"a condition of {len(text):,} characters is too long ({LONGEST:,})")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"condition {shorten(text)!r} cannot be read: {error}") from None
    return _compile(tree.body, text)


@cache
def names_in(text: str) -> frozenset[str]:
    """The names that a condition speaks of."""
    return frozenset(n.id for n in ast.walk(ast.parse(text.strip())) if isinstance(n, ast.Name))


def holds(text: str, values: Values) -> Any:
    """Whether ``text`` holds: a bool, or an array of them.

    Raises DataError for a name that ``values`` does not have.
    """
    try:
        return compiled(text)(values)
    except KeyError as error:
        raise DataError(f"condition {shorten(text)!r}: no value is known for {error}") from None


def _compile(node: ast.expr, text: str) -> Condition:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() as value):
            return lambda _: value
        case ast.Name(id=name):
            return lambda values: values[name]
        case ast.BoolOp(op=op, values=parts):
            return _joined(isinstance(op, ast.And), [_compile(p, text) for p in parts])
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return _negated(_compile(inner, text))
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            number = _compile(inner, text)
            return lambda values: -number(values)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _ARITHMETIC:
            return _binary(_ARITHMETIC[type(sign)], _compile(left, text), _compile(right, text))
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _compared(left, ops, others, text)
    raise DataError(f"condition {shorten(text)!r}: {ast.unparse(node)!r} is not in its language")


def _joined(all_of: bool, parts: list[Condition]) -> Condition:
    def judge(values: Values) -> Any:
        found: Any = all_of
        for part in parts:
            one = part(values)
            if isinstance(found, bool):
                if found is not all_of:
                    return found
                found = _truth(one)
            else:
                found = (found & _truth(one)) if all_of else (found | _truth(one))
        return found

    return judge


def _truth(found: Any) -> Any:
    """A bool or an array of them: a number is true where it is not zero."""
    if not isinstance(found, np.ndarray):
        return bool(found)
    return found if found.dtype == bool else found != 0


def _negated(inner: Condition) -> Condition:
    def judge(values: Values) -> Any:
        found = inner(values)
        return np.logical_not(found) if isinstance(found, np.ndarray) else not found

    return judge


def _binary(sign: Callable[[Any, Any], Any], a: Condition, b: Condition) -> Condition:
    return lambda values: sign(a(values), b(values))


def _compared(left: ast.expr, ops: list[ast.cmpop], others: list[ast.expr], text: str) -> Condition:
    pairs: list[Condition] = []
    before = left
    for op, after in zip(ops, others, strict=True):
        pairs.append(_pair(before, op, after, text))
        before = after
    return pairs[0] if len(pairs) == 1 else _joined(True, pairs)


def _pair(left: ast.expr, op: ast.cmpop, right: ast.expr, text: str) -> Condition:
    if isinstance(op, ast.In | ast.NotIn) and isinstance(right, ast.Tuple):
        inside = _member(_compile(left, text), [_compile(e, text) for e in right.elts])
        return inside if isinstance(op, ast.In) else _negated(inside)
    if type(op) not in _COMPARE:
        raise DataError(f"condition {shorten(text)!r}: {type(op).__name__} is not in its language")
    return _binary(_COMPARE[type(op)], _compile(left, text), _compile(right, text))


def _member(value: Condition, members: list[Condition]) -> Condition:
    def judge(values: Values) -> Any:
        found = value(values)
        inside: Any = False
        for member in members:
            inside = inside | (found == member(values))
        return inside

    return judge
