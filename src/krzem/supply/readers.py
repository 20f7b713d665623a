"""Readers of single values of a goal file; all raise an InputError on anything else."""

from __future__ import annotations

from typing import Any

from krzem.errors import QuantityError, shorten
from krzem.keys import Text
from krzem.quantity import parse_duration, parse_money, parse_rate, parse_ratio
from krzem.rules.chip import find_country

DAY = 86_400.0
LEAST_BUDGET = 1_000.0
"""US dollars: below, a scale was forgotten."""
MOST_MONTHS = 36
text = Text(400)


def written(value: object) -> str | int | float:
    """A quantity that the planner will read; raises QuantityError."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise QuantityError("a number, or text such as 14.8T, is needed")
    return value


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


def budget(value: Any) -> float:
    """US dollars of a whole run, currency and scale said; raises QuantityError."""
    amount = parse_money(value)
    if not isinstance(value, str) or not ("$" in value or "USD" in value.upper()):
        raise QuantityError(
            f'{shorten(str(value), 40)!r} has no currency: write "$20M" or "20M USD" (only US'
            " dollars are known here)"
        )
    if amount < LEAST_BUDGET:
        raise QuantityError(
            f"{shorten(value, 40)!r} is ${amount:g}, less than one device costs for a week: is the"
            ' scale missing? Write "$20M" for 20 million, "$20k" for 20 thousand'
        )
    return amount


def months(value: Any) -> tuple[float, float]:
    """Least and most months of a lead time: ``"4-6"``, ``"5 months"`` or a number."""
    words = str(value).strip().lower().removesuffix("months").removesuffix("month").strip()
    low, dash, high = words.partition("-")
    least = parse_ratio(low.strip())
    most = parse_ratio(high.strip()) if dash else least
    if not 0 < least <= most <= MOST_MONTHS:
        raise QuantityError(
            f"a lead time of {least:g} to {most:g} months: the first must not be above the last,"
            f" and {MOST_MONTHS} months are the most"
        )
    return least, most


def place(value: Any) -> str:
    """The code of a country."""
    return find_country(text(value))
