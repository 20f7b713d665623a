"""A ``config.json``: read from disk, what a description's names mean in it, what nobody read."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from krzem.errors import DataError, ModelError, shorten
from krzem.model.description import MAX_COUNT, MAX_LAYERS, Description, Fields, show
from krzem.model.expression import compiled, names_in

MAX_BYTES = 16 * 2**20
"""Real configs have a few kilobytes; more than this is not a config."""


def load_config(path: str | os.PathLike[str]) -> tuple[dict[str, object], Path]:
    """The object in ``path`` (a JSON file, or a folder holding a ``config.json``) and its file.

    Raises:
        DataError: no such file, not a regular file, larger than 16 MiB, not JSON, or not an object.
    """
    file = _locate(path)
    return parse_config(_read(file), shorten(str(file))), file


def parse_config(text: bytes, where: str) -> dict[str, object]:
    """The JSON object in ``text``; duplicate keys and NaN are refused."""
    try:
        value = json.loads(
            text.decode("utf-8-sig"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constants,
        )
    except RecursionError:
        raise DataError(f"{where} nests objects too deeply to be a model config") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except ValueError as error:
        # Python refuses to read longer numbers, with advice for programmers.
        fault = str(error).partition("; use sys.")[0]
        raise DataError(f"{where} is not a usable config: {shorten(fault, 200)}") from None
    if not isinstance(value, dict):
        raise DataError(
            f"{where} holds a JSON {_json_type(value)}; a Hugging Face config is an object "
            '({"model_type": …})'
        )
    return value


def _locate(path: str | os.PathLike[str]) -> Path:
    try:
        given = Path(path)
        mode = given.stat().st_mode
        if stat.S_ISDIR(mode):
            given = given / "config.json"
            mode = given.stat().st_mode
    except (OSError, ValueError):
        raise DataError(
            f"cannot open {shorten(str(path))!r}: give the path of a config.json, or of a folder "
            "that holds one"
        ) from None
    if not stat.S_ISREG(mode):
        raise DataError(f"{shorten(str(given))!r} is not a regular file")
    return given


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read {shorten(str(file))!r}: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise DataError(
            f"{shorten(str(file))!r} has more than {MAX_BYTES // 2**20} MiB; "
            "a model config has a few kilobytes. Is it a weights file?"
        )
    return text


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shorten(key)!r} appears twice")
        found[key] = value
    return found


def _no_constants(text: str) -> object:
    # transformers itself writes Infinity for open limits of time steps (time_step_limit).
    if text in ("Infinity", "-Infinity"):
        return float(text)
    raise ValueError(f"{text} is not a number that a config can hold")


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names: dict[type, str] = {list: "array", str: "string", bool: "boolean"}
    return names.get(type(value), "number")


# -- what the names of a description stand for in one config: fields, their defaults, the layer

REQUIRED = frozenset({
    "hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer", "num_layers", "n_layers",
    "num_attention_heads", "n_head", "n_heads", "attention_heads", "vocab_size",
    "intermediate_size", "ffn_hidden_size", "ffn_dim", "max_position_embeddings", "n_positions",
    "num_key_value_heads", "moe_intermediate_size", "num_experts", "num_local_experts",
    "n_routed_experts", "num_experts_per_tok", "kv_lora_rank", "qk_rope_head_dim",
    "qk_nope_head_dim", "v_head_dim", "first_k_dense_replace", "index_n_heads", "index_head_dim",
    "index_topk", "n_shared_experts", "shared_expert_intermediate_size", "hc_mult", "o_groups",
    "o_lora_rank",
})  # fmt: skip
"""Fields that decide a width or a count: a silent default would plan another model."""

ALWAYS = frozenset({"hidden_size", "num_hidden_layers"})
"""Fields that have to be there even where published configs lean on the class."""
_FAULTS = (
    TypeError, ValueError, IndexError, KeyError, ZeroDivisionError, AttributeError, OverflowError,
)  # fmt: skip


class Scope:
    """The names of one description for one config; ``layer`` is the layer that is asked about."""

    def __init__(self, fields: Fields, description: Description) -> None:
        self.fields = fields
        self.description = description
        self.layer = 0
        self.layers = 0
        self.read: set[str] = set()
        self.assumed: dict[str, Any] = {}
        self._fixed: dict[str, Any] = {}
        self._own = _per_layer(fields)
        self._lets: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name == "i":
            return self.layer
        if name == "config":
            return self.fields.raw
        if name == "layers":
            return self.layers
        text = self.description.table("let").get(name)
        if text is not None:
            return self._let(name, text)
        own = self._own.get(self.layer, {})
        return own[name] if name in own else self._field(name)

    def _let(self, name: str, text: Any) -> Any:
        if self._own or name in self.description.varying:
            return self.value(f"let.{name}", text)
        if name not in self._lets:
            self._lets[name] = self.value(f"let.{name}", text)
        return self._lets[name]

    def value(self, key: str, text: Any) -> Any:
        """The value of an expression; what is no string is a value already."""
        if not isinstance(text, str):
            return text
        try:
            return compiled(text)(self)
        except _FAULTS:
            self._cannot(key, text)

    def count(self, key: str, text: Any, *, low: int = 0, high: int = MAX_COUNT) -> int:
        """A whole number from ``low`` to ``high``."""
        value: Any = self.value(key, text)
        if isinstance(value, bool):
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int):
            self._cannot(key, text, f"gives {show(value)}; it has to be a whole number")
        if not low <= value <= high:
            self._cannot(key, text, f"gives {show(value)}; it has to lie between {low} and {high}")
        whole: int = value
        return whole

    def optional(self, key: str, text: Any) -> int | None:
        """A whole number above zero, or None where the value is null or nothing."""
        return self.count(key, text) or None if self.value(key, text) is not None else None

    def flag(self, key: str, text: Any) -> bool:
        """true or false; numbers and lists as Python reads them."""
        return bool(self.value(key, text))

    def told(self, text: str) -> str:
        """A sentence of a description with the values of its ``{expressions}``."""
        return re.sub(r"\{([^}]+)\}", lambda m: show(self.value("message", m[1])), text)

    def signature(self) -> str:
        """What tells this layer from others: the values of all expressions that name ``i``."""
        values = [self._quietly(text) for text in self.description.by_layer]
        return repr((values, self._own.get(self.layer)))

    def _quietly(self, text: str) -> Any:
        try:
            return compiled(text)(self)
        except (*_FAULTS, ModelError):
            return None

    def _field(self, name: str) -> Any:
        if name not in self._fixed:
            self._fixed[name] = self._checked(name)
        return self._fixed[name]

    def _checked(self, name: str) -> Any:
        names = (name, *self.description.aliases.get(name, ()))
        self.read.update(names)
        default = self.description.defaults.get(name)
        for other in names[1:]:
            default = self.description.defaults.get(other) if default is None else default
        key, value = self.fields.find(names)
        needed = ALWAYS if self.description.lean else REQUIRED
        strict = not needed.isdisjoint(names)
        if key is None or value is None:
            if strict and isinstance(default, int):
                self.fields.missing(names)
            if key is None and default and isinstance(default, int) and default is not True:
                self.assumed[name] = default
            return default if key is None else None
        self._fits(key, value, default)
        return value

    def _fits(self, key: str, value: Any, default: Any) -> None:
        """Refuse a value of another type than the field has."""
        kind = type(default)
        if isinstance(value, list | tuple):
            self.fields.items(key)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MAX_COUNT:
            self._wrong(key, value, f"it has to lie between 1 and {MAX_COUNT}")
        if kind is bool and not isinstance(value, bool):
            self._wrong(key, value, "it has to be true or false")
        if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
            self._wrong(key, value, "it has to be a whole number")
        if kind is int and value < min(0, default):
            self._wrong(key, value, f"it has to lie between 1 and {MAX_COUNT}")
        if kind is float and (isinstance(value, bool) or not isinstance(value, int | float)):
            self._wrong(key, value, "it has to be a number")
        if kind is str and not isinstance(value, str | int):
            self._wrong(key, value, "it has to be a word")
        if kind is list and not isinstance(value, list | tuple | int):
            self._wrong(key, value, "it has to be a list")

    def _wrong(self, key: str, value: Any, needs: str) -> NoReturn:
        self.fields.fail(f"{key!r} is {show(value)}; {needs}")

    def _cannot(self, key: str, text: str, fault: str = "cannot be worked out") -> NoReturn:
        """Say which fields an expression read, and what they are."""
        let = self.description.table("let")
        names: set[str] = set(names_in(str(text)))
        seen: set[str] = set()
        while names - seen:
            name = (names - seen).pop()
            seen.add(name)
            names |= names_in(str(let[name])) if name in let else set()
        given = [
            f"{name} = {show(self.fields.raw.get(name, self._fixed.get(name)))}"
            for name in sorted(seen - set(let) - {"i", "layers"})
        ]
        where = f"{key} ({shorten(str(text), 120)})"
        self.fields.fail(f"{where} {fault}; the config has {shorten(', '.join(given), 400)}")


def _per_layer(fields: Fields) -> dict[int, dict[str, Any]]:
    """``per_layer_config``: fields that single layers have of their own."""
    raw = fields.raw.get("per_layer_config")
    if raw is None:
        return {}
    if not isinstance(raw, dict) or len(raw) > MAX_LAYERS:
        fields.fail("'per_layer_config' has to be an object from layer to fields")
    found: dict[int, dict[str, Any]] = {}
    for key, value in raw.items():
        if not str(key).isdigit() or len(str(key)) > 6 or not isinstance(value, dict):
            fields.fail(f"'per_layer_config' holds {show(key)}; its keys have to be layers")
        found[int(key)] = value
    return found


# -- what is not read

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
