"""Quantities as people write them, read into base units and written back for tables.

===============  =============================  ==========================================
reader           accepts                        gives
===============  =============================  ==========================================
parse_count      14.8T, 300B, 4k, 1e12, 1_024   int; k M G/B T P are powers of 1000
parse_length     4k, 128K, 1M, 131072           int; k M are powers of **1024**
parse_devices    2048, 2k, 16k                  int; k M are powers of **1024**
parse_bytes      80GB, 141 GiB, 512 MB          bytes; GB = 1e9, GiB = 2**30
parse_rate       400 GB/s, 400 Gbit/s, 200Gbps  bytes/s; a small b is a bit, a large B a byte
parse_flops      989 TFLOP/s, 1.2 PFLOPS        FLOP/s
parse_duration   30s, 90 min, 3h, 2d, 1h30m     seconds
parse_money      $2.50, 2.5 USD, $4M            US dollars
parse_price      $2.50/h, 2.5 USD/h             US dollars per hour
parse_power      700W, 1.2 kW, 20 MW            watts
parse_ratio      1.2, 2:1, 90%                  a plain number
parse_date       2026-11-23, 2026-11            datetime.date (a month is its first day)
===============  =============================  ==========================================

A sequence of "4k" tokens is 4,096 everywhere in this field, and a run of "4k" tokens is 4,000:
hence two readers; clusters ("16k GPUs") also come in powers of two.  A number without a unit is
refused where a unit is needed, because 400 may be GB/s or Gbit/s.  All readers raise
QuantityError on anything else, NaN, infinities, negative numbers and numbers beyond 1e30 included.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from krzem.errors import QuantityError, shorten

Written = str | int | float
"""What a command line or a TOML file hands over."""

LARGEST = 10**30
"""Beyond this (in base units) a number is taken for a slip or an attack."""

_MAX_TEXT = 64
_MAX_EXPONENT = 4
"""Characters, sign included: an exact 1e9999999 would not fit in memory."""
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d[\d_]*)?(?:\.\d+|\.)?(?:[eE][+-]?\d+)?"
_TERM = re.compile(rf"([+-]?)\s*({_NUMBER})\s*([^\s\d.,+-][^\d]*)?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """One sort of quantity: its units (text to factor), its examples, whether zero makes sense."""

    what: str
    units: Mapping[str, int | Fraction]
    examples: str
    bare: bool = False
    """A number without a unit is meant in the base unit."""
    zero: bool = False
    compound: bool = False
    """Several terms add up (``1h30m``)."""


def _decimal_prefixes(unit: str, factor: Fraction | int = 1) -> dict[str, Fraction]:
    """``unit`` with k, M, G, T, P, E in front, either case of the prefix."""
    names = {"": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
    return {
        f"{spelt}{unit}": Fraction(factor) * 1000**power
        for prefix, power in names.items()
        for spelt in {prefix, prefix.lower(), prefix.upper()}
    }


def _binary_prefixes(unit: str) -> dict[str, Fraction]:
    return {f"{p}i{unit}": Fraction(1024) ** (i + 1) for i, p in enumerate("KMGTPE")}


_BYTES = {**_decimal_prefixes("B"), **_binary_prefixes("B")}
_BITS = {
    name: factor
    for unit in ("bit", "b", "bits")
    for name, factor in _decimal_prefixes(unit, Fraction(1, 8)).items()
}
_PER_SECOND = {f"{n}/s": f for n, f in (_BYTES | _BITS).items()} | {
    f"{n}ps": f for n, f in (_BYTES | _BITS).items()
}
_SCALE: dict[str, int | Fraction] = {
    "": 1, "k": 10**3, "K": 10**3, "M": 10**6, "m": 10**6, "G": 10**9, "g": 10**9,
    "B": 10**9, "b": 10**9, "T": 10**12, "t": 10**12, "P": 10**15,
}  # fmt: skip
_SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), Fraction(1)),
    "ms": Fraction(1, 1000), "us": Fraction(1, 10**6), "µs": Fraction(1, 10**6),
    "ns": Fraction(1, 10**9),
    **dict.fromkeys(("m", "min", "minute", "minutes"), Fraction(60)),
    **dict.fromkeys(("h", "hr", "hour", "hours"), Fraction(3600)),
    **dict.fromkeys(("d", "day", "days"), Fraction(86400)),
    **dict.fromkeys(("w", "week", "weeks"), Fraction(7 * 86400)),
}  # fmt: skip
_DOLLARS = {
    f"{scale}{unit}": factor
    for scale, factor in _SCALE.items()
    for unit in ("", "USD", " USD", "$", " $")
    if scale not in ("m", "g", "t", "b")
}
_PER_HOUR = {
    f"{unit}/{hour}": Fraction(1)
    for unit in ("", "USD", "$")
    for hour in ("h", "hr", "hour", "device-hour", "GPU-hour", "GPU-h", "device-h")
}

_COUNT = _Kind(what="a count", units=_SCALE, examples="14.8T, 300B, 4k, 1e12", bare=True)
_LENGTH = _Kind(
    what="a sequence length",
    units={"": 1, "k": 1024, "K": 1024, "m": 1024**2, "M": 1024**2},
    examples="4096, 4k (4,096), 128K, 1M",
    bare=True,
)
_DEVICES = _Kind(
    what="a number of devices", units=_LENGTH.units, examples="2048, 2k (2,048), 16k", bare=True
)
_MEMORY = _Kind(what="an amount of memory", units=_BYTES, examples="80GB, 141 GiB")
_RATE = _Kind(
    what="a data rate",
    units=_PER_SECOND,
    examples="400 GB/s (bytes), 400 Gbit/s or 200Gbps (bits), 3.35 TB/s",
)
_FLOPS = _Kind(
    what="an arithmetic rate",
    units={
        n: f for u in ("FLOP/s", "FLOPS", "FLOPs", "OP/s") for n, f in _decimal_prefixes(u).items()
    },
    examples="989 TFLOP/s, 1.2 PFLOP/s",
)
_DURATION = _Kind(
    what="a duration", units=_SECONDS, examples="30s, 90 min, 3h, 2d", zero=True, compound=True
)
_MONEY = _Kind(
    what="an amount of money",
    units=_DOLLARS,
    examples="$2.50, 2.5 USD, $4M",
    bare=True,
    zero=True,
)
_PRICE = _Kind(what="a price per hour", units=_PER_HOUR, examples="$2.50/h, 2.5 USD/h", zero=True)
_POWER = _Kind(what="a power", units=_decimal_prefixes("W"), examples="700W, 1.2 kW, 20 MW")
_RATIO = _Kind(
    what="a ratio", units={"": 1, "%": Fraction(1, 100)}, examples="1.2, 2:1, 90%", bare=True
)


def parse_count(text: Written) -> int:
    """A number of tokens, devices, …; the result must be whole."""
    return _whole(text, _COUNT)


def parse_length(text: Written) -> int:
    """A sequence length in tokens; k is 1,024."""
    return _whole(text, _LENGTH)


def parse_devices(text: Written) -> int:
    """A number of devices; k is 1,024, as in "16k GPUs"."""
    return _whole(text, _DEVICES)


def parse_bytes(text: Written) -> float:
    """Bytes."""
    return float(_parse(text, _MEMORY))


def parse_rate(text: Written) -> float:
    """Bytes per second, from bytes or bits per second."""
    return float(_parse(text, _RATE))


def parse_flops(text: Written) -> float:
    """FLOP/s."""
    return float(_parse(text, _FLOPS))


def parse_duration(text: Written) -> float:
    """Seconds."""
    return float(_parse(text, _DURATION))


def parse_money(text: Written) -> float:
    """US dollars; other currencies are refused, their rate is the user's to choose."""
    return float(_parse(_without_dollar(text), _MONEY))


