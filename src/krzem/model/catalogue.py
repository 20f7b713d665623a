"""The built-in models: real configs with their sources and published sizes."""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from krzem.errors import UnknownNameError
from krzem.model.architecture import Architecture
from krzem.model.build import read_config
from krzem.model.config_file import load_config, parse_config

_UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedCount:
    """A parameter count as its source prints it, and what it counts."""

    text: str
    """As printed: ``671B``."""
    value: float
    rounding: float
    """Half a unit of the last printed digit, in parameters."""
    counts: tuple[str, ...]
    """Which of embedding, head and mtp it includes; see ``ParameterCount.total_of``."""

    def agrees(self, computed: float, tolerance: float = 0.005) -> bool:
        """Whether ``computed`` lies within ``tolerance`` of it, allowing for its rounding."""
        return abs(computed - self.value) <= tolerance * self.value + self.rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFact:
    """Where a built-in model comes from and how large its source says it is."""

    id: str
    aliases: tuple[str, ...]
    source: str
    date: str
    """Publication of the model, ISO 8601."""
    total: PublishedCount
    active: PublishedCount | None
    """None for dense models, where all parameters are active."""
    note: str


def model_ids() -> tuple[str, ...]:
    """The ids of all built-in models, in the order of the sources table."""
    return tuple(_facts())


def model_fact(name: str) -> ModelFact:
    """Source and published counts of a built-in model, by id or alias.

    Raises:
        UnknownNameError: no built-in model has that name.
    """
    return _facts()[_resolve(name)]


def load_model(name_or_path: str | os.PathLike[str]) -> Architecture:
    """A built-in model by id or unambiguous alias, or the config at a path.

    ``organisation/name`` is a path where that path exists, else the built-in ``name``.  A built-in
    name wins over a file of that name in the working folder; ``./name`` is the file.

    Raises:
        UnknownNameError: neither a built-in name nor an existing path.
        DataError, ModelError: the config at the path cannot be read.
    """
    text = os.fspath(name_or_path)
    if not isinstance(name_or_path, str) or _is_path(text):
        return read_config(name_or_path)
    known = _find(text)
    if known is None and _HUB_ID.fullmatch(text):
        raise UnknownNameError("model", text, _facts(), _HUB_HINT.format(text))
    if known is None and (os.sep in text or text.endswith(".json") or _exists(text)):
        return read_config(text)
    return _load(known or _resolve(text))


def is_built_in(architecture: Architecture) -> bool:
    """Whether an architecture was read from a built-in config, not from a file of that name."""
    fact = _facts().get(architecture.name)
    return fact is not None and fact.source == architecture.source


def load_model_config(name_or_path: str | os.PathLike[str]) -> tuple[dict[str, object], str]:
    """The raw config of a built-in model (by name) or at a Path, and its name.

    Raises:
        UnknownNameError: no built-in model has that name.
        DataError: the config at the path cannot be read.
    """
    if isinstance(name_or_path, str) and not _is_path(name_or_path):
        found = _find(name_or_path)
        if found is not None or not name_or_path.endswith(".json"):
            model_id = found or _resolve(name_or_path)
            return _raw(model_id), model_id
    raw, file = load_config(name_or_path)
    return raw, str(file)


@cache
def _load(model_id: str) -> Architecture:
    return read_config(_raw(model_id), name=model_id, source=_facts()[model_id].source)


def _raw(model_id: str) -> dict[str, object]:
    return parse_config(_folder().joinpath(f"{model_id}.json").read_bytes(), model_id)


def _is_path(text: str) -> bool:
    return text.startswith((".", os.sep)) or (os.sep in text and _exists(text))


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):
        return False


def _resolve(name: str) -> str:
    found = _find(name)
    if found is None:
        hint = "See `krzem models`, or give the path of a config.json."
        raise UnknownNameError("model", name, _facts(), hint)
    return found


def _find(name: str) -> str | None:
    """The id that ``name`` means: exactly, but for variants of the same shape, or by its start."""
    if len(name) > 100:
        return None
    words = _words(name)
    exact = _spellings().get(_squeeze(words)) or _spellings().get(_squeeze(_shape_words(words)))
    if exact is not None or not words:
        return exact
    begun = {fact.id for fact in _facts().values() if _words(fact.id)[: len(words)] == words}
    return begun.pop() if len(begun) == 1 else None


def _words(name: str) -> tuple[str, ...]:
    """``org/Name-8B_it`` as ("name", "8b", "it")."""
    return tuple(re.findall(r"[^-_ ]+", name.lower().rsplit("/", 1)[-1]))


def _shape_words(words: tuple[str, ...]) -> tuple[str, ...]:
    """Words without the vendor before and without what follows that leaves the shape as it is."""
    first = 1 if words[:1] and words[0] in _VENDORS else 0
    last = len(words)
    while last > first and _VARIANT.fullmatch(words[last - 1]):
        last -= 1
    return words[first:last]


_VENDORS = frozenset({"meta", "nvidia"})
_VARIANT = re.compile(
    r"base|instruct|it|pt|chat|hf|thinking|reasoning|bf16|fp8|nvfp4|mxfp4|v0\.\d|\d{4}|\d{6}|\d{8}"
)
"""What Hub ids end with for another training stage, format of weights or date."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/(?!.*\.json$)[A-Za-z0-9][\w.-]*")
_HUB_HINT = (
    "It is neither built in nor a path here. `hf download {} config.json --local-dir .` fetches "
    "the config of a Hub id; give its path. See `krzem models`."
)


def _squeeze(words: tuple[str, ...]) -> str:
    """Words without what people leave out or add: separators and dots."""
    return "".join(words).replace(".", "")


@cache
def _spellings() -> dict[str, str]:
    return {
        _squeeze(_words(spelling)): fact.id
        for fact in _facts().values()
        for spelling in (fact.id, *fact.aliases)
    }


@cache
def _facts() -> dict[str, ModelFact]:
    table = _folder().joinpath("SOURCES.csv").read_text(encoding="utf-8")
    return {row["id"]: _fact(row) for row in csv.DictReader(table.splitlines())}


def _folder() -> Traversable:
    return files("krzem.facts").joinpath("models")


def _fact(row: dict[str, str]) -> ModelFact:
    return ModelFact(
        id=row["id"],
        aliases=tuple(row["aliases"].split(";")) if row["aliases"] else (),
        source=row["source"],
        date=row["date"],
        total=_published(row["total"], row["total_counts"]),
        active=_published(row["active"], row["active_counts"]) if row["active"] else None,
        note=row["note"],
    )


def _published(text: str, counts: str) -> PublishedCount:
    digits, unit = text[:-1], _UNITS[text[-1]]
    decimals = len(digits.partition(".")[2])
    return PublishedCount(
        text=text,
        value=float(digits) * unit,
        rounding=0.5 * unit / 10**decimals,
        counts=tuple(counts.split()),
    )
