"""Files that a user names: read with bounds, and judged as targets before anything is computed."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from krzem.errors import DataError, InputError, shorten

LARGEST_TOML = 1_000_000
"""Bytes; a file that people write is a few pages of text."""
_DEEPEST_KEY = 40
_DEEP_KEY = re.compile(
    r"(?<![\w-])(?:(?:[\w-]++|\"[^\"\n]*+\"|'[^'\n]*+')[ \t]*+\.[ \t]*+)"
    rf"{{{_DEEPEST_KEY}}}"
)
"""``a.b.c. …`` without end: reading one takes time that grows with the square of its length."""
_HUGE_NUMBER = re.compile(r"\b0[xob][0-9a-fA-F_]{1000}")
"""A number that Python reads and then refuses to write in a message."""


def read_text(path: Path, *, most: int, hint: str) -> str:
    """The text of a regular file of at most ``most`` bytes, a byte-order mark left out.

    ``hint`` ends the message where there is no such file: what to give instead.  Raises DataError.
    """
    name = shorten(str(path), 120)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{name} is not a file: {hint}.")
        with path.open("rb") as stream:
            raw = stream.read(most + 1)
        if len(raw) > most:
            size = path.stat().st_size
            raise DataError(f"{name} has {size:,} bytes; at most {most:,} are read: {hint}.")
        return raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{name} does not exist: {hint}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text (byte {error.start}): {hint}.") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read ({error.strerror}): {hint}.") from None
    except ValueError:
        raise DataError(f"{name!r} is not the name of a file: {hint}.") from None


def open_regular(path: Path) -> int:
    """A descriptor for reading a regular file.

    Never waits (a pipe), opens no device, follows no symbolic link in the last part of ``path``.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is something else, or cannot be read.
    """
    name = shorten(path.name, 120)
    # What Windows lacks is nothing there: it has no such pipes, devices or links to fear.
    flags = os.O_RDONLY
    for name_of in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name_of, 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise DataError(f"{name!r} is not the name of a file") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{name} is not a regular file")
    return descriptor


def read_toml(path: Path, *, hint: str) -> dict[str, Any]:
    """The tables of a TOML file; raises DataError as :func:`read_text` does, and for the syntax."""
    return parse_toml(read_text(path, most=LARGEST_TOML, hint=hint), shorten(str(path), 120))


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tables written in ``text``; DataError names the line that is not TOML."""
    if _HUGE_NUMBER.search(text):
        raise DataError(f"{where} holds a number of more than 1,000 digits; no setting has.")
    if _DEEP_KEY.search(text):
        raise DataError(f"{where} has a key of more than {_DEEPEST_KEY} parts; no setting has.")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise DataError(f"{where} nests tables or lists too deeply to be settings.") from None
    except ValueError as error:
        raise DataError(f"{where} is not valid TOML: {shorten(str(error), 120)}.") from None


def check_target(path: str | Path) -> None:
    """Refuse a path that no file can be written to; raises InputError, touches nothing.

    A device or a pipe is refused too: what is written is renamed into place and would replace it.
    """
    file, shown = Path(path), shorten(str(path))
    folder = file.parent
    if not str(path).strip() or "\0" in str(path):
        raise InputError("the file to write has no name: give one, such as out.html")
    try:
        fault = _fault(file, folder)
    except OSError as error:
        fault = f"is no place for a file ({error.strerror})"
    if fault:
        raise InputError(f"cannot write {shown!r}: it {fault}; give another file")


def _fault(file: Path, folder: Path) -> str:
    if not folder.is_dir():
        return "lies in a folder that does not exist"
    if file.is_dir():
        return "is a folder"
    if os.path.lexists(file) and not file.is_file():
        return "is not a regular file"
    if len(os.fsencode(file.name)) > 200:
        return "has a name of more than 200 bytes"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "lies in a folder that may not be written to"
    return ""
