"""Object stores: folders named by a URL, read through fsspec, and mirrored with their hashes.

``s3://bucket/corpus``, ``gs://…``, ``abfs://…``, ``memory://…``: whatever fsspec has a driver for.
A URL becomes a ``UPath`` (universal-pathlib), which opens, lists and asks for sizes as
``pathlib.Path`` does; a folder of this machine stays a ``Path``.

A folder that has a manifest is copied file by file, each compared with its SHA-256, the manifest
last: where it lies, all that it names lies whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import click

from krzem.errors import DataError, StorageError, shorten
from krzem.train.durable import fsync_folder, storing, write_atomic

_BLOCK = 8 << 20
_HERE = "file://"
EXTRA = "krzem[stores]"

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether ``place`` names an object store; ``file://`` is this machine."""
    return "://" in str(place) and not str(place).startswith(_HERE)


def located(place: str | os.PathLike[str]) -> Path:
    """``place`` as a path: of this machine, or of an object store where it is a URL.

    Raises:
        DataError: fsspec, or its driver for the store, is not installed.
    """
    if str(place).startswith(_HERE):
        return Path(url2pathname(urlsplit(str(place)).path))
    if not is_url(place):
        return Path(place)
    try:
        found = importlib.import_module("upath").UPath(str(place))
        found.fs.exists  # noqa: B018  # loads the driver
    except ModuleNotFoundError as error:
        raise DataError(f"reading {place} needs {error.name}: pip install '{EXTRA}'") from error
    except (ImportError, ValueError) as error:  # of a driver, and of a scheme that none has
        raise DataError(
            f"{place} cannot be read: {shorten(str(error))}; fsspec has a driver for each kind of "
            "store, such as s3fs for s3:// and gcsfs for gs://"
        ) from error
    return found  # type: ignore[no-any-return]


class Location(click.ParamType[Path]):
    """A folder or file of this machine, or the URL of one in an object store."""

    name = "path or URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """``value`` as a path."""
        return value if isinstance(value, Path) else located(value)


@contextlib.contextmanager
def reaching(place: object) -> Iterator[None]:
    """Turn whatever a store's driver raises into one sentence; drivers share no kind of error."""
    try:
        yield
    except (DataError, StorageError):
        raise
    except Exception as error:
        why = shorten(str(error) or type(error).__name__)
        raise DataError(f"{place} cannot be reached: {why}") from error


def copy_verified(
    source: Path,
    target: Path,
    files: Mapping[str, str],
    manifest: str,
    progress: Progress | None = None,
    same: Callable[[bytes, bytes], bool] = operator.eq,
) -> int:
    """Copy ``files`` (name to SHA-256, or nothing where it is not known) from ``source`` to
    ``target``, then the file ``manifest``; either may be in a store.  Returns the bytes copied.

    What is there already with the right content stays, so that an interrupted copy is taken up.
    Every file that was written to a store is read back.  ``same`` says whether a manifest that is
    there already is of the same thing.

    Raises:
        DataError: a file is not what its hash says, here or there; a store cannot be reached; the
            manifest of something else is there.
    """
    with reaching(source):
        final = (source / manifest).read_bytes()
        sizes = {name: (source / name).stat().st_size for name in files}
    there = _content(target / manifest)
    if there is not None and not same(there, final):
        raise DataError(f"{target} holds another {manifest}; name another place")
    copied, done = 0, 0
    for name, stated in files.items():
        expected = stated or _hashed(source / name)
        if not _is(target / name, expected, sizes[name]):
            _copy(source / name, target / name, expected)
            copied += sizes[name]
        done += sizes[name]
        if progress is not None:
            progress(done, sum(sizes.values()))
    if there != final:
        _commit(target, manifest, final)
    return copied


def _is(path: Path, expected: str, size: int) -> bool:
    """Whether ``path`` has the content that ``expected`` is the hash of."""
    with reaching(path):
        if not path.exists() or path.stat().st_size != size:
            return False
        return _hashed(path) == expected


def _content(path: Path) -> bytes | None:
    with reaching(path):
        return path.read_bytes() if path.exists() else None


def _copy(source: Path, target: Path, expected: str) -> None:
    """One file, under its name once it is whole."""
    if is_url(target):
        with reaching(target), target.open("wb") as out:
            digest = _pour(source, out)
        _compare(source, digest, expected)
        _compare(target, _hashed(target), digest)
        return
    part = target.with_name(f"{target.name}.part")
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as out:
            digest = _pour(source, out)
            out.flush()
            os.fsync(out.fileno())
    try:
        _compare(source, digest, expected)
    except DataError:
        part.unlink()
        raise
    with storing(target):
        part.replace(target)


def _pour(source: Path, out: IO[bytes]) -> str:
    digest = hashlib.sha256()
    with reaching(source), source.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            out.write(block)
    return digest.hexdigest()


def _hashed(path: Path) -> str:
    digest = hashlib.sha256()
    with reaching(path), path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _compare(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise DataError(
            f"{path} is not what the manifest says: SHA-256 {found[:12]}… instead of "
            f"{expected[:12]}…; nothing was committed"
        )


def _commit(target: Path, name: str, content: bytes) -> None:
    if not is_url(target):
        with storing(target):
            target.mkdir(parents=True, exist_ok=True)
            fsync_folder(target)
        write_atomic(target / name, content)
        return
    with reaching(target):  # an object appears whole or not at all
        (target / name).write_bytes(content)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process of this machine fills ``folder``."""
    with storing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock").open("w")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cache_folder() -> Path:
    """Where copies of what lies in stores are kept: ``$XDG_CACHE_HOME/krzem``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "krzem"
