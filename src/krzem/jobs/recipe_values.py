"""Values of a Python recipe: expressions followed over a syntax tree, nothing executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from krzem.errors import DataError, shorten
from krzem.jobs.tree import Open


@dataclass(slots=True, eq=False)
class Node:
    """A configuration under construction."""

    name: str = ""
    fields: dict[str, object] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    line: int = 0
    """Where it is made."""

    def set(self, name: str, value: object, line: int) -> None:
        """One field, the later wins."""
        self.fields[name] = value
        self.lines[name] = line

    def update(self, fields: Mapping[str, object], line: int) -> Node:
        """All of ``fields``, made on one line; the configuration itself."""
        self.fields.update(fields)
        self.lines.update(dict.fromkeys(fields, line))
        return self

    def copy(self) -> Node:
        """A configuration of its own with the same fields, inner ones copied too."""
        return self._copied({})

    def _copied(self, done: dict[int, Node]) -> Node:
        if id(self) not in done:
            new = done[id(self)] = Node(self.name, {}, dict(self.lines), self.line)
            for name, value in self.fields.items():
                new.fields[name] = value._copied(done) if isinstance(value, Node) else value
        return done[id(self)]


MOST_STEPS = 50_000
"""Expressions and statements that are followed before a file is given up."""
DEEPEST = 40
"""Levels of an expression."""
_MOST_CALLS = 8
"""Functions of the file that are inside one another."""
_LARGEST_NUMBER = 10**18
_LONGEST_TEXT = 2_000
_BINARY: Mapping[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.Div: operator.truediv, ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_COMPARE: Mapping[type, Callable[[object, object], bool]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Is: operator.is_, ast.IsNot: operator.is_not,
}  # fmt: skip
_ORDER: Mapping[type, Callable[[float, float], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_NUMBERS: Mapping[str, Callable[..., object]] = {
    "int": int, "float": float, "bool": bool, "max": max, "min": min, "abs": abs, "round": round,
}  # fmt: skip
_WRAPPERS = ("partial", "functools.partial", "run.Config", "run.Partial", "Config", "Partial")
"""Calls whose first argument is what is configured."""
_COPIES = ("replace", "dataclasses.replace", "copy", "copy.copy", "deepcopy", "copy.deepcopy")


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """A function of the file."""

    code: ast.FunctionDef
    names: dict[str, object]


class Returned(Exception):  # noqa: N818
    def __init__(self, value: object) -> None:
        self.value = value


class Values:
    """Expressions over the names of a file; statements are followed by the class that inherits."""

    def __init__(self, file: str, known: Mapping[str, object]) -> None:
        self.file = file
        self.known = dict(known)
        """Environment variables, and functions of other files."""
        self._steps = 0
        self._depth = 0
        self._calls = 0

    def _run(self, body: list[ast.stmt], names: dict[str, object]) -> None:
        raise NotImplementedError

    def _step(self) -> None:
        self._steps += 1
        if self._steps > MOST_STEPS:
            raise DataError(
                f"{shorten(self.file, 120)} takes more than {MOST_STEPS:,} steps to follow;"
                " a recipe is a few hundred"
            )

    def _value(self, node: ast.expr, names: dict[str, object]) -> object:
        self._step()
        self._depth += 1
        try:
            if self._depth > DEEPEST:
                return Open("an expression that nests too deeply")
            return self._expression(node, names)
        finally:
            self._depth -= 1

    def _expression(self, node: ast.expr, names: dict[str, object]) -> object:
        match node:
            case ast.Constant():
                return _constant(node.value)
            case ast.Name():
                return names.get(node.id, self.known.get(node.id, Open(node.id)))
            case ast.Attribute():
                return self._attribute(node, names)
            case ast.Call():
                return self._call(node, names)
            case ast.List() | ast.Tuple() | ast.Set():
                return [self._value(part, names) for part in node.elts]
            case ast.Dict():
                return self._dict(node, names)
            case ast.Subscript():
                return self._subscript(node, names)
            case ast.BinOp():
                return self._binary(node, names)
            case ast.UnaryOp():
                return self._unary(node, names)
            case ast.Compare() if len(node.ops) == 1:
                return self._compare(node, names)
            case ast.BoolOp():
                return self._boolean(node, names)
            case ast.IfExp():
                test = self._value(node.test, names)
                if decided(test):
                    return self._value(node.body if test else node.orelse, names)
            case ast.JoinedStr():
                return self._joined(node, names)
            case _:
                pass
        return Open(source_of(node))

    def _attribute(self, node: ast.Attribute, names: dict[str, object]) -> object:
        base = self._value(node.value, names)
        if isinstance(base, Node):
            return base.fields.get(node.attr, Open(source_of(node)))
        if isinstance(base, Symbol):
            return Symbol(f"{base}.{node.attr}")
        return Open(source_of(node))

    def _call(self, node: ast.Call, names: dict[str, object]) -> object:
        function = self._value(node.func, names)
        arguments = [self._value(a, names) for a in node.args if not isinstance(a, ast.Starred)]
        keywords: dict[str, object] = {}
        lines: dict[str, int] = {}
        for word in node.keywords:
            value = self._value(word.value, names)
            spread = (
                {word.arg: value} if word.arg else value.fields if isinstance(value, Node) else {}
            )
            for key, inner in spread.items():
                keywords[key] = inner
                lines[key] = word.value.lineno
        if isinstance(function, Function):
            result = self._enter(function, arguments, keywords)
            if not isinstance(result, Open):
                return result
        name = _called(node.func)
        special = self._special(name, node, arguments, keywords)
        if special is not None:
            return special
        made = Node(name, line=node.lineno)
        if isinstance(node.func, ast.Attribute):
            base = self._value(node.func.value, names)
            if isinstance(base, Node):
                made.set("self", base, node.lineno)
        made.update({str(index): value for index, value in enumerate(arguments)}, node.lineno)
        for key, value in keywords.items():
            made.set(key, value, lines[key])
        return made

    def _special(
        self, name: str, node: ast.Call, arguments: list[object], keywords: dict[str, object]
    ) -> object:
        """What calls of the standard library and of configuration helpers give; None: another."""
        first = arguments[0] if arguments else None
        if name in ("os.environ.get", "os.getenv", "environ.get", "getenv"):
            return self._environment(arguments)
        if name in _COPIES and isinstance(first, Node):
            return first.copy().update(keywords, node.lineno)
        if name in _WRAPPERS and arguments:
            return self._wrapped(node, first, keywords)
        if name == "dict" and not arguments:
            return Node("", line=node.lineno).update(keywords, node.lineno)
        if name == "range" and len(arguments) == 1 and type(first) is int and 0 <= first <= 1000:
            return list(range(first))
        if name == "len" and isinstance(first, list):
            return len(first)
        if name in _NUMBERS:
            return _computed(_NUMBERS[name], arguments) if not keywords else Open(source_of(node))
        return None

    def _environment(self, arguments: list[object]) -> object:
        variable = arguments[0] if arguments else ""
        if isinstance(variable, str) and variable in self.known:
            return self.known[variable]
        if len(arguments) > 1:
            return arguments[1]
        return Open(f"environment variable {variable}")

    def _wrapped(self, node: ast.Call, first: object, keywords: dict[str, object]) -> object:
        if isinstance(first, Function):
            return self._enter(first, [], keywords)
        if isinstance(first, Node):
            return first.update(keywords, node.lineno)
        return Node(_called(node.args[0]), line=node.lineno).update(keywords, node.lineno)

    def _enter(
        self, function: Function, arguments: list[object], keywords: Mapping[str, object]
    ) -> object:
        """What a function of the file returns for these arguments."""
        code, depth = function.code, self._depth
        if self._calls >= _MOST_CALLS:
            return Open(f"{code.name}() that calls itself")
        self._depth, self._calls = 0, self._calls + 1
        try:
            names = dict(function.names)
            names.update(self._parameters(code.args, arguments, keywords, function.names))
            self._run(code.body, names)
        except Returned as returned:
            return returned.value
        except RecursionError:
            return Open(f"{code.name}() nests too deeply")
        finally:
            self._depth, self._calls = depth, self._calls - 1
        return None

    def _parameters(
        self, wanted: ast.arguments, given: list[object], keywords: Mapping[str, object],
        names: dict[str, object],
    ) -> dict[str, object]:  # fmt: skip
        plain = [*wanted.posonlyargs, *wanted.args]
        bound: dict[str, object] = {a.arg: Open(a.arg) for a in [*plain, *wanted.kwonlyargs]}
        for parameter, default in zip(reversed(plain), reversed(wanted.defaults), strict=False):
            bound[parameter.arg] = self._value(default, names)
        for parameter, value in zip(wanted.kwonlyargs, wanted.kw_defaults, strict=True):
            if value is not None:
                bound[parameter.arg] = self._value(value, names)
        bound.update(zip((a.arg for a in plain), given, strict=False))
        rest = {k: v for k, v in keywords.items() if k not in bound}
        bound.update({k: v for k, v in keywords.items() if k in bound})
        if wanted.kwarg is not None:
            bound[wanted.kwarg.arg] = Node("", line=wanted.kwarg.lineno).update(
                rest, wanted.kwarg.lineno
            )
        return bound

    def _dict(self, node: ast.Dict, names: dict[str, object]) -> object:
        made = Node()
        for key, value in zip(node.keys, node.values, strict=True):
            inner = self._value(value, names)
            name = None if key is None else self._value(key, names)
            if isinstance(name, str | int):
                made.set(str(name), inner, value.lineno)
            elif key is None and isinstance(inner, Node):
                made.update(inner.fields, value.lineno)
        return made

    def _subscript(self, node: ast.Subscript, names: dict[str, object]) -> object:
        base, key = self._value(node.value, names), self._value(node.slice, names)
        if _called(node.value) in ("os.environ", "environ"):
            return self._environment([key])
        if isinstance(base, Node) and isinstance(key, str | int):
            return base.fields.get(str(key), Open(source_of(node)))
        if isinstance(base, list) and type(key) is int and -len(base) <= key < len(base):
            return base[key]
        return Open(source_of(node))

    def _binary(self, node: ast.BinOp, names: dict[str, object]) -> object:
        left, right = self._value(node.left, names), self._value(node.right, names)
        if isinstance(node.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return [*left, *right][:1000]
        if type(left) is str and type(right) is str and isinstance(node.op, ast.Add):
            return (left + right)[:_LONGEST_TEXT]
        if isinstance(left, list) and type(right) is int and isinstance(node.op, ast.Mult):
            return left * right if 0 <= right * len(left) <= 1000 else Open(source_of(node))
        if isinstance(node.op, ast.Pow) and left in (2, 10) and type(right) is int:
            return _constant(left**right if 0 <= right < 60 else None)
        work = _BINARY.get(type(node.op))
        if work is None or not _number(left) or not _number(right):
            return Open(source_of(node))
        return _computed(work, [left, right])

    def _unary(self, node: ast.UnaryOp, names: dict[str, object]) -> object:
        value = self._value(node.operand, names)
        if isinstance(node.op, ast.Not) and decided(value):
            return not value
        if isinstance(node.op, ast.USub) and _number(value):
            return -value  # type: ignore[operator]
        return Open(source_of(node))

    def _compare(self, node: ast.Compare, names: dict[str, object]) -> object:
        left = self._value(node.left, names)
        right = self._value(node.comparators[0], names)
        kind = type(node.ops[0])
        if not decided(left) or not decided(right):
            return Open(source_of(node))
        if kind in _COMPARE:
            return _COMPARE[kind](left, right)
        if kind in _ORDER and _number(left) and _number(right):
            return _ORDER[kind](left, right)  # type: ignore[arg-type]
        if kind in (ast.In, ast.NotIn) and isinstance(right, list):
            return (left in right) == (kind is ast.In)
        return Open(source_of(node))

    def _boolean(self, node: ast.BoolOp, names: dict[str, object]) -> object:
        wanted = isinstance(node.op, ast.Or)
        value: object = None
        for part in node.values:
            value = self._value(part, names)
            if not decided(value):
                return Open(source_of(node))
            if bool(value) == wanted:
                return value
        return value

    def _joined(self, node: ast.JoinedStr, names: dict[str, object]) -> object:
        parts = []
        for part in node.values:
            value = part.value if isinstance(part, ast.FormattedValue) else part
            known = self._value(value, names)
            if not isinstance(known, str | int | float):
                return Open(source_of(node))
            parts.append(str(known))
        return "".join(parts)[:_LONGEST_TEXT]


class Symbol(str):
    """Something imported, by its dotted name; read as that text."""

    __slots__ = ()


def _constant(value: object) -> object:
    if isinstance(value, bool | float) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) <= _LARGEST_NUMBER else Open("a number of more than 18 digits")
    if isinstance(value, str):
        return value[:_LONGEST_TEXT]
    return Open("a constant that is no setting")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def decided(value: object) -> bool:
    return not isinstance(value, Open | Node | Function) and not (
        isinstance(value, list) and any(not decided(part) for part in value)
    )


def _computed(work: Callable[..., object], arguments: list[object]) -> object:
    """Arithmetic over numbers; text is taken by ``int`` and ``float`` too."""
    if not all(_number(a) or isinstance(a, str | bool) for a in arguments):
        return Open("arithmetic over values that are open")
    try:
        result = work(*arguments)
    except (ArithmeticError, ValueError, TypeError):
        return Open("arithmetic that has no result")
    return _constant(result)


def _called(node: ast.expr) -> str:
    """The dotted name of what is called; of the result of a call only the last part."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.append(node.id)
    return ".".join(reversed(parts[:6]))


def source_of(node: ast.expr) -> str:
    """The expression as it is written, cut to a line."""
    try:
        return shorten(ast.unparse(node), 80)
    except RecursionError:
        return "an expression that nests too deeply"
