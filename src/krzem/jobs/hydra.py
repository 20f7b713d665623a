"""Configurations that Hydra composes, and the interpolations of OmegaConf in them.

``${a.b}``, ``${.sibling}``, ``${oc.env:X,1}``, ``${multiply:2,3}``.

Everything is found out by reading; a resolver or a variable that is not known leaves the value
open.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from krzem.errors import shorten
from krzem.jobs.documents import yaml_tree
from krzem.jobs.job import JobBuilder
from krzem.jobs.registry import Sources
from krzem.jobs.tree import Entry, Open, Tree, count, settle

_DEEPEST = 30
_MOST_STEPS = 20_000
_LARGEST = 10**15

Number = int | float


def _ceil(a: Number, b: Number) -> Number:
    return (a + b - 1) // b


_ARITHMETIC: Mapping[str, Callable[[Number, Number], Number]] = {
    "multiply": lambda a, b: a * b, "mul": lambda a, b: a * b,
    "add": lambda a, b: a + b, "sum": lambda a, b: a + b,
    "sub": lambda a, b: a - b, "subtract": lambda a, b: a - b,
    "div": lambda a, b: a / b, "divide": lambda a, b: a / b,
    "floor_div": lambda a, b: a // b, "div_up": _ceil, "ceil_div": _ceil,
    "min": min, "max": max,
}  # fmt: skip
_COMPARE: Mapping[str, Callable[[object, object], bool]] = {
    "eq": lambda a, b: a == b, "neq": lambda a, b: a != b, "equals": lambda a, b: a == b,
}  # fmt: skip
_KEY = re.compile(r"\.*[\w/-]+(?:\.[\w/-]+|\[\w+\])*")


class Resolver:
    """Resolves the values of a tree, each once."""

    def __init__(self, tree: Tree, environment: Mapping[str, str]) -> None:
        self.tree = tree
        self.environment = environment
        self._known: dict[str, object] = {}
        self._busy: set[str] = set()
        self._steps = 0

    def resolved(self) -> Tree:
        """The tree with every value as far as it is known."""
        tree = Tree()
        for key, entry in self.tree.entries.items():
            tree.put(Entry(key=key, value=self.value(key), place=entry.place))
        return tree

    def value(self, key: str) -> object:
        """The value of a leaf."""
        if key not in self._known:
            if key in self._busy or len(self._busy) > _DEEPEST:
                return Open(f"{key} that refers to itself")
            self._busy.add(key)
            self._known[key] = self._of(self.tree.entries[key].value, key, 0)
            self._busy.discard(key)
        return self._known[key]

    def _of(self, value: object, key: str, depth: int) -> object:
        if isinstance(value, list) and depth < _DEEPEST:
            return [self._of(part, key, depth + 1) for part in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        return self._text(value, key, depth)

    def _text(self, text: str, key: str, depth: int) -> object:
        """A text with interpolations inside; one that is nothing else keeps its type."""
        self._steps += 1
        if depth > _DEEPEST or self._steps > _MOST_STEPS:
            return Open(shorten(text, 60))
        parts = pieces(text)
        if parts is None:
            return Open(shorten(text, 60))
        values = [self._expression(p, key, depth + 1) if inner else p for inner, p in parts]
        if len(values) == 1:
            return values[0]
        if any(isinstance(v, Open | list | dict) for v in values):
            return Open(shorten(text, 60))
        return "".join("" if v is None else str(v) for v in values)[:1000]

    def _expression(self, inner: str, key: str, depth: int) -> object:
        """What stands between ``${`` and ``}``."""
        name, colon, rest = _head(inner)
        if not colon:
            return self._reference(inner.strip(), key)
        arguments = [self._argument(a, key, depth) for a in split(rest)] if rest.strip() else []
        return self._call(name.strip(), arguments, inner)

    def _argument(self, text: str, key: str, depth: int) -> object:
        text = text.strip()
        if "${" in text:
            return self._text(text, key, depth)
        return literal(text)

    def _reference(self, name: str, key: str) -> object:
        if not _KEY.fullmatch(name):
            return Open(f"${{{shorten(name, 50)}}}")
        target = name
        if name.startswith("."):
            ups = len(name) - len(name.lstrip("."))
            parents = key.split(".")[:-ups] if ups else []
            target = ".".join([*parents, name.lstrip(".")])
        target = re.sub(r"\[(\w+)\]", r".\1", target)
        if target in self.tree.entries:
            return self.value(target)
        return Open(f"${{{shorten(name, 50)}}}")

    def _call(self, name: str, arguments: list[object], inner: str) -> object:
        short = name.removeprefix("oc.")
        if short == "env" and arguments:
            return self._environment(arguments)
        if short == "decode" and len(arguments) == 1:
            return _decoded(arguments[0])
        if short == "select" and arguments:
            found = self._reference(str(arguments[0]), "")
            return arguments[1] if isinstance(found, Open) and len(arguments) > 1 else found
        if any(isinstance(a, Open) for a in arguments):
            return Open(f"${{{shorten(inner, 50)}}}")
        if name in ("if", "cond") and len(arguments) == 3:
            return arguments[1] if arguments[0] else arguments[2]
        if name in _COMPARE and len(arguments) == 2:
            return _COMPARE[name](arguments[0], arguments[1])
        return _computed(name, arguments, inner)

    def _environment(self, arguments: list[object]) -> object:
        name = str(arguments[0])
        if name in self.environment:
            return self.environment[name]
        if len(arguments) > 1:
            found = arguments[1]
            return found if isinstance(found, Open) or found is None else _as_text(found)
        return Open(f"environment variable {shorten(name, 40)}")


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else str(value)


def _decoded(value: object) -> object:
    return literal(value) if isinstance(value, str) else value


def _computed(name: str, arguments: list[object], inner: str) -> object:
    numbers = [a for a in arguments if isinstance(a, int | float) and not isinstance(a, bool)]
    unknown = Open(f"${{{shorten(inner, 50)}}}")
    if len(numbers) != len(arguments) or not numbers:
        return unknown
    try:
        if name in ("floor", "int", "ceil") and len(numbers) == 1:
            return int(math.ceil(numbers[0]) if name == "ceil" else numbers[0] // 1)
        if name == "int_div" and len(numbers) == 2:
            return int(numbers[0] // numbers[1])
        if name in ("lt", "gt") and len(numbers) == 2:
            return numbers[0] < numbers[1] if name == "lt" else numbers[0] > numbers[1]
        work = _ARITHMETIC.get(name)
        if work is None or len(numbers) < 2:
            return unknown
        total = numbers[0]
        for part in numbers[1:]:
            total = work(total, part)
    except (ArithmeticError, ValueError):
        return unknown
    return total if abs(total) < _LARGEST else unknown


def literal(text: str) -> object:
    """A word as OmegaConf reads it: null, a truth, a number, or text without its quotes."""
    word = text.strip()
    low = word.lower()
    if low in ("null", "~", ""):
        return None
    if low in ("true", "false"):
        return low == "true"
    if re.fullmatch(r"[+-]?\d[\d_]{0,25}", word):
        return int(word.replace("_", ""))
    if re.fullmatch(r"[+-]?(\d[\d_]{0,25})?\.?\d{1,25}([eE][+-]?\d{1,3})?", word):
        return float(word.replace("_", ""))
    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        return word[1:-1]
    return word


def pieces(text: str) -> list[tuple[bool, str]] | None:
    """Plain text and the inside of interpolations, in turn; None where brackets do not close."""
    found: list[tuple[bool, str]] = []
    at = 0
    while at < len(text):
        start = text.find("${", at)
        if start < 0:
            found.append((False, text[at:]))
            break
        if start > at:
            found.append((False, text[at:start]))
        end = _closing(text, start + 2)
        if end is None:
            return None
        found.append((True, text[start + 2 : end]))
        at = end + 1
    return found


def _closing(text: str, at: int) -> int | None:
    depth = 1
    for index in range(at, len(text)):
        if text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if not depth:
                return index
    return None


def _head(inner: str) -> tuple[str, str, str]:
    """Resolver, colon and arguments; no colon for a plain reference."""
    match = re.match(r"\s*[A-Za-z_][\w.]*:", inner)
    if match is None:
        return inner, "", ""
    return inner[: match.end() - 1], ":", inner[match.end() :]


def split(text: str) -> list[str]:
    """Arguments at the commas outside brackets and quotes."""
    parts, depth, quote, current = list[str](), 0, "", list[str]()
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
        if char == "," and not depth and not quote:
            parts.append("".join(current))
            current = []
        else:
            current.append(char)
    return [*parts, "".join(current)]


# Configurations that Hydra composes: a ``defaults`` list, groups in folders, interpolations
# ------------------------------------------------------------------------------------------

_DEEPEST_DEFAULTS = 12
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


def composed(
    sources: Sources, main: str, job: JobBuilder, environment: Mapping[str, str] | None = None
) -> Tree:
    """The tree of ``main`` with what its defaults list names; files that are not given are told."""
    made = compose(sources.with_suffix(".yaml", ".yml"), main, environment)
    if made.missing:
        job.note(f"not among the files: {', '.join(made.missing[:8])}")
    return made.tree


def launched_on(tree: Tree, below: str, job: JobBuilder) -> None:
    """Nodes and devices of a node, where a launcher's table ``below`` says them."""
    for key, name in (("nnodes", "nodes"), ("nproc_per_node", "devices_per_node")):
        entry = tree.entries.get(f"{below}.{key}")
        if entry is not None:
            settle(entry, count(name), job)


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
        if depth > _DEEPEST_DEFAULTS or self._count > _MOST_FILES:
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
