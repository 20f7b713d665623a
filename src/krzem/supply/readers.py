"""Readers of single values of a goal file; all raise an InputError on anything else."""

from __future__ import annotations

from typing import Any

from krzem.errors import QuantityError
from krzem.quantity import parse_duration, parse_rate, parse_ratio
from krzem.rules.places import find_country
from krzem.supply.fields import text

DAY = 86_400.0


def share(value: Any) -> float:
    """A part of a whole, from 0 to 1; zero is possible."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value == 0:
        return 0.0
    part = parse_ratio(value)
    if part > 1:
        raise QuantityError(f"{part:g} is more than the whole: write 0.5 or 50%")
    return part


def days(value: Any) -> float:
    """A duration in days."""
    return parse_duration(value) / DAY


def rate(value: Any) -> float:
    """Bytes per second."""
    return parse_rate(value)


def place(value: Any) -> str:
    """The code of a country."""
    return find_country(text(value))
