"""Descriptions of model families, and the checked fields of the configs that they describe.

One TOML file per ``model_type`` in ``facts/families``.  A file says what differs from the family
that it is ``like``; ``_decoder.toml`` says what each key means and what a plain decoder has.
``fields.json`` holds what the config classes of ``transformers`` default each field to and the
other names of a field; ``scripts/model-types`` writes it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, NoReturn

from krzem.errors import ModelError, nearest, shorten
from krzem.model.expression import names_in

TABLES = ("let", "words", "model", "attention", "recurrence", "network", "layer", "compute")


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """One family: tables of expressions, and what is refused."""

    model_type: str
    tables: dict[str, dict[str, Any]]
    refuse: tuple[dict[str, str], ...] = ()
    """Conditions on the config under which it is no model that can be read, with the reason."""
    warn: tuple[dict[str, str], ...] = ()
    """Conditions under which a note is made."""
    divide: tuple[dict[str, str], ...] = ()
    """Fields of which one has to be a multiple of the other."""
    disagree: tuple[dict[str, str], ...] = ()
    """As ``refuse``, asked of every layer."""
    structure: str = ""
    """Why models of this type are not read at all."""
    text: str = ""
    """The type of the language model that this type wraps."""
    tower_ties: bool = False
    """Whether the wrapper, not the wrapped config, says if embedding and head are tied."""
    lean: bool = False
    """Whether published configs lean on the class for widths, so that absent ones are taken."""
    built: bool = False
    """Whether the trainer builds it: its own file has the table ``compute``."""
    unbuilt: tuple[dict[str, str], ...] = ()
    """Conditions under which the trainer does not build it, with the reason."""
    particular: bool = True
    """Whether layers compute something that shapes do not say: places of norms, multipliers,
    activations, caps, layers side by side."""
    notes: tuple[str, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)

    varying: frozenset[str] = frozenset()
    """Names of ``[let]`` whose values differ between layers."""
    mentioned: frozenset[str] = frozenset()
    """The names of all expressions."""
    by_layer: tuple[str, ...] = ()
    """The expressions that name the layer."""

    def table(self, name: str) -> dict[str, Any]:
        """The keys of one table, inherited ones included."""
        return self.tables.get(name, {})


@cache
def described_types() -> tuple[str, ...]:
    """Every ``model_type`` with a description, refused ones included."""
    names = (entry.name for entry in _folder().iterdir())
    return tuple(sorted(n[:-5] for n in names if n.endswith(".toml") and n[0] != "_"))


@cache
def describe(model_type: str) -> Description:
    """The description of a type, with what it inherits.

    Raises KeyError where there is none.
    """
    if model_type not in described_types():
        raise KeyError(model_type)
    known = _fields().get(model_type, {})
    found = _inherited(model_type)
    varying = _varying(found.get("let", {}))
    return Description(
        varying=varying,
        mentioned=frozenset().union(*(names_in(text) for text in _everything(found))),
        by_layer=tuple(dict.fromkeys(t for t in _expressions(found) if "i" in names_in(t))),
        model_type=model_type,
        tables={name: found.get(name, {}) for name in TABLES},
        refuse=tuple(found.get("refuse", ())),
        warn=tuple(found.get("warn", ())),
        divide=tuple(found.get("divide", ())),
        disagree=tuple(found.get("disagree", ())),
        structure=found.get("structure", ""),
        text=found.get("text", ""),
        tower_ties=found.get("tower_ties", False),
        lean=found.get("lean", False),
        particular=found["particular"],
        built=found["built"],
        unbuilt=tuple(found.get("unbuilt", ())),
        notes=tuple(found.get("notes", ())),
        defaults=known.get("defaults", {}) | found.get("defaults", {}),
        aliases=_both_ways(known.get("aliases", {}), found.get("spellings", {})),
    )


def _varying(let: dict[str, Any]) -> frozenset[str]:
    """The names that depend on the layer, directly or through others."""
    found = {"i"}
    while True:
        more = {n for n, t in let.items() if isinstance(t, str) and names_in(t) & found} - found
        if not more:
            return frozenset(found - {"i"})
        found |= more


def _everything(tables: dict[str, Any]) -> Iterator[str]:
    yield from _expressions(tables)
    yield from (v for v in tables.get("model", {}).values() if isinstance(v, str))
    yield from tables.get("words", {})
    for rules in ("refuse", "warn", "divide", "disagree"):
        yield from (rule["when"] for rule in tables.get(rules, ()))


def _expressions(tables: dict[str, Any]) -> Iterator[str]:
    """The expressions that decide what a layer holds."""
    for name in ("let", "attention", "recurrence", "network", "layer"):
        for key, value in tables.get(name, {}).items():
            if isinstance(value, list):
                yield from (p for part in value for p in part if p not in ("outputs", "inputs"))
            elif isinstance(value, str) and key not in ("kind", "router"):
                yield value
        if name != "let":
            continue
        yield from (t for t in (tables["let"].get("kind"),) if t)
    router = tables.get("network", {}).get("router", "")
    if "'" in router or " " in router:
        yield router


def _inherited(name: str) -> dict[str, Any]:
    own = tomllib.loads(_folder().joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    like = own.get("like", "" if name == "_decoder" else "_decoder")
    if not like:
        return own
    base = _inherited(like)
    merged = {**base, **own}
    for table in (*TABLES, "spellings", "defaults"):
        merged[table] = {**base.get(table, {}), **own.get(table, {})}
    for rules in ("refuse", "warn", "divide", "disagree", "unbuilt"):
        merged[rules] = [*base.get(rules, []), *own.get(rules, [])]
    for key in ("structure", "text"):
        merged[key] = own.get(key, "")
    merged["particular"] = own.get("particular", True)
    merged["built"] = "compute" in own
    return merged


def _both_ways(aliases: dict[str, str], spellings: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Every name of a field with its other names."""
    groups: list[set[str]] = [{name, other} for name, other in aliases.items()]
    groups += [{name, *others} for name, others in spellings.items()]
    found: dict[str, set[str]] = {}
    for group in groups:
        joined = set().union(group, *(found[name] for name in group if name in found))
        found.update(dict.fromkeys(joined, joined))
    return {name: tuple(sorted(group - {name})) for name, group in found.items()}


