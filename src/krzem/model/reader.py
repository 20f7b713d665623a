"""Reads a Hugging Face ``config.json`` into an :class:`~krzem.model.architecture.Architecture`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NoReturn

from krzem.errors import ModelError, nearest, shorten
from krzem.model.architecture import Architecture
from krzem.model.build import build
from krzem.model.config_file import load_config
from krzem.model.description import Description, describe, described_types
from krzem.model.fields import Fields, show

WRAPPED = ("text_config", "llm_config", "language_config")
"""Names under which multimodal configs hold that of their language model."""


def read_config(
    config: str | os.PathLike[str] | Mapping[str, object],
    name: str | None = None,
    *,
    source: str | None = None,
) -> Architecture:
    """The architecture that a config describes.

    ``config`` is the path of a ``config.json``, of a folder holding one, or the object itself.
    A field that the ``transformers`` class can do without may be missing; a field that decides a
    width or a count has to be there, because a silent default would plan another model.  Of a
    multimodal config the language model is read.  ``notes`` of the result says what was taken for
    granted, left out or not read.  ``source`` says where a config given as an object comes from.

    Raises:
        DataError: the file cannot be read as a JSON object.
        ModelError: unknown ``model_type``, a type that is refused for its structure, a missing
            field, or fields that contradict each other.
    """
    if isinstance(config, Mapping):
        return _read(config, name or "the given object", source or "")
    raw, file = load_config(config)
    return _read(raw, name or _name_of(file), source or str(file))


@cache
def supported_types() -> tuple[str, ...]:
    """Every ``model_type`` that can be read."""
    return tuple(name for name in described_types() if not describe(name).structure)


def _read(raw: Mapping[str, object], name: str, source: str) -> Architecture:
    inner = _inner(raw)
    if inner is not None:
        return replace(_unwrapped(raw, inner, name), source=source)
    description = _description(raw, name)
    fields = Fields(raw, name=name, model_type=description.model_type)
    if description.structure:
        fields.fail(f"models of this type are not read: {description.structure}")
    return replace(build(fields, description), source=source)


def _description(raw: Mapping[str, object], name: str) -> Description:
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in described_types():
        _refuse(name, model_type)
    return describe(model_type)


def _inner(raw: Mapping[str, object]) -> str | None:
    """The field that holds the config of a wrapped language model."""
    if raw.get("model_type") in described_types() and not describe(str(raw["model_type"])).text:
        return None
    return next((key for key in WRAPPED if isinstance(raw.get(key), Mapping)), None)


def _unwrapped(raw: Mapping[str, object], key: str, name: str) -> Architecture:
    """The language model inside a multimodal config."""
    outer, given = raw.get("model_type"), raw[key]
    assert isinstance(given, Mapping)
    known = describe(outer) if isinstance(outer, str) and outer in described_types() else None
    inner = dict(given)
    if known is not None:
        inner.setdefault("model_type", known.text)
    if raw.get("tie_word_embeddings") is not None and (known is None or known.tower_ties):
        inner["tie_word_embeddings"] = raw["tie_word_embeddings"]
    if _inner(inner) is not None:
        raise ModelError(f"config of {shorten(name)}: {key!r} wraps another config")
    arch = _read(inner, name, "")
    towers = sorted(k for k, v in raw.items() if isinstance(v, Mapping) and _is_tower(k, key))
    left = f"; left out of parameters and step: {', '.join(towers)}" if towers else ""
    note = f"the language model of {show(outer)}, from its {key!r}{left}"
    return replace(arch, notes=(note, *arch.notes))


def _is_tower(key: str, text: str) -> bool:
    return key != text and key.endswith("_config") and key != "quantization_config"


def _refuse(name: str, model_type: object) -> NoReturn:
    where = f"config of {shorten(name)}"
    if model_type is None:
        raise ModelError(f"{where}: the field 'model_type' is missing; docs/models.md lists them")
    close = nearest(model_type, described_types()) if isinstance(model_type, str) else ()
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    raise ModelError(
        f"{where}: unknown model_type {show(model_type)}.{hint} {len(supported_types())} types are "
        "read: docs/models.md lists them and says how to add one"
    )


def _name_of(file: Path) -> str:
    parent = file.absolute().parent.name
    return parent if file.name == "config.json" and parent else file.stem
