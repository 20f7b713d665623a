"""Configuration files as trees: YAML, JSON and TOML, safely, with the line of each leaf."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import yaml

from krzem.errors import DataError, InputError, shorten
from krzem.files import parse_toml
from krzem.jobs.job import Place
from krzem.jobs.tree import LONGEST_LINE, Entry, Open, Tree

LARGEST = 500_000
"""Characters of one file; the largest configuration of a run is a tenth of it."""
MOST_LEAVES = 20_000
DEEPEST = 40
"""Levels of nesting."""
LONGEST_KEYS = 4000
"""Characters of a line in which keys are looked for."""


_WORD = re.compile(r"[\w-]+")


class Lines:
    """The lines of a file, to be shown beside what they decided."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.lines = text.splitlines()
        self._words: dict[str, list[int]] = {}

    def place(self, number: int) -> Place:
        """Line ``number``, counted from 1."""
        line = self.lines[number - 1] if 0 < number <= len(self.lines) else ""
        return Place(file=self.file, line=number, text=shorten(line.strip(), LONGEST_LINE))

    def find(self, key: str, start: int) -> int:
        """The first line from ``start`` on that writes ``key``; ``start`` where none does."""
        if not self._words:
            for number, line in enumerate(self.lines, 1):
                for name in set(_WORD.findall(line)):
                    self._words.setdefault(name, []).append(number)
        found = self._words.get(key, [])
        at = bisect.bisect_left(found, start)
        return found[at] if at < len(found) else start


def check_size(text: str, where: str) -> None:
    """Refuse what is too long for a configuration; raises DataError."""
    if len(text) > LARGEST:
        raise DataError(
            f"{where} has {len(text):,} characters; a configuration of at most {LARGEST:,} is read"
        )


_KEY = re.compile(r"(?:^|[\s{,])[\"']?([\w.-]+)[\"']?\s*:")


def keys_of(text: str) -> set[str]:
    """Names before a colon, outside comments: what a file of YAML or JSON may set.

    For claims, which must be quick and must not raise; a reader parses the file.
    """
    found: set[str] = set()
    for line in text[:LARGEST].splitlines():
        found.update(_KEY.findall(line.split("#", 1)[0][:LONGEST_KEYS]))
    return found


def toml_tree(text: str, file: str) -> Tree:
    """A TOML file; raises DataError."""
    check_size(text, file)
    return _plain(parse_toml(text, shorten(file, 120)), Lines(file, text))


def json_tree(text: str, file: str) -> Tree:
    """A JSON file, a table at its top; raises DataError."""
    check_size(text, file)
    try:
        value = json.loads(text)
    except RecursionError:
        raise DataError(f"{file} nests tables or lists too deeply to be settings.") from None
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {shorten(str(error), 120)}.") from None
    if not isinstance(value, dict):
        raise DataError(f"{file} holds no table of settings at its top.")
    return _plain(value, Lines(file, text))


def _plain(value: dict[str, Any], lines: Lines) -> Tree:
    """A tree of plain Python values; lines are found by name, in the order of the file."""
    tree, at = Tree(), 1
    before: tuple[str, ...] = ("",)
    for path, leaf in _leaves(value, ()):
        same = next((i for i, p in enumerate(path) if before[i : i + 1] != (p,)), len(path) - 1)
        for part in path[same:]:
            at = lines.find(part, at + (part == before[-1]))
        before = path
        tree.put(Entry(key=".".join(path), value=leaf, place=lines.place(at)))
        if len(tree.entries) > MOST_LEAVES:
            raise DataError(f"{lines.file} holds more than {MOST_LEAVES:,} settings.")
    return tree


def _leaves(value: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if len(path) > DEEPEST:
        raise DataError(f"a configuration nests more than {DEEPEST} tables; no run's does.")
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, (*path, str(key)))
        else:
            yield (*path, str(key)), inner


def yaml_tree(text: str, file: str) -> Tree:
    """A YAML file, safely; several documents are merged, the later wins; raises DataError.

    Tags other than YAML's own (``!ENV``, ``!!python/…``) leave their value open.  Needs PyYAML,
    the extra ``jobs``.
    """
    check_size(text, file)
    return Tree({entry.key: entry for entry in _yaml_entries(text, file)})


@lru_cache(maxsize=16)
def _yaml_entries(text: str, file: str) -> tuple[Entry, ...]:
    """Kept for a while, as several readers look at the same file."""
    try:
        pass
    except ImportError:
        raise InputError(f"{file} is YAML, which needs PyYAML: pip install 'krzem[jobs]'") from None
    tree, lines = Tree(), Lines(file, text)
    for path, value, line in tables(text, file):
        tree.put(Entry(key=path, value=value, place=lines.place(line)))
    return tuple(tree.entries.values())


_READERS = {"toml": toml_tree, "json": json_tree, "yaml": yaml_tree, "yml": yaml_tree}


def tree_of(text: str, file: str) -> Tree | None:
    """The tree of a file whose name says its format; None for another; raises DataError."""
    read = _READERS.get(file.rpartition(".")[2].lower())
    return None if read is None else read(text, file)


# YAML by PyYAML's safe composer, with bounds on depth, size and what aliases unfold to
# -------------------------------------------------------------------------------------

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
                yield from _yaml_leaves(node, (), budget)
    finally:
        loader.dispose()


def _yaml_leaves(
    node: yaml.MappingNode, path: tuple[str, ...], budget: list[int]
) -> Iterator[tuple[str, object, int]]:
    if len(path) > DEEPEST:
        raise DataError(f"it nests more than {DEEPEST} tables; no configuration does")
    for key, value in _pairs(node, budget, 0):
        spend(budget)
        name = (*path, str(key.value))
        if isinstance(value, yaml.MappingNode) and value.value and _plain_yaml(value):
            yield from _yaml_leaves(value, name, budget)
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


def _plain_yaml(node: Any) -> bool:
    return str(node.tag).startswith("tag:yaml.org,2002:") and "python" not in node.tag


def _value(node: Any, budget: list[int], depth: int) -> object:
    spend(budget)
    if depth > DEEPEST:
        raise DataError("a list holds itself")
    if not _plain_yaml(node):
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
