"""What comes from outside, read at the door: bounded regular files, JSON with types and limits.

Metrics, heartbeats, fences, exit codes and job records lie in a folder that others may write to,
and trainers of any make write them.  Whatever is not what it should be is a :class:`BadInputError`,
which says what was found; a reader counts it, quotes it and goes on.  Standard library alone.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from krzem.errors import DataError, QuantityError, shorten
from krzem.files import open_regular
from krzem.keys import text as text_of

LARGEST = 1 << 20
"""Bytes of a small file, and of a line, that is still read."""
MOST = 1 << 53
"""Above it a whole number is no count: JSON numbers are exact up to here."""
_NAME = re.compile(r"[^\W_](?:[\w .+-]{0,62}[\w+-])?")
_QUOTED = 80


class BadInputError(ValueError):
    """Something from outside that is not what it should be; the text says what was found."""


def read_regular(path: Path, most: int = LARGEST) -> bytes:
    """The bytes of a regular file of at most ``most`` bytes.

    Never waits (a pipe), never reads without end (a device), follows no symbolic link.

    Raises:
        FileNotFoundError: there is none.
        BadInputError: it is something else, or longer.
    """
    descriptor = open_bounded(path)
    with os.fdopen(descriptor, "rb") as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise BadInputError(f"{path.name} is longer than {most:,} bytes")
    return raw


def open_bounded(path: Path) -> int:
    """A descriptor for reading a regular file; errors as :func:`read_regular`."""
    try:
        return open_regular(path)
    except DataError as error:
        raise BadInputError(str(error)) from None


def parse_object(raw: str | bytes) -> dict[str, Any]:
    """A JSON object; BadInputError for anything else, however deep or long."""
    if len(raw) > LARGEST:
        raise BadInputError(f"longer than {LARGEST:,} bytes")
    try:
        value = json.loads(raw)
    except RecursionError:
        raise BadInputError("nested too deeply") from None
    except ValueError as error:
        raise BadInputError(f"no JSON ({str(error)[:_QUOTED]})") from None
    if not isinstance(value, dict):
        raise BadInputError(f"{type(value).__name__} where an object is needed")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small regular file; errors as :func:`read_regular`."""
    return parse_object(read_regular(path))


def whole(values: dict[str, Any], name: str, low: int = 0, high: int = MOST) -> int:
    """A whole number from ``low`` to ``high``; 3.0 is one, "3" and true are not."""
    value = values.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadInputError(f"{name} is {quoted(value)}: a whole number from {low:,} is needed")
    return value


def real(values: dict[str, Any], name: str, *, finite: bool = True) -> float:
    """A number; without ``finite`` also NaN and infinities, for which null is JSON's only word."""
    value = values.get(name)
    if value is None and name in values and not finite:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInputError(f"{name} is {quoted(value)}: a number is needed")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if finite and not math.isfinite(number):
        raise BadInputError(f"{name} is {number}: a finite number is needed")
    return number


def amount(values: dict[str, Any], name: str) -> float:
    """A finite number that is not below 0: a time, a speed."""
    number = real(values, name)
    if number < 0:
        raise BadInputError(f"{name} is {number:g}: it cannot be below 0")
    return number


def words(values: dict[str, Any], name: str, most: int = 256) -> str:
    """A short text, control characters made visible."""
    value = values.get(name)
    if not isinstance(value, str) or len(value) > most:
        raise BadInputError(f"{name} is {quoted(value)}: a text of at most {most} characters")
    return printable(value)


def quoted(value: object) -> str:
    """A value as JSON or bytes as text, cut short and safe to print."""
    if isinstance(value, bytes):
        text = value[: 2 * _QUOTED].decode(errors="replace")
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST:
        text = "a number beyond 2^53"
    elif value is None:
        text = "missing or null"
    else:
        text = repr(value)[: 2 * _QUOTED] if isinstance(value, str | int | float) else (
            f"a {type(value).__name__}"
        )  # fmt: skip
    text = printable(text)
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED - 1]}…"


def printable(text: str, keep: str = "") -> str:
    """``text`` with what could steer a terminal (escapes, bidirectional marks) made visible.

    ``keep`` are control characters that stay, such as the newline.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _visible(c) for c in text)


def _visible(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def is_name(text: str) -> bool:
    """Whether ``text`` can be one part of a path, of a job's name and of a line, unchanged."""
    return _NAME.fullmatch(text) is not None


def as_name(text: str) -> str:
    """The nearest name to ``text``, to be offered."""
    near = re.sub(r"[^\w.+-]+", "-", text).strip("-._")[:64].rstrip("-._")
    return near if is_name(near) else "pool"


def plain_name(value: object) -> str:
    """A name that can be part of a path, of a job's name and of a line."""
    found = text_of(value)
    if not is_name(found):
        raise QuantityError(
            f"{shorten(printable(found), 40)!r} is no name: letters, digits, spaces and . _ + - "
            f"are, up to 64 of them, beginning with a letter or digit, such as "
            f'"{as_name(found)}".'
        )
    return found
