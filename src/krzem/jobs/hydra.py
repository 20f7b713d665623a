"""Configurations that Hydra composes: a ``defaults`` list, groups in folders, interpolations."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from krzem.errors import shorten
from krzem.jobs.documents import yaml_tree
from krzem.jobs.interpolation import Resolver
from krzem.jobs.tree import Entry, Tree

_DEEPEST = 12
_MOST_FILES = 200
_GLOBAL = re.compile(r"^#\s*@package\s+_global_", re.M)


@dataclass(slots=True)
class Composition:
    """The tree that a main file and the files of its defaults list make."""

    tree: Tree = field(default_factory=Tree)
    missing: list[str] = field(default_factory=list)
    """Files of the defaults list that are not given."""


def has_defaults(text: str) -> bool:
    """Whether a file has a defaults list."""
    return re.search(r"^defaults:\s*$", text, re.M) is not None


def compose(
    files: Mapping[str, str], main: str, environment: Mapping[str, str] | None = None
) -> Composition:
    """Compose ``main`` with what its defaults list names among ``files``, and resolve values."""
    composer = _Composer(files, main)
    composer.add(main, "", 0)
    found = composer.result
    found.tree = Resolver(found.tree, environment or {}).resolved()
    return found


class _Composer:
    def __init__(self, files: Mapping[str, str], main: str) -> None:
        self.files = files
        self.result = Composition()
        self.root = self._root(main)
        self._count = 0

    def _root(self, main: str) -> str:
        """The folder that groups start from: where an absolute group of the main file lies."""
        folder = posixpath.dirname(main)
        groups = [g.lstrip("/") for g, _ in self._entries(main) if g.startswith("/")]
        while True:
            for group in groups:
                start = posixpath.join(folder, group) + "/"
                if any(name.startswith(start) for name in self.files):
                    return folder
            if not folder or folder == "/" or not groups:
                return posixpath.dirname(main)
            folder = posixpath.dirname(folder)

    def add(self, name: str, package: str, depth: int) -> None:
        """A file's defaults and own values, in the order of its defaults list."""
        self._count += 1
        if depth > _DEEPEST or self._count > _MOST_FILES:
            return
        tree = yaml_tree(self.files[name], name)
        place = "" if _GLOBAL.search(self.files[name]) else package
        own_done = False
        for group, option in self._entries(name):
            if group == "_self_":
                self._own(tree, place)
                own_done = True
            else:
                self._include(name, place, group, option, depth)
        if not own_done:
            self._own(tree, place)

    def _own(self, tree: Tree, package: str) -> None:
        prefix = f"{package}." if package else ""
        for key, entry in tree.entries.items():
            if key != "defaults":
                self.result.tree.put(Entry(key=prefix + key, value=entry.value, place=entry.place))

    def _entries(self, name: str) -> Iterator[tuple[str, str]]:
        """Group and option of each entry of a file's defaults list."""
        listed = yaml_tree(self.files[name], name).value("defaults")
        for part in listed if isinstance(listed, list) else []:
            if isinstance(part, str):
                yield ("_self_", "") if part == "_self_" else ("", part)
            elif isinstance(part, dict) and len(part) == 1:
                group, option = next(iter(part.items()))
                group = re.sub(r"^(optional|override)\s+", "", str(group))
                for choice in option if isinstance(option, list) else [option]:
                    if choice is not None:
                        yield group, str(choice)

    def _include(self, name: str, package: str, group: str, option: str, depth: int) -> None:
        group, _, said = group.partition("@")
        base = self.root if group.startswith("/") else posixpath.dirname(name)
        path = posixpath.join(base, group.lstrip("/"), option)
        found = next((p for p in (path, f"{path}.yaml", f"{path}.yml") if p in self.files), None)
        if found is None:
            self.result.missing.append(shorten(f"{group}/{option}".lstrip("/"), 80))
            return
        if said:
            inner = said if group.startswith("/") or not package else f"{package}.{said}"
        elif group.startswith("/"):
            inner = group.strip("/").replace("/", ".")
        else:
            parts = [package, group.replace("/", ".")]
            inner = ".".join(part for part in parts if part)
        self.add(found, inner.removeprefix("_global_").strip("."), depth + 1)
