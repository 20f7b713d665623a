"""Numbers of a page: those of the terminal, and the pieces that tables and tiles need of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from krzem.report.text_numbers import UNKNOWN, count, percent, plain

Interval = Mapping[str, float] | None


def chance(value: float) -> str:
    """A probability, never rounded to certainty: 93 %, > 99 %, < 1 %."""
    if 0.995 <= value < 1.0:
        return "> 99 %"
    return "< 1 %" if 0.0 < value < 0.005 else percent(value)


def share(value: float) -> str:
    """A relative change with its sign: +4.4 %."""
    return f"+{percent(value)}" if value >= 0 else f"−{percent(-value)}"


def amount(value: float) -> str:
    """Large numbers by the letter of their power, others digit by digit: 14.8T, 15,360."""
    return count(value) if abs(value) >= 1e6 else plain(value)


def day(value: str) -> str:
    """2027-02-11 as 11 Feb 2027."""
    found = date.fromisoformat(value)
    return f"{found.day} {found:%b %Y}"


def ends(interval: Interval, form: Any = plain) -> dict[str, str]:
    """``low``, ``mid`` and ``high`` as text; an unknown one says so once."""
    if not interval:
        return {"low": "", "mid": UNKNOWN, "high": ""}
    return {end: form(interval[end]) for end in ("low", "mid", "high")}


def between(interval: Interval, form: Any = plain) -> str:
    """The ends of the interval, a common unit once: 61.6 – 84, 14 – 19 %; empty where unknown."""
    if not interval:
        return ""
    low, unit, high, other = (
        part for end in ("low", "high") for part in form(interval[end]).partition(" ")[::2]
    )
    return f"{low} – {high} {other}".rstrip() if unit == other else f"{low} {unit} – {high} {other}"


def days_between(early: str, late: str) -> str:
    """Two dates, a common year once: 1 Feb – 23 Feb 2027."""
    first = day(early)
    return f"{first[:-5] if early[:4] == late[:4] else first} – {day(late)}"
