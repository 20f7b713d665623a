"""YAML by PyYAML's safe composer, with bounds on depth, size and what aliases unfold to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from krzem.errors import DataError, shorten
from krzem.jobs.tree import Open

DEEPEST = 40
MOST_NODES = 100_000
MOST_LEAVES = 20_000
_INTEGER = re.compile(r"[-+]?(?:0x[0-9a-fA-F_]+|0o?[0-7_]+|0b[01_]+|[0-9][0-9_]*)")


class _Bounded(yaml.SafeLoader):  # type: ignore[misc]
    """Composes nodes and stops where no configuration goes."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        self.nodes += 1
        if self.depth > DEEPEST:
            raise DataError(f"it nests more than {DEEPEST} tables or lists; no configuration does")
        if self.nodes > MOST_NODES:
            raise DataError(f"it holds more than {MOST_NODES:,} values; no configuration does")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def tables(text: str, file: str) -> Iterator[tuple[str, object, int]]:
    """Dotted name, value and line of each leaf of all documents; raises DataError."""
    where = shorten(file, 120)
    try:
        found = list(_documents(text))
    except DataError as error:
        raise DataError(f"{where} is not read: {error}.") from None
    except yaml.YAMLError as error:
        raise DataError(f"{where} is not valid YAML: {_fault(error)}.") from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where} is not valid YAML: {shorten(str(error), 120)}.") from None
    yield from found


def _fault(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    line = f"line {mark.line + 1}: " if mark is not None else ""
    return line + shorten(" ".join(str(problem).split()), 120)


def _documents(text: str) -> Iterator[tuple[str, object, int]]:
    loader = _Bounded(text)
    try:
        budget = [MOST_LEAVES]
        while loader.check_node():
            node = loader.get_node()
            if isinstance(node, yaml.MappingNode):
                yield from _leaves(node, (), budget)
    finally:
        loader.dispose()


def _leaves(
    node: yaml.MappingNode, path: tuple[str, ...], budget: list[int]
) -> Iterator[tuple[str, object, int]]:
    if len(path) > DEEPEST:
        raise DataError(f"it nests more than {DEEPEST} tables; no configuration does")
    for key, value in _pairs(node, budget, 0):
        spend(budget)
        name = (*path, str(key.value))
        if isinstance(value, yaml.MappingNode) and value.value and _plain(value):
            yield from _leaves(value, name, budget)
        else:
            line = (key.start_mark.line if key.start_mark else 0) + 1
            yield ".".join(name), _value(value, budget, 0), line


def spend(budget: list[int]) -> None:
    """Count one value; raises DataError when too many were unfolded from aliases."""
    budget[0] -= 1
    if budget[0] < 0:
        raise DataError(f"it holds more than {MOST_LEAVES:,} settings, aliases unfolded")


def _pairs(node: yaml.MappingNode, budget: list[int], depth: int) -> Iterator[tuple[Any, Any]]:
    """Keys and values; merge keys (``<<``) first, for what stands in the table itself wins."""
    if depth > DEEPEST:
        raise DataError("a table merges itself")
    for key, value in node.value:
        if key.value == "<<" and isinstance(key, yaml.ScalarNode):
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for part in reversed(parts):
                spend(budget)
                if isinstance(part, yaml.MappingNode):
                    yield from _pairs(part, budget, depth + 1)
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            yield key, value


def _plain(node: Any) -> bool:
    return str(node.tag).startswith("tag:yaml.org,2002:") and "python" not in node.tag


def _value(node: Any, budget: list[int], depth: int) -> object:
    spend(budget)
    if depth > DEEPEST:
        raise DataError("a list holds itself")
    if not _plain(node):
        return Open(f"{shorten(node.tag, 40)} {shorten(str(node.value), 40)}")
    if isinstance(node, yaml.SequenceNode):
        return [_value(part, budget, depth + 1) for part in node.value]
    if isinstance(node, yaml.MappingNode):
        return {str(k.value): _value(v, budget, depth + 1) for k, v in _pairs(node, budget, 0)}
    return _scalar(node)


def _scalar(node: Any) -> object:
    kind, said = node.tag.rpartition(":")[2], str(node.value)
    if kind == "null":
        return None
    if kind == "bool":
        return said.lower() in ("true", "yes", "on", "y")
    if kind == "int" and _INTEGER.fullmatch(said):
        return _integer(said)
    if kind == "float" and ":" not in said:
        return float(said.replace("_", "").replace(".inf", "inf").replace(".nan", "nan")
                     .replace(".Inf", "inf").replace(".INF", "inf").replace(".NaN", "nan")
                     .replace(".NAN", "nan"))  # fmt: skip
    return said


def _integer(said: str) -> int | str:
    plain = said.replace("_", "")
    if len(plain) > 40:
        return shorten(said, 40)
    digits = plain.lstrip("+-")
    octal = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
    try:
        return int(plain, 8 if octal else 0)
    except ValueError:
        return said
