"""One controller per run: a lock that the kernel releases when its holder dies, however it dies.

The text in the file names the holder for people; a file left by a dead controller means nothing.
Where the file system does not know locks between hosts, the ledger's epoch still stops the older
of two controllers at its next write.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from krzem.errors import RunError

LOCK = "controller.lock"


class RunLock:
    """Held as a context; RunError where another controller holds it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor = -1

    def __enter__(self) -> RunLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not _lock(descriptor):
            holder = os.pread(descriptor, 4096, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise RunError(
                f"another controller runs this ({_named(holder)}). Look at it with "
                f"`krzem status {self._path.parent}`, or stop it with `krzem stop`"
            )
        self._descriptor = descriptor
        me = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
        with contextlib.suppress(OSError):  # a full disk takes no text, but the lock holds
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, me.encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)


def _named(holder: str) -> str:
    """What a holder wrote about itself, for people."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        told = json.loads(holder)
        return f"process {told['pid']} on {told['host']}"
    return "it does not say who it is"


def _lock(descriptor: int, tries: int = 10) -> bool:
    """Somebody who only asks whether it is held holds it for an instant: so try again."""
    for number in range(tries):
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if number + 1 < tries:
            time.sleep(0.03)
    return False


def held(folder: Path) -> bool:
    """Whether a controller is at work on the run in ``folder``; changes nothing."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
