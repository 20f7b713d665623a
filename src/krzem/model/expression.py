"""The small language in which descriptions of model families say what a layer holds.

``head_dim or hidden_size // num_attention_heads``, ``layer_types[i] == 'sliding_attention'``,
``4 * n_embd if n_inner is None else n_inner``: names, numbers, words, lists, arithmetic,
comparisons, ``and``, ``or``, ``not``, ``if``/``else``, ``[…]``, and the functions of
:data:`FUNCTIONS`.  Names are fields of the config, ``i`` (the layer, from 0), ``layers`` (how
many there are) and what the description defines in its ``[let]``.  ``and`` and ``or`` give one of
their operands, as in Python.  Nothing else is accepted and nothing is executed.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Protocol

from krzem.errors import DataError, shorten


class Names(Protocol):
    """What names stand for."""

    def __getitem__(self, name: str) -> Any: ...


Expression = Callable[[Names], Any]


def _up(value: float, step: int) -> int:
    """``value`` rounded up to a multiple of ``step``."""
    return -int(-value // step) * step


def _get(table: Any, key: Any, default: Any = None) -> Any:
    """An entry of an object, or of an object within one; ``default`` where there is none."""
    found = table.get(key) if isinstance(table, Mapping) else None
    return default if found is None else found


def _times(part: Any, times: int) -> list[Any]:
    """A list ``times`` over."""
    if times > LONGEST:
        raise ValueError(times)
    return list(part) * times


def _product(left: Any, right: Any) -> Any:
    """A product of numbers; lists and words have none here."""
    if not isinstance(left, int | float) or not isinstance(right, int | float):
        raise TypeError(left, right)
    return left * right


LONGEST = 10_000
"""Entries of a list that an expression may make."""

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "min": min, "max": max, "len": len, "int": int, "ceil": math.ceil, "up": _up, "get": _get,
    "text": str, "repeat": _times,
    "count": lambda items, value: list(items).count(value), "root": math.isqrt,
    "keyed": lambda value: isinstance(value, Mapping),
    "first": lambda items, value: list(items).index(value) if value in items else len(items),
    "before": lambda items, index: list(items)[:index],
    "flat": lambda pairs: [kind for kinds, times in pairs for kind in _times(kinds, times)],
}  # fmt: skip
"""What expressions may call: ``get(object, key, default)``, ``up(value, step)`` and the rest."""

_BINARY: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: _product,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Is: operator.is_, ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}  # fmt: skip


@cache
def compiled(text: str) -> Expression:
    """The value that ``text`` describes, as a function of its names.

    Raises DataError with the part that the language does not have.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise DataError(f"expression {shorten(text)!r} cannot be read: {error}") from None
    return _compile(tree.body, text)


@cache
def names_in(text: str) -> frozenset[str]:
    """The names that an expression speaks of, functions left out."""
    found = {n.id for n in ast.walk(ast.parse(text.strip())) if isinstance(n, ast.Name)}
    return frozenset(found - set(FUNCTIONS))


def _compile(node: ast.expr, text: str) -> Expression:
    match node:
        case ast.Constant(value=value):
            return lambda _: value
        case ast.Name(id=name):
            return lambda names: names[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            parts = [_compile(item, text) for item in items]
            return lambda names: [part(names) for part in parts]
        case ast.BoolOp(op=op, values=values):
            return _joined(isinstance(op, ast.And), [_compile(value, text) for value in values])
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            negated = _compile(inner, text)
            return lambda names: not negated(names)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            number = _compile(inner, text)
            return lambda names: -number(names)
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _binary(_BINARY[type(sign)], _compile(left, text), _compile(right, text))
        case ast.Compare(left=left, ops=[sign], comparators=[right]):
            return _binary(_BINARY[type(sign)], _compile(left, text), _compile(right, text))
        case ast.IfExp(test=test, body=body, orelse=other):
            return _chosen(*(_compile(part, text) for part in (test, body, other)))
        case ast.Subscript(value=table, slice=key):
            return _binary(operator.getitem, _compile(table, text), _compile(key, text))
        case ast.Call(func=ast.Name(id=name), args=items, keywords=[]) if name in FUNCTIONS:
            return _called(FUNCTIONS[name], [_compile(item, text) for item in items])
    raise DataError(f"expression {shorten(text)!r}: {ast.unparse(node)!r} is not in its language")


def _joined(all_of: bool, parts: list[Expression]) -> Expression:
    def found(names: Names) -> Any:
        value: Any = all_of
        for part in parts:
            value = part(names)
            if bool(value) is not all_of:
                return value
        return value

    return found


def _binary(act: Callable[[Any, Any], Any], left: Expression, right: Expression) -> Expression:
    return lambda names: act(left(names), right(names))


def _chosen(test: Expression, body: Expression, other: Expression) -> Expression:
    return lambda names: body(names) if test(names) else other(names)


def _called(act: Callable[..., Any], parts: list[Expression]) -> Expression:
    return lambda names: act(*(part(names) for part in parts))