def parse_price(text: Written) -> float:
    """US dollars per hour (of one device where a device's price is asked for)."""
    return float(_parse(_without_dollar(text), _PRICE))


def parse_power(text: Written) -> float:
    """Watts."""
    return float(_parse(text, _POWER))


def parse_ratio(text: Written) -> float:
    """A plain number; ``2:1`` is 2 and ``90%`` is 0.9."""
    if isinstance(text, str) and text.count(":") == 1:
        above, below = (_parse(part, _RATIO) for part in text.split(":"))
        return float(above / below)
    return float(_parse(text, _RATIO))


def parse_date(text: str | dt.date) -> dt.date:
    """A day; a month alone is its first day."""
    if isinstance(text, dt.datetime):
        return text.date()
    if isinstance(text, dt.date):
        return text
    written = str(text).strip()
    try:
        if re.fullmatch(r"\d{4}-\d{2}", written, re.ASCII):
            return dt.date.fromisoformat(f"{written}-01")
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", written, re.ASCII):
            return dt.date.fromisoformat(written)
    except ValueError as error:
        raise _refusal(written, "a date", f"there is no such day ({error})", "2026-11-23") from None
    raise _refusal(written, "a date", "it is not year-month-day", "2026-11-23, 2026-11")


def _whole(text: Written, kind: _Kind) -> int:
    value = _parse(text, kind)
    if value.denominator != 1:
        raise _refusal(str(text), kind.what, "it is not a whole number", kind.examples)
    return value.numerator


