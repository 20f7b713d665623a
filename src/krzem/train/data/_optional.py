"""Libraries that only some kinds of input need."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from krzem.errors import DataError


def optional(module: str, path: Path, extra: str) -> Any:
    """``module``, or a DataError that says what reading ``path`` needs installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise DataError(f"reading {path} needs {package}: pip install '{extra}'") from error
