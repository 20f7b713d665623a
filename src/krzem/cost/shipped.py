"""The calibration shipped with krzem, read once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any


@cache
def shipped() -> Mapping[str, Any]:
    """``facts/coefficients.json``, as ``python -m krzem.accuracy.calibrate`` wrote it."""
    path = resources.files("krzem.facts").joinpath("coefficients.json")
    return MappingProxyType(json.loads(path.read_text(encoding="utf-8")))
