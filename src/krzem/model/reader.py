"""Reads a Hugging Face ``config.json`` into an :class:`~krzem.model.architecture.Architecture`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from krzem.errors import ModelError, nearest, shorten
from krzem.model.architecture import Architecture
from krzem.model.config_file import load_config
from krzem.model.families import FAMILIES
from krzem.model.fields import Fields, show


def read_config(
    config: str | os.PathLike[str] | Mapping[str, object],
    name: str | None = None,
    *,
    source: str | None = None,
) -> Architecture:
    """The architecture that a config describes.

    ``config`` is the path of a ``config.json``, of a folder holding one, or the object itself.
    A field that the ``transformers`` class can do without may be missing; a field that decides a
    width or a count has to be there, because a silent default would plan another model.
    ``source`` says where a config given as an object comes from.

    Raises:
        DataError: the file cannot be read as a JSON object.
        ModelError: unknown ``model_type``, missing field, or fields that contradict each other.
    """
    if isinstance(config, Mapping):
        return _read(config, name or "the given object", source or "")
    raw, file = load_config(config)
    return _read(raw, name or _name_of(file), source or str(file))


def supported_types() -> tuple[str, ...]:
    """Every ``model_type`` that can be read."""
    return tuple(sorted(FAMILIES))


def _read(raw: Mapping[str, object], name: str, source: str) -> Architecture:
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        _refuse(raw, name, model_type)
    fields = Fields(raw, name=name, model_type=model_type)
    return replace(FAMILIES[model_type](fields), source=source)


def _refuse(raw: Mapping[str, object], name: str, model_type: object) -> NoReturn:
    supported = f"supported: {', '.join(supported_types())}"
    where = f"config of {shorten(name)}"
    if model_type is None:
        raise ModelError(f"{where}: the field 'model_type' is missing; {supported}")
    close = nearest(model_type, FAMILIES) if isinstance(model_type, str) else ()
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    if isinstance(raw.get("text_config"), Mapping):
        hint += " It wraps a 'text_config': save that object as a config.json of its own."
    raise ModelError(f"{where}: unknown model_type {show(model_type)}.{hint} {supported}")


def _name_of(file: Path) -> str:
    parent = file.absolute().parent.name
    return parent if file.name == "config.json" and parent else file.stem
