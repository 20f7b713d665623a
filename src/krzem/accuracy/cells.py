"""Reading cells of a published table: numbers that may be missing, dates that may be years."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

Row = Mapping[str, str]


def number(row: Row, name: str) -> float | None:
    """A positive finite number, or None where the cell is empty, zero or not a number."""
    try:
        value = float((row.get(name) or "").strip())
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 < value < 1e18 else None


def whole(row: Row, name: str) -> int | None:
    """The same, rounded to a whole number."""
    value = number(row, name)
    return None if value is None or value < 0.5 else round(value)


def text(row: Row, name: str) -> str:
    """A cell in lower case without surrounding space."""
    return (row.get(name) or "").strip().lower()


def year(row: Row) -> float | None:
    """``2025-10-03`` as 2025.76; a bare year counts as its middle."""
    found = re.match(r"\s*(20\d\d)(?:-(\d\d?))?", row.get("date") or "")
    if found is None:
        return None
    month = int(found.group(2) or 6)
    return int(found.group(1)) + (min(max(month, 1), 12) - 0.5) / 12
