"""Numbers of a JSON document as text: three digits, intervals, unknown as ``unknown``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from krzem.quantity import format_count, format_money, format_seconds

Interval = dict[str, float] | None
UNKNOWN = "unknown"
ROUNDING = 1e-13
"""Below this a figure is a difference of equal ones: nothing here is counted that finely."""


def plain(value: float) -> str:
    """Three significant digits, thousands separated; what rounding left of a zero is a zero."""
    if abs(value) < ROUNDING:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    text = f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: float) -> str:
    """``14.8T``, ``2.05k``."""
    return format_count(value, 3)


def percent(value: float) -> str:
    """``23 %``; one decimal below ten."""
    return f"{value * 100:.0f} %" if abs(value) >= 0.0995 else f"{value * 100:.1f} %"


def money(value: float) -> str:
    """``$5.58M``."""
    return format_money(value, 3)


def seconds(value: float) -> str:
    """``22.4 s``, ``15 min``."""
    return format_seconds(value, 3)


def energy(megawatt_hours: float) -> str:
    """``3.2 GWh``."""
    for unit, factor in (("TWh", 1e6), ("GWh", 1e3), ("MWh", 1.0)):
        if megawatt_hours >= factor:
            return f"{plain(megawatt_hours / factor)} {unit}"
    return f"{plain(megawatt_hours * 1e3)} kWh"


def interval(value: Interval, shown: Callable[[float], str] = plain) -> str:
    """``72 (62–84)``; a unit that all three share is written once: ``34 (29–40) %``."""
    if not value:
        return UNKNOWN
    low, mid, high = (shown(value[key]) for key in ("low", "mid", "high"))
    if low == high:
        return mid
    numbers, units = zip(*(text.partition(" ")[::2] for text in (low, mid, high)), strict=True)
    if len(set(units)) == 1:
        return f"{numbers[1]} ({numbers[0]}–{numbers[2]}) {units[0]}".rstrip()
    return f"{mid} ({low}–{high})"


def given(value: Any, shown: Callable[[float], str] = plain) -> str:
    """A number, or ``unknown``."""
    return UNKNOWN if value is None else shown(value)


def days(value: Interval) -> str:
    """``72 (62–84) days``; hours or minutes where a day is too long a measure."""
    unit, factor = "days", 1.0
    for shorter, parts, below in (("hours", 24.0, 1.0), ("minutes", 1440.0, 1 / 24)):
        if value and value["mid"] < below:
            unit, factor = shorter, parts
    scaled = value and {key: each * factor for key, each in value.items()}
    return f"{interval(scaled)} {unit}"
