"""Configuration files as trees: YAML, JSON and TOML, safely, with the line of each leaf."""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from krzem.errors import DataError, InputError, shorten
from krzem.files import parse_toml
from krzem.jobs.job import Place
from krzem.jobs.tree import LONGEST_LINE, Entry, Tree

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
        from krzem.jobs.yaml_reader import tables
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
