"""When a run was made: its date, or what the age of its card says of it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from krzem.accuracy.cells import Row
from krzem.hardware.catalogue import Device

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DATE = re.compile(r"(?<!\d)(20[12]\d)(?:[-/._ ](1[0-2](?!\d)|0?[1-9](?!\d)))?(?!\d)")
_COMPACT = re.compile(r"(?<!\d)(20[12]\d)(0[1-9]|1[0-2])([0-3]\d)(?!\d)")
_MONTH_FIRST = re.compile(r"(?<!\d)(?:\d{1,2}[/.])?(0?[1-9]|1[0-2])[/.](20[12]\d)(?!\d)")
_NAMED = re.compile(rf"\b({'|'.join(_MONTHS)})[a-z]*\.?,?\s*(?:\d{{1,2}},?\s+)?(20[12]\d)")
_NAMED_LAST = re.compile(rf"(20[12]\d)[- ]({'|'.join(_MONTHS)})")
_QUARTER = re.compile(r"q([1-4])[\s/-]*(20[12]\d)")
IN_USE = 1.5
"""Years from the release of a card to the middle of what is published about it."""


def date_of(row: Row, device: Device) -> tuple[float, tuple[str, ...]]:
    """(year with fraction, what was assumed): ``2025-10-03`` is 2025.79, a bare year its middle."""
    cell = (row.get("date") or "").strip().lower()
    if found := _DATE.match(cell):
        return _year(int(found.group(1)), int(found.group(2) or 6)), ()
    for said in _readings(cell):
        return said, ()
    released = list(_readings(device.released))
    return (released[0] + IN_USE if released else 2024.5), ("date",)


def _year(whole: int, month: int) -> float:
    return whole + (month - 0.5) / 12


def _readings(text: str) -> Iterator[float]:
    """Dates in ``text``, the surest reading first."""
    if found := _COMPACT.search(text):
        yield _year(int(found.group(1)), int(found.group(2)))
    if found := _NAMED.search(text):
        yield _year(int(found.group(2)), _MONTHS.index(found.group(1)) + 1)
    if found := _NAMED_LAST.search(text):
        yield _year(int(found.group(1)), _MONTHS.index(found.group(2)) + 1)
    if found := _QUARTER.search(text):
        yield int(found.group(2)) + (int(found.group(1)) - 0.5) / 4
    if found := _MONTH_FIRST.search(text):
        yield _year(int(found.group(2)), int(found.group(1)))
    if found := _DATE.search(text):
        yield _year(int(found.group(1)), int(found.group(2) or 6))