@cache
def _fields() -> dict[str, Any]:
    text = _folder().joinpath("fields.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def _folder() -> Traversable:
    return files("krzem.facts").joinpath("families")


# Typed, checked access to the fields of one config: every error names the field
# ------------------------------------------------------------------------------

MAX_COUNT = 2**31 - 1
"""No width, vocabulary or context of a real model comes near this."""
MAX_LAYERS = 10_000
MAX_EXPERTS = 100_000


class Missing:
    """Marks "no default": the field has to be there."""


MISSING = Missing()


class Fields:
    """The fields of a config with the place they come from.

    Each reader takes one or more names: the first is the one that errors mention, the others are
    spellings that the same architecture is published with.  Two spellings that disagree are an
    error.  ``null`` counts as absent, as it does for the config classes of ``transformers``.
    """

    def __init__(self, raw: Mapping[str, object], *, name: str, model_type: str) -> None:
        self.raw = raw
        self.name = name
        self.model_type = model_type

    def fail(self, problem: str) -> NoReturn:
        """Raise a ModelError that says which config the ``problem`` is in."""
        raise ModelError(f"config of {shorten(self.name)} ({self.model_type}): {problem}")

    def count(
        self,
        *names: str,
        default: int | Missing | None = MISSING,
        low: int = 1,
        high: int = MAX_COUNT,
    ) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.optional_count(*names, default=default, low=low, high=high)
        if value is None:
            self.missing(names)
        return value

    def optional_count(
        self,
        *names: str,
        default: int | Missing | None = MISSING,
        low: int = 1,
        high: int = MAX_COUNT,
    ) -> int | None:
        """As ``count``; ``null`` gives None where the key is there, ``default`` where it is not."""
        key, value = self.find(names)
        if key is None:
            if isinstance(default, Missing):
                self.missing(names)
            return default
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f"{key!r} is {show(value)}; it has to be a whole number")
        if not low <= value <= high:
            self.fail(f"{key!r} is {show(value)}; it has to lie between {low} and {high}")
        return value

    def flag(self, *names: str, default: bool) -> bool:
        """true or false."""
        key, value = self.find(names)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(f"{key!r} is {show(value)}; it has to be true or false")
        return value

    def fraction(self, *names: str) -> float | None:
        """A number in (0, 1], or None where the field is absent."""
        key, value = self.find(names)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            self.fail(f"{key!r} is {show(value)}; it has to be a number above 0 and at most 1")
        return float(value)

    def choice(self, *names: str, among: Collection[str], default: str) -> str:
        """One of the words ``among``."""
        key, value = self.find(names)
        if value is None:
            return default
        return self._word(value, among, repr(key))

    def per_layer(self, name: str, layers: int, among: Collection[str]) -> tuple[str, ...] | None:
        """One word for each of ``layers`` layers, or None where the field is absent."""
        items = self.items(name)
        if items is None:
            return None
        if len(items) != layers:
            self.fail(
                f"{name!r} has {len(items)} entries for {layers} layers (num_hidden_layers): "
                f"{len(items)} != {layers}"
            )
        return tuple(self._word(v, among, f"{name}[{i}]") for i, v in enumerate(items))

    def counts(self, name: str, *, low: int = 0, high: int = MAX_COUNT) -> tuple[int, ...] | None:
        """A list of whole numbers, or None where the field is absent."""
        items = self.items(name)
        if items is None:
            return None
        for i, value in enumerate(items):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                self.fail(f"{name}[{i}] is {show(value)}; it has to lie between {low} and {high}")
        return tuple(value for value in items if isinstance(value, int))

    def items(self, name: str) -> list[object] | None:
        """A list of at most twice as many entries as layers are allowed, or None if absent."""
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            self.fail(f"{name!r} is {show(value)}; it has to be a list with one entry per layer")
        if len(value) > 2 * MAX_LAYERS:
            self.fail(f"{name!r} has {len(value)} entries; at most {2 * MAX_LAYERS} are read")
        return list(value)

    def divides(self, part: str, parts: int, whole: str, size: int) -> None:
        """Refuse a config in which ``parts`` does not divide ``size``."""
        if size % parts:
            self.fail(
                f"{whole} = {size} is not a multiple of {part} = {parts} "
                f"({size} / {parts} leaves {size % parts})"
            )

    def _word(self, value: object, among: Collection[str], where: str) -> str:
        if not isinstance(value, str) or value not in among:
            self.fail(f"{where} is {show(value)}; supported: {', '.join(sorted(among))}")
        return value

    def find(self, names: tuple[str, ...]) -> tuple[str | None, object]:
        """The first of ``names`` that the config has, with its value; (None, None) for none."""
        present = [(name, self.raw[name]) for name in names if name in self.raw]
        given = [(name, value) for name, value in present if value is not None]
        if len(given) > 1 and any(value != given[0][1] for _, value in given):
            both = " and ".join(f"{name!r} = {show(value)}" for name, value in given)
            self.fail(f"{both} name the same thing and disagree")
        if given:
            return given[0]
        return present[0] if present else (None, None)

    def missing(self, names: tuple[str, ...]) -> NoReturn:
        """Raise a ModelError for a field that has to be there."""
        if names[0] in self.raw:
            self.fail(f"the field {names[0]!r} is null; give its value")
        close = nearest(names[0], (key for key in self.raw if isinstance(key, str)), count=2)
        hint = f" (the config has {', '.join(map(repr, map(shorten, close)))})" if close else ""
        also = f" (also read as {', '.join(map(repr, names[1:]))})" if names[1:] else ""
        self.fail(f"the field {names[0]!r}{also} is missing{hint}; add it to the config")


def show(value: object) -> str:
    """``value`` for a message, short whatever it is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    try:
        return shorten(repr(value), 60)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that cannot be shown"