def _parse(text: Written, kind: _Kind) -> Fraction:
    """The exact value of ``text`` in base units, within what makes sense."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise _refusal(str(text), kind.what, "it is not a number or text", kind.examples)
    if isinstance(text, int) and abs(text) > LARGEST:
        raise _refusal("that number", kind.what, "it is beyond 1e30", kind.examples)
    written = _stripped(text if isinstance(text, str) else repr(text), kind)
    value = sum((_term(*term, written, kind) for term in _terms(written, kind)), Fraction(0))
    if value > LARGEST:
        raise _refusal(written, kind.what, "it is beyond 1e30", kind.examples)
    if value == 0 and not kind.zero:
        raise _refusal(written, kind.what, "zero is not possible here", kind.examples)
    return value


def _stripped(text: str, kind: _Kind) -> str:
    if len(text) > _MAX_TEXT:
        raise _refusal(text, kind.what, f"it is longer than {_MAX_TEXT} characters", kind.examples)
    written = " ".join(text.split())
    if not written:
        raise _refusal(text, kind.what, "it is empty", kind.examples)
    if written.lower().lstrip("+-") in ("nan", "inf", "infinity"):
        raise _refusal(text, kind.what, "it is not a finite number", kind.examples)
    return written


def _terms(written: str, kind: _Kind) -> list[tuple[str, str, str]]:
    """(sign, number, unit) of each term; together they cover the whole text."""
    found: list[tuple[str, str, str]] = []
    position = 0
    while position < len(written):
        match = _TERM.match(written, position)
        if match is None or not any(c.isdigit() for c in match[2]):
            raise _refusal(written, kind.what, "it is not a number with a unit", kind.examples)
        found.append((match[1], match[2], (match[3] or "").strip()))
        position = match.end()
    if len(found) > 1 and not kind.compound:
        raise _refusal(written, kind.what, "it holds more than one number", kind.examples)
    return found


def _term(sign: str, number: str, unit: str, written: str, kind: _Kind) -> Fraction:
    if len(number.lower().partition("e")[2]) > _MAX_EXPONENT:
        raise _refusal(written, kind.what, "its exponent is out of range", kind.examples)
    try:
        value = Fraction(Decimal(number.replace(",", "").replace("_", "")))
    except (InvalidOperation, ValueError):
        raise _refusal(written, kind.what, f"{number!r} is not a number", kind.examples) from None
    if sign == "-" and value:
        raise _refusal(written, kind.what, "it is negative", kind.examples)
    factor = kind.units.get(unit, kind.units.get(unit.replace(" ", "")))
    if factor is None:
        fault = f"{shorten(unit, 20)!r} is not a unit of it" if unit else "its unit is missing"
        raise _refusal(written, kind.what, fault, kind.examples)
    return value * factor


def _without_dollar(text: Written) -> Written:
    """``$2.50`` as ``2.50 USD``-less text; the sign may stand in front only once."""
    return text.strip()[1:] if isinstance(text, str) and text.strip().startswith("$") else text


def _refusal(written: str, what: str, fault: str, examples: str) -> QuantityError:
    return QuantityError(
        f"cannot read {shorten(written, 40)!r} as {what}: {fault}. Write it like {examples}."
    )


def format_count(value: float, digits: int = 4) -> str:
    """``14.8e12`` as ``14.8T``; thousands are k, M, B, T, P."""
    return _scaled(value, (("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)), digits)


def format_length(value: int) -> str:
    """A sequence length: ``4k`` only where it is a whole multiple of 1,024."""
    for suffix, factor in (("M", 1024**2), ("k", 1024)):
        if value and value % factor == 0:
            return f"{value // factor}{suffix}"
    return str(value)


def format_bytes(value: float, digits: int = 4) -> str:
    """In the binary units that frameworks print: ``79.2 GiB``."""
    units = ((" TiB", 2.0**40), (" GiB", 2.0**30), (" MiB", 2.0**20), (" KiB", 2.0**10))
    return _scaled(value, units, digits, " B")


def format_rate(bytes_per_s: float, digits: int = 4) -> str:
    """``400 GB/s``: bytes, decimal, as data sheets write links and memories."""
    units = ((" PB/s", 1e15), (" TB/s", 1e12), (" GB/s", 1e9), (" MB/s", 1e6), (" kB/s", 1e3))
    return _scaled(bytes_per_s, units, digits, " B/s")


def format_flops(value: float, digits: int = 4) -> str:
    """``989.4 TFLOP/s``."""
    units = ((" EFLOP/s", 1e18), (" PFLOP/s", 1e15), (" TFLOP/s", 1e12), (" GFLOP/s", 1e9))
    return _scaled(value, units, digits, " FLOP/s")


def format_seconds(value: float, digits: int = 4) -> str:
    """The largest unit that keeps at least one whole: ``1.5 h``, ``812 ms``."""
    units = ((" d", 86400.0), (" h", 3600.0), (" min", 60.0), (" s", 1.0), (" ms", 1e-3))
    return _scaled(value, (*units, (" us", 1e-6), (" ns", 1e-9)), digits, " s")


def format_money(usd: float, digits: int = 4) -> str:
    """``$5.58M``."""
    return f"${_scaled(usd, (('B', 1e9), ('M', 1e6), ('k', 1e3)), digits)}"


def format_power(watts: float, digits: int = 4) -> str:
    """``1.2 kW``."""
    return _scaled(watts, ((" GW", 1e9), (" MW", 1e6), (" kW", 1e3)), digits, " W")


def _scaled(value: float, units: tuple[tuple[str, float], ...], digits: int, base: str = "") -> str:
    """``value`` with ``digits`` significant digits in the largest unit it reaches."""
    for suffix, factor in units:
        if abs(float(f"{value / factor:.{digits}g}")) >= 1:
            return f"{_plain(value / factor, digits)}{suffix}"
    return f"{_plain(value, digits)}{base}"


def _plain(value: float, digits: int) -> str:
    """``digits`` significant digits, without an exponent."""
    return f"{Decimal(f'{value:.{digits}g}'):f}"
