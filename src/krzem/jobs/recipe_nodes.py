"""Configurations that a Python recipe builds, field by field."""

from __future__ import annotations

from dataclasses import dataclass, field


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

    def copy(self) -> Node:
        """A configuration of its own with the same fields, inner ones copied too."""
        return _copied(self, {})


def _copied(node: Node, done: dict[int, Node]) -> Node:
    if id(node) not in done:
        new = done[id(node)] = Node(node.name, {}, dict(node.lines), node.line)
        for name, value in node.fields.items():
            new.fields[name] = _copied(value, done) if isinstance(value, Node) else value
    return done[id(node)]
