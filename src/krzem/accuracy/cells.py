"""Reading cells of a published table: numbers as people write them, or None where there is none."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

Row = Mapping[str, str]

_NUMBER = re.compile(
    r"[~≈<>≥≤+$\s]*(\d{1,3}(?:[\s,'_]\d{3})+(?:\.\d+)?(?!\d)|\d+(?:[.,]\d+)?)(e[-+]?\d+)?\s*(.*)"
)
_RANGE = re.compile(r"\s*([\d.]+)\s*(?:-|–|—|to)\s*([\d.]+)\s*(\D*)")
_TIMES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_LARGEST = 1e18


def number(row: Row, name: str) -> float | None:
    """A positive finite number, or None where the cell is empty, zero or not a number.

    Thousands may be separated, a unit or remark may follow (``1,024 (8 nodes)``, ``41.2 %``), a
    range counts as its middle.  ``k``, ``M``, ``B`` and ``T`` multiply; sequence lengths are in
    units of 1,024, parameters in billions, steps in ``ms`` are read as such.
    """
    cell = (row.get(name) or "").strip()
    if not cell:
        return None
    value = _plain(cell)
    if value is None:
        value = _written(cell.lower(), name)
    if value is None or not math.isfinite(value):
        return None
    return value if 0 < value < _LARGEST else None


def _plain(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _written(cell: str, name: str) -> float | None:
    """A number with separators, unit, remark or as a range."""
    if between := _RANGE.fullmatch(cell):
        low, high = _plain(between.group(1)), _plain(between.group(2))
        if low is not None and high is not None and low <= high <= 2.0 * low:
            return 0.5 * (low + high) * _factor(between.group(3), name)
    found = _NUMBER.match(cell)
    if found is None:
        return None
    value = _plain(_separators(found.group(1)) + (found.group(2) or ""))
    return None if value is None else value * _factor(found.group(3), name)


def _separators(digits: str) -> str:
    """``1,024`` and ``1 024`` are thousands, ``12,5`` is a decimal comma."""
    thousands = re.fullmatch(r"\d{1,3}(?:[\s,'_]\d{3})+(?:\.\d+)?", digits)
    return re.sub(r"[\s,'_]", "", digits) if thousands else digits.replace(",", ".")


def _factor(rest: str, name: str) -> float:
    """What the unit after a number multiplies it by."""
    unit = re.match(r"[a-z]+(?![a-z0-9])", rest)
    word = unit.group() if unit else ""
    if name.startswith(("params", "active")):
        return {"m": 1e-3, "t": 1e3}.get(word, 1.0)
    if name == "seq_len":
        return {"k": 1024.0, "m": 1024.0**2}.get(word, 1.0)
    if name == "metric_step_time_s":
        return {"ms": 1e-3, "min": 60.0, "minutes": 60.0}.get(word, 1.0)
    if name == "metric_peak_mem_gb":
        return {"mib": 1 / 1024, "mb": 1 / 1024}.get(word, 1.0)
    if name == "metric_tflops_per_device":
        return {"pflops": 1e3, "pflop": 1e3, "gflops": 1e-3}.get(word, 1.0)
    return _TIMES.get(word, 1.0)


def whole(row: Row, name: str) -> int | None:
    """The same, rounded to a whole number."""
    value = number(row, name)
    return None if value is None or value < 0.5 else round(value)


def text(row: Row, name: str) -> str:
    """A cell in lower case without surrounding space; what stands for an empty one is empty."""
    found = (row.get(name) or "").strip().lower()
    return "" if found in _EMPTY else found


_EMPTY = frozenset({"-", "–", "—", "n/a", "na", "nan", "null", "?", "unknown", "not stated", "tbd"})
