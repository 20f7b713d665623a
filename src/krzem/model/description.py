"""Descriptions of model families: one TOML file per ``model_type`` in ``facts/families``.

A file says what differs from the family that it is ``like``; ``_decoder.toml`` says what each key
means and what a plain decoder has.  ``fields.json`` holds what the config classes of
``transformers`` default each field to and the other names of a field; ``scripts/model-types``
writes it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from krzem.model.expression import names_in

TABLES = ("let", "words", "model", "attention", "recurrence", "network", "layer")


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
    for rules in ("refuse", "warn", "divide", "disagree"):
        merged[rules] = [*base.get(rules, []), *own.get(rules, [])]
    for key in ("structure", "text"):
        merged[key] = own.get(key, "")
    merged["particular"] = own.get("particular", True)
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
