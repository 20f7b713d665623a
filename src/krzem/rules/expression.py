"""The tests of the rules file: a small language of comparisons, evaluated over arrays.

A test is Python syntax cut down to ``and``, ``or``, ``not``, comparisons, ``+``, names and
numbers.  Values are scalars where a figure is known and arrays where it is not (one axis per
unknown figure), so one evaluation answers for every case the unknown could fall into.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from krzem.errors import DataError

Values = Mapping[str, NDArray[np.float64] | NDArray[np.bool_]]
Truth = NDArray[np.bool_]

_COMPARE: Mapping[type[ast.cmpop], Callable[..., Truth]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One parsed test; ``text`` is as written in the file."""

    text: str
    tree: ast.expr
    names: frozenset[str]

    def evaluate(self, values: Values) -> Truth:
        """True where the test holds; broadcasts over the axes of the values it names."""
        return np.asarray(_evaluate(self.tree, values), dtype=np.bool_)

    def thresholds(self, name: str, values: Values) -> tuple[float, ...]:
        """The values of ``name`` at which a comparison of this test turns, the others as known."""
        if name not in self.names:
            return ()
        nodes = (node for node in ast.walk(self.tree) if isinstance(node, ast.Compare))
        found = (_turns_at(node, name, values) for node in nodes)
        return tuple(x for x in found if x is not None and x > 0)


def parse(text: str) -> Test:
    """Parse a test; raises DataError that names the part which is not allowed."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise DataError(f"the test {text!r} cannot be read: {error.msg}.") from None
    _check(tree, text)
    names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    return Test(text=text, tree=tree, names=names)


def _check(node: ast.expr, text: str) -> None:
    match node:
        case ast.BoolOp(values=parts):
            pass
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            parts = [operand]
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            parts = [left, right]
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            parts = [left, right]
        case ast.Name() | ast.Constant(value=int() | float()):
            parts = []
        case _:
            raise DataError(
                f"the test {text!r} holds {ast.unparse(node)!r}; allowed are names, numbers, +, "
                "comparisons of two, and, or, not."
            )
    for part in parts:
        _check(part, text)


def _evaluate(node: ast.expr, values: Values) -> NDArray[np.generic]:
    match node:
        case ast.BoolOp(op=op, values=parts):
            join = operator.and_ if isinstance(op, ast.And) else operator.or_
            return np.asarray(reduce(join, (_evaluate(part, values) for part in parts)))
        case ast.UnaryOp(operand=operand):
            return np.asarray(np.logical_not(_evaluate(operand, values)))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            holds: Truth = _COMPARE[type(op)](_evaluate(left, values), _evaluate(right, values))
            return holds
        case ast.BinOp(left=left, right=right):
            return np.asarray(np.add(_evaluate(left, values), _evaluate(right, values)))
        case ast.Name(id=name):
            return np.asarray(values[name])
        case ast.Constant(value=value):
            return np.asarray(value)
        case _:
            raise AssertionError(f"unchecked node {node!r}")


def _turns_at(node: ast.Compare, name: str, values: Values) -> float | None:
    limit = node.comparators[0]
    terms = [part for part in ast.walk(node.left) if isinstance(part, ast.Name)]
    if not isinstance(limit, ast.Constant) or name not in {term.id for term in terms}:
        return None
    others = (values.get(term.id) for term in terms if term.id != name)
    known = sum(float(x) for x in others if x is not None and np.ndim(x) == 0)
    return float(limit.value) - known  # type: ignore[arg-type]
