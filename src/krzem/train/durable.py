"""Files that are either whole or not there.

A file is written beside its place under a name of its own, forced to the disk, and renamed into
place; then the folder is forced to the disk too, because the rename lives there.  A crash at any
instant leaves the old file or the new one.  A full disk or a read-only folder becomes one sentence
(:class:`~krzem.errors.StorageError`) that says what was being written and what to do.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from krzem.errors import RunError, StorageError

TEMPORARY = ".part"
"""Ending of files that are still being written; anything with it may be deleted."""


def fsync_folder(folder: Path) -> None:
    """Force the names in ``folder`` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_place(folder: Path) -> None:
    """See that ``folder`` could be made and written to, and touch nothing.

    Raises:
        RunError: a file is in the way, or its place may not be written to.
    """
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))
    if not there.is_dir():
        raise _unusable(folder, NotADirectoryError(errno.ENOTDIR, ""))
    if not os.access(there, os.W_OK | os.X_OK):
        raise _unusable(folder, PermissionError(errno.EACCES, f"{there} is read-only here"))


def check_folder(folder: Path) -> None:
    """Make ``folder`` and see that files can be written in it.

    Raises:
        RunError: it cannot be made, or may not be written to.
    """
    probe = folder / f".{socket.gethostname()}.{os.getpid()}{TEMPORARY}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(_sentence(folder, error)) from error
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: OSError) -> RunError:
    """Why the run's folder cannot be written to, and what to change."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        why = f"{_in_the_way(folder)} with [run] folder"
    else:
        why = (
            f"{error.strerror or error}; give one that you may write to with [run] folder, or "
            "change its permissions"
        )
    return RunError(f"the run's folder {folder} cannot be used: {why}")


def write_atomic(
    path: Path, content: bytes, before_rename: Callable[[], None] | None = None
) -> None:
    """Replace ``path`` by ``content``, all or nothing; ``before_rename`` may still refuse.

    Raises StorageError where the disk does not take it; whatever ``before_rename`` raises passes
    through, with ``path`` as it was.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with storing(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if before_rename is not None:
            before_rename()
        with storing(path):
            temporary.replace(path)
            fsync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def canonical_json(value: Any) -> bytes:
    """``value`` as JSON that depends on nothing but the value: sorted keys, no spaces, no NaN."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn an operating-system error while writing ``path`` into one clear sentence."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(_sentence(path, error)) from error


def _sentence(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"cannot write {path}: the disk is full{_free(path)}; make room and start again"
    if error.errno == errno.EFBIG:
        return f"cannot write {path}: larger than the file-size limit here (see ulimit -f)"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"cannot write {path}: {error.strerror}; choose a folder you may write to, or change "
            "its permissions"
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"cannot write {path}: {_in_the_way(path)}"
    return f"cannot write {path}: {error.strerror or error}"


def _in_the_way(path: Path) -> str:
    """Which part of ``path`` is a file where a folder is needed."""
    file = next((p for p in (path, *path.parents) if os.path.isfile(p)), path)
    what = "it" if file == path else str(file)
    return f"{what} is a file, and a folder is needed there; name another folder"


def _free(path: Path) -> str:
    folder = next((p for p in (path, *path.parents) if p.is_dir()), None)
    with contextlib.suppress(OSError):
        if folder is not None:
            return f" ({shutil.disk_usage(folder).free / 1e9:.2f} GB free)"
    return ""


_LFS = b"version https://git-lfs.github.com/spec/"


def lfs_pointer(path: Path) -> str:
    """What to say where ``path`` is what Git LFS leaves in place of a large file; else nothing."""
    with path.open("rb") as file:
        if file.read(len(_LFS)) != _LFS:
            return ""
    return (
        f"{path} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull` in its "
        "repository"
    )
