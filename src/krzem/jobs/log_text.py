"""Small parts of a log line: numbers as programs print them, colours, and who printed the line."""

from __future__ import annotations

import math
import re

NUMBER = r"[-+]?(?:\d[\d,_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
"""A number in text: thousands commas and exponents included."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00\ufeff]")
_WRITTEN = re.compile(rf"\s*({NUMBER})\s*([KkMGBTPE](?![A-Za-z]))?")
_SIMPLE = re.compile(r" *\d{1,17}(?:\.\d{0,17})?(?:E[+-]\d\d)? *")
_SCALE = {"K": 1e3, "k": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_CLOCK = re.compile(r"(?:(\d+) ?d(?:ays?,)? ?)?(?:(\d+) ?h ?)?(?:(\d+) ?m ?)?(?:([\d.]+) ?s)?$")
_RANK = re.compile(
    r"\[\d+,(\d+)\]<std(?:out|err)>:?"
    r"|\[?\b(?:default|rank|Rank|RANK|worker|local_rank)[ _:=-]?(\d+)\b\]?:?"
    r"|(?<![\w.:])(\d{1,6}): "
)
_HOST = re.compile(r"\s*([A-Za-z][\w.-]*\d[\w.-]*): ")


def plain(raw: bytes) -> str:
    """The text of a line without colour codes; bytes that are not UTF-8 become a mark."""
    text = raw.decode("utf-8", errors="replace")
    return _ANSI.sub("", text) if "\x1b" in text or "\x00" in text or "\ufeff" in text else text


def number(text: str) -> float | None:
    """The number that ``text`` begins with: ``7,123``, ``11.5K``, ``9.6E+00``; None: none, or NaN.

    K, M, G (or B), T and P are powers of 1,000.
    """
    if _SIMPLE.fullmatch(text):
        return float(text)
    match = _WRITTEN.match(text)
    if match is None or not any(c.isdigit() for c in match[1]):
        return None
    try:
        value = float(match[1].replace(",", "").replace("_", ""))
    except ValueError:
        return None
    value *= _SCALE.get(match[2] or "", 1.0)
    return value if math.isfinite(value) else None


def clock(text: str) -> float | None:
    """Seconds of ``1:02:03``, ``02:03``, ``1 day, 1:02:03`` or ``1h 2m 3s``; None: no time."""
    text = text.strip()
    day, comma, rest = text.partition(",")
    if comma and "day" in day:
        after = clock(rest)
        count = number(day)
        return None if after is None or count is None else count * 86400 + after
    parts = text.split(":")
    if 2 <= len(parts) <= 4 and all(p.replace(".", "", 1).isdigit() for p in parts):
        units = (1, 60, 3600, 86400)
        return sum(float(p) * u for p, u in zip(reversed(parts), units, strict=False))
    match = _CLOCK.match(text)
    if match is None or not any(match.groups()):
        return None
    days, hours, minutes, seconds = (float(g or 0) for g in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + seconds


def rank_of(head: str) -> int | None:
    """The rank named in ``head``, what stands before a line's own text; None: no rank."""
    match = _RANK.search(head[:200])
    return None if match is None else int(next(g for g in match.groups() if g is not None))


def source_of(head: str) -> str:
    """Who printed a line: host and rank as far as the head names them, else ''."""
    if ": " not in head and ":" not in head and "rank" not in head.lower():
        return ""
    host = _HOST.match(head)
    rank = rank_of(head[host.end() :] if host else head)
    return f"{host[1] if host else ''}{'' if rank is None else f'#{rank}'}"
