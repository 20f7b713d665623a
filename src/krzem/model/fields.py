"""Typed, checked access to the fields of one config: every error names the field."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NoReturn

from krzem.errors import ModelError, nearest, shorten

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
