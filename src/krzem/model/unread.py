"""Names the fields of a config that decide something and that no description reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from krzem.errors import shorten
from krzem.model.fields import show

if TYPE_CHECKING:
    from krzem.model.scope import Scope

MOST = 12
"""Names that one note lists."""


def unread_notes(scope: Scope) -> tuple[str, ...]:
    """Notes on what was assumed, what changes the function alone, and what was not read."""
    raw = scope.fields.raw
    check_rope(scope)
    left = {key: raw[key] for key in raw if _matters(key, raw[key], scope)}
    changed = {key: value for key, value in left.items() if _is_known(key, scope)}
    unknown = {key: value for key, value in left.items() if key not in changed}
    warned = [w["note"] for w in scope.description.warn if scope.flag("warn", w["when"])]
    return (
        *scope.description.notes,
        *warned,
        *_note("not in the config, taken from the class", scope.assumed),
        *_note(
            "changes what the model computes, not what a step costs, and is not read",
            changed,
        ),
        *_note("not a field that krzem knows, and not read", unknown),
    )


def check_rope(scope: Scope) -> None:
    """Refuse two statements of the rotary positions that contradict each other."""
    raw, fields = scope.fields.raw, scope.fields
    given: list[Mapping[str, object]] = []
    for name in ("rope_parameters", "rope_scaling"):
        item = raw.get(name)
        if isinstance(item, Mapping):
            given.append(item)
        elif item is not None:
            fields.fail(f"{name!r} is {show(item)}; it has to be an object")
    if len(given) == 2:
        both = sorted(k for k in set(given[0]) & set(given[1]) if given[0][k] != given[1][k])
        if both:
            values = " and ".join(show(item[both[0]]) for item in given)
            fields.fail(
                f"'rope_parameters' and 'rope_scaling' disagree on {both[0]!r}: {values}; keep one"
            )
    for key in ("rope_theta", "partial_rotary_factor"):
        for item in given:
            if key in item and raw.get(key) is not None and item[key] != raw[key]:
                fields.fail(
                    f"{key!r} is {show(raw[key])} beside a rope dictionary that says "
                    f"{show(item[key])}; keep one"
                )


def _matters(key: str, value: Any, scope: Scope) -> bool:
    """Whether a field says something that nobody read and that is not as good as not said."""
    kinds, known = field_kinds(), scope.description
    names = {key, *known.aliases.get(key, ())}
    if value in (None, False, [], {}) or key.startswith("_"):
        return False
    if names & scope.read or names & known.mentioned:
        return False
    if key in kinds["neutral"] or key.endswith(tuple(kinds["neutral_endings"])):
        return False
    if key in ("rope_parameters", "rope_scaling"):
        return not _is_plain_rope(value)
    if any(known.defaults.get(name) == value for name in names):
        return False
    plain = kinds["function"].get(key)
    return plain is None or value not in plain


def _is_known(key: str, scope: Scope) -> bool:
    """Whether the class has the field, so that changed configs have shown it to cost nothing."""
    known = scope.description
    names = {key, *known.aliases.get(key, ())}
    return key in field_kinds()["function"] or bool(names & set(known.defaults))


def _is_plain_rope(value: Any) -> bool:
    """Whether a rope dictionary rotates whole heads at unscaled positions."""
    if not isinstance(value, Mapping):
        return False
    parts = [part for part in value.values() if isinstance(part, Mapping)] or [value]
    return all(
        part.get("rope_type", part.get("type", "default")) == "default"
        and part.get("partial_rotary_factor") in (None, 1, 1.0)
        for part in parts
    )


def _note(what: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    if not found:
        return ()
    listed = [f"{shorten(key, 40)} = {show(value)}" for key, value in sorted(found.items())][:MOST]
    more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
    return (f"{what}: {', '.join(listed)}{more}",)


@cache
def field_kinds() -> dict[str, dict[str, Any]]:
    """Fields that decide nothing (``neutral``), and those that decide no cost (``function``)."""
    path = files("krzem.facts").joinpath("families", "field_kinds.json")
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found
