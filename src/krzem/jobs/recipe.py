"""Configurations that are Python: read from the syntax tree, never executed.

A recipe builds a configuration from constructors, functions of the same file and attribute
assignments.  Those are followed; whatever else stands there (a loop over something unknown, a
call into other code) leaves the values that depend on it open.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Mapping

from krzem.errors import DataError, shorten
from krzem.jobs.documents import Lines, check_size
from krzem.jobs.job import Place
from krzem.jobs.recipe_values import (
    DEEPEST,
    Function,
    Node,
    Returned,
    Symbol,
    Values,
    decided,
    source_of,
)
from krzem.jobs.tree import Call, Entry, Open, Tree

CLASS = "_target_"
"""The leaf that holds the name of what was called to make a table."""


class Recipe(Values):
    """A Python file: its functions and the values of its top level."""

    def __init__(self, text: str, file: str, known: Mapping[str, object] | None = None) -> None:
        """``known`` gives environment variables and, by name, functions of other files.

        Raises DataError where the text is not Python.
        """
        check_size(text, file)
        super().__init__(file, known or {})
        self.lines = Lines(file, text)
        self.names: dict[str, object] = {}
        try:
            module = ast.parse(text)
        except (SyntaxError, ValueError) as error:
            line = f"line {error.lineno}: " if isinstance(error, SyntaxError) else ""
            raise DataError(
                f"{shorten(file, 120)} is not valid Python: {line}{shorten(str(error), 100)}."
            ) from None
        except (RecursionError, MemoryError):
            raise DataError(f"{shorten(file, 120)} nests too deeply to be a recipe.") from None
        with contextlib.suppress(Returned, RecursionError):
            self._run(module.body, self.names)

    @property
    def functions(self) -> dict[str, Function]:
        """The functions defined at the top level."""
        return {n: f for n, f in self.names.items() if isinstance(f, Function)}

    def call(self, name: str, arguments: Mapping[str, object] | None = None) -> object:
        """What a function of the file returns; :class:`Open` where that is not decided."""
        found = self.names[name]
        assert isinstance(found, Function)
        return self._enter(found, [], dict(arguments or {}))

    def tree(self, value: Node) -> Tree:
        """The configuration as leaves by dotted name."""
        tree = Tree()
        self._flatten(value, "", tree, 0)
        return tree

    def place(self, line: int) -> Place:
        """A line of the file."""
        return self.lines.place(line)

    def _flatten(self, node: Node, prefix: str, tree: Tree, line: int) -> None:
        self._step()
        if prefix.count(".") > DEEPEST:
            return
        if node.name:
            key = f"{prefix}{CLASS}"
            tree.put(Entry(key=key, value=node.name, place=self.lines.place(node.line or line)))
        for name, value in node.fields.items():
            at = node.lines.get(name, line)
            if isinstance(value, Node):
                self._flatten(value, f"{prefix}{name}.", tree, at)
            else:
                key = f"{prefix}{name}"
                tree.put(Entry(key=key, value=_leaf(value), place=self.lines.place(at)))

    # -- statements

    def _run(self, body: list[ast.stmt], names: dict[str, object]) -> None:
        for statement in body:
            self._step()
            self._statement(statement, names)

    def _statement(self, node: ast.stmt, names: dict[str, object]) -> None:
        match node:
            case ast.FunctionDef():
                names[node.name] = Function(node, names)
            case ast.Import() | ast.ImportFrom():
                _import(node, names)
            case ast.Assign():
                value = self._value(node.value, names)
                for target in node.targets:
                    self._assign(target, value, names)
            case ast.AnnAssign() if node.value is not None:
                self._assign(node.target, self._value(node.value, names), names)
            case ast.AugAssign():
                both = ast.BinOp(_loaded(node.target), node.op, node.value)
                self._assign(node.target, self._value(both, names), names)
            case ast.Return():
                raise Returned(None if node.value is None else self._value(node.value, names))
            case ast.Expr():
                self._value(node.value, names)
            case ast.If():
                self._branch(node, names)
            case ast.With():
                self._run(node.body, names)
            case ast.Try():
                self._run(node.body, names)
            case ast.For():
                self._loop(node, names)
            case ast.While():
                self._leave_open(node.body, names, "a loop")
            case _:
                pass

    def _branch(self, node: ast.If, names: dict[str, object]) -> None:
        test = self._value(node.test, names)
        if decided(test):
            self._run(node.body if test else node.orelse, names)
            return
        why = f"if {source_of(node.test)}"
        if why == "if __name__ == '__main__'":
            self._run(node.body, names)
            return
        body = [*node.body, *node.orelse]
        self._leave_open(body, names, why)
        if any(isinstance(part, ast.Return) for part in body):
            raise Returned(Open(why))

    def _loop(self, node: ast.For, names: dict[str, object]) -> None:
        items = self._value(node.iter, names)
        if not isinstance(items, list) or len(items) > 200:
            self._leave_open(node.body, names, "a loop")
            return
        for item in items:
            self._assign(node.target, item, names)
            self._run(node.body, names)

    def _leave_open(self, body: list[ast.stmt], names: dict[str, object], why: str) -> None:
        """Whatever these statements assign is no longer decided."""
        for statement in body:
            for inner in ast.walk(statement):
                self._step()
                targets = inner.targets if isinstance(inner, ast.Assign) else []
                if isinstance(inner, ast.AnnAssign | ast.AugAssign):
                    targets = [inner.target]
                for target in targets:
                    self._assign(target, Open(f"{source_of(target)}: {why}"), names)

    def _assign(self, target: ast.expr, value: object, names: dict[str, object]) -> None:
        match target:
            case ast.Name():
                names[target.id] = value
            case ast.Attribute():
                holder = self._holder(target.value, names)
                if holder is not None:
                    holder.set(target.attr, value, target.lineno)
            case ast.Subscript():
                key = self._value(target.slice, names)
                holder = self._holder(target.value, names)
                if holder is not None and isinstance(key, str | int):
                    holder.set(str(key), value, target.lineno)
            case ast.Tuple() | ast.List():
                parts = value if isinstance(value, list) else []
                for index, part in enumerate(target.elts):
                    known = (
                        parts[index] if index < len(parts) == len(target.elts) else Open("a part")
                    )
                    self._assign(part, known, names)
            case _:
                pass

    def _holder(self, target: ast.expr, names: dict[str, object]) -> Node | None:
        """The configuration that a dotted target means; inner ones are made as needed."""
        found = self._value(target, names)
        if isinstance(found, Node):
            return found
        if not isinstance(found, Open) and found is not None and not isinstance(found, str):
            return None
        made = Node()
        if isinstance(target, ast.Attribute):
            outer = self._holder(target.value, names)
            if outer is None:
                return None
            outer.set(target.attr, made, target.lineno)
            return made
        if isinstance(target, ast.Name) and isinstance(found, Open):
            names[target.id] = made
            return made
        return None


def _leaf(value: object) -> object:
    """A value as a tree holds it."""
    if isinstance(value, Function):
        return Call(value.code.name)
    if isinstance(value, list):
        return [_leaf(part) for part in value]
    if isinstance(value, Node):
        fields = {name: _leaf(part) for name, part in value.fields.items()}
        given = tuple(part for name, part in fields.items() if name.isdigit())
        named = tuple((n, part) for n, part in fields.items() if not n.isdigit())
        return Call(value.name, given, named)
    return value


def _import(node: ast.Import | ast.ImportFrom, names: dict[str, object]) -> None:
    for alias in node.names:
        name = alias.asname or alias.name.partition(".")[0]
        names[name] = Symbol(alias.asname or alias.name if "." not in alias.name else name)


def _loaded(node: ast.expr) -> ast.expr:
    """The same place, to be read."""
    return ast.parse(ast.unparse(node), mode="eval").body
