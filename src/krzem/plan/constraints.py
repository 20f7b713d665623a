"""What a user holds a search to: ``tp<=8,cp=1,zero=1|3,pp=4..16``."""

from __future__ import annotations

import re

from krzem.errors import LayoutError, nearest, shorten
from krzem.layout.layout import ContextParallel, Recompute, Schedule

NUMBERS = ("tp", "cp", "pp", "vpp", "ep", "etp", "dp", "mbs", "zero", "shard", "rlayers", "offload")
WORDS = {
    "schedule": tuple(s.value for s in Schedule),
    "recompute": tuple(r.value for r in Recompute),
    "cpkind": tuple(c.value for c in ContextParallel),
}
_PART = re.compile(r"([a-z_-]+)\s*(<=|>=|!=|=|<|>)\s*(.+)")
_RANGE = re.compile(r"(\d{1,8})\.\.(\d{1,8})")


def parse_constraints(text: str) -> tuple[str, ...]:
    """Conditions in the language of :mod:`krzem.engine.conditions`, one a part of ``text``.

    A part is a name, ``=``, ``!=``, ``<``, ``<=``, ``>`` or ``>=`` and a value; ``=`` also takes
    several values (``zero=1|3``) and ranges (``pp=4..16``).

    Raises LayoutError with the names and forms that there are.
    """
    return tuple(_condition(part.strip()) for part in text.split(",") if part.strip())


def _condition(part: str) -> str:
    found = _PART.fullmatch(part.lower())
    if found is None:
        raise LayoutError(
            f"--layout {shorten(part)!r}: write name=value, name<=value or name=low..high, such as"
            " tp<=8,cp=1,pp=4..16"
        )
    name, sign, raw = found.group(1), found.group(2), found.group(3).strip()
    name = {"micro-batch": "mbs", "micro_batch": "mbs"}.get(name, name)
    if name in WORDS:
        return _word(name, sign, raw, part)
    if name not in NUMBERS:
        near = nearest(name, (*NUMBERS, *WORDS))
        offer = f" Did you mean {near[0]}?" if near else ""
        raise LayoutError(
            f"--layout {shorten(part)!r}: no degree is called {name!r}.{offer} Names:"
            f" {', '.join((*NUMBERS, *WORDS))}"
        )
    return _number(name, sign, raw, part)


def _word(name: str, sign: str, raw: str, part: str) -> str:
    values = [value.strip() for value in raw.split("|")]
    wrong = [value for value in values if value not in WORDS[name]]
    if wrong or sign not in ("=", "!="):
        raise LayoutError(f"--layout {shorten(part)!r}: {name} is one of {', '.join(WORDS[name])}")
    joined = " or ".join(f"{name} == '{value}'" for value in values)
    return f"({joined})" if sign == "=" else f"not ({joined})"


def _number(name: str, sign: str, raw: str, part: str) -> str:
    parts = []
    for value in (piece.strip() for piece in raw.split("|")):
        between = _RANGE.fullmatch(value)
        if between and sign == "=":
            low, high = int(between.group(1)), int(between.group(2))
            if low > high:
                raise LayoutError(f"--layout {shorten(part)!r}: {low} is above {high}")
            parts.append(f"({name} >= {low} and {name} <= {high})")
        elif value.isascii() and value.isdigit() and len(value) <= 8:
            parts.append(f"{name} {'==' if sign == '=' else sign} {int(value)}")
        else:
            raise LayoutError(
                f"--layout {shorten(part)!r}: {value!r} is no whole number and no range low..high"
            )
    return f"({' or '.join(parts)})"
