"""Numbers of a document as people read them; ``None`` is always shown as unknown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

Interval = Mapping[str, float]
Format = Callable[[float], str]
UNKNOWN = "unknown"
_POWERS = ((1e12, "T"), (1e9, "B"), (1e6, "M"))


def number(value: float) -> str:
    """Three significant digits, whole from 100 on, thousands separated: 0.0213, 71.8, 3,727."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{value:.6f}".rstrip("0").rstrip(".") if "e" in text else text


def large(value: float) -> str:
    """Counts with the letter of their power: 14.8T, 671B, 3.53M, 15,360."""
    for power, letter in _POWERS:
        if abs(value) >= power:
            return f"{value / power:.3g}{letter}" if value < 999.5 * power else number(value)
    return number(value)


def percent(value: float) -> str:
    """A fraction in per cent, never rounded up to certainty: 93 %, 4.4 %, > 99 %."""
    if 0.995 <= value < 1:
        return "> 99 %"
    digits = 0 if abs(value) >= 0.0995 or value == 0 else 1
    return f"{100 * value:.{digits}f} %"


def share(value: float) -> str:
    """A relative change with its sign: +4.4 %."""
    return f"+{percent(value)}" if value >= 0 else f"−{percent(-value)}"


def dollars(value: float) -> str:
    """US dollars: $7.06M."""
    return f"${large(value)}"


def day(value: str) -> str:
    """2027-02-11 as 11 Feb 2027."""
    return f"{date.fromisoformat(value):%-d %b %Y}"


def maybe(value: Any, form: Format | Callable[[str], str]) -> str:
    """``form(value)``, or unknown."""
    return UNKNOWN if value is None else form(value)


def middle(interval: Interval | None, form: Format = number) -> str:
    """The median."""
    return UNKNOWN if interval is None else form(interval["mid"])


def between(interval: Interval | None, form: Format = number) -> str:
    """The ends of the interval: 61.6 – 84."""
    return "" if interval is None else f"{form(interval['low'])} – {form(interval['high'])}"


def both(interval: Interval | None, form: Format = number) -> str:
    """Median and interval: 71.8 (61.6 – 84)."""
    return UNKNOWN if interval is None else f"{middle(interval, form)} ({between(interval, form)})"
