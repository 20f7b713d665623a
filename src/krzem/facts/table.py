"""Reads the fact files of this folder: CSV whose lines starting with ``#`` are its manual."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

_FOLDER = Path(__file__).parent
"""Beside this module; importlib.resources would take longer to import than the tables to read."""


@cache
def read_table(name: str) -> tuple[Mapping[str, str], ...]:
    """The rows of ``name`` (``accelerators.csv``), every cell as text; an empty cell is unknown."""
    lines = [line for line in _text(name).splitlines() if not line.startswith("#")]
    return tuple(MappingProxyType(row) for row in csv.DictReader(lines, strict=True))


@cache
def manual(name: str) -> str:
    """What the file says about itself: columns, units, sources."""
    lines = (line for line in _text(name).splitlines() if line.startswith("#"))
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
