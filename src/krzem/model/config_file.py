"""Reads a ``config.json`` from disk as a plain object, whatever the file holds."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from krzem.errors import DataError, shorten

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
