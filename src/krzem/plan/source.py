"""Where a model's architecture came from, and its raw config again."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from krzem.model.architecture import Architecture
from krzem.model.catalogue import model_fact, model_ids
from krzem.model.config_file import load_config, parse_config


def is_built_in(architecture: Architecture) -> bool:
    """Whether it is a built-in model; a config in a folder may bear the name of one."""
    name = architecture.name
    return name in model_ids() and model_fact(name).source == architecture.source


def config_of(model: str | Path | Architecture, architecture: Architecture) -> Mapping[str, object]:
    """The ``config.json`` that ``architecture`` was read from; empty where nobody knows it."""
    if is_built_in(architecture):
        file = files("krzem.facts").joinpath("models", f"{architecture.name}.json")
        return parse_config(file.read_bytes(), architecture.name)
    return {} if isinstance(model, Architecture) else load_config(model)[0]
