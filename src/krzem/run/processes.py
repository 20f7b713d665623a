"""Processes on this host: whether one that was written down still lives, whose it is, one alone.

A process number alone is reused by the system; with the moment it started, and the boot, it is not.
Every process of a run carries the run's folder in its environment, so that orphans are found even
where nothing was written down.  Linux only: it reads ``/proc``.

One controller per run: a lock that the kernel releases when its holder dies, however it dies.  The
text in the file names the holder for people; a file left by a dead controller means nothing.  Where
the file system does not know locks between hosts, the ledger's epoch still stops the older of two
controllers at its next write.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from krzem.errors import LaunchError, RunError
from krzem.run.clock import read_boot_id
from krzem.run.contract import ENV_RUN_DIR

_PROC = Path("/proc")
_DYING_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One process, told apart from every other that ever had its number."""

    pid: int
    start_ticks: int
    """Clock ticks from boot to its start."""
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The living process ``pid``; None where there is none (or only its remains)."""
        found = _stat(pid)
        if found is None or found[0] in ("Z", "X"):
            return None
        return cls(pid=pid, start_ticks=found[1], boot_id=read_boot_id())

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Identity:
        """From what :func:`dataclasses.asdict` gave."""
        return cls(
            pid=int(value["pid"]),
            start_ticks=int(value["start_ticks"]),
            boot_id=str(value["boot_id"]),
        )

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return Identity.of(self.pid) == self


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start of a process."""
    try:
        raw = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = raw.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def of_run(run_dir: Path) -> list[int]:
    """Living processes that were started for the run in ``run_dir``, this one left out."""
    return list(_found(run_dir))


def variables_of_run(run_dir: Path) -> list[dict[str, str]]:
    """The environments of these processes."""
    return [_variables(raw) for raw in _found(run_dir).values()]


def _found(run_dir: Path) -> dict[int, list[bytes]]:
    """Environments of the run's processes by their numbers, whichever way its folder is named."""
    place, mark = os.path.realpath(run_dir), f"{ENV_RUN_DIR}=".encode()
    found = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, ValueError):
            words = (entry / "environ").read_bytes().split(b"\0")
            named = [os.fsdecode(w[len(mark) :]) for w in words if w.startswith(mark)]
            if named and _is_within(named[0], place) and Identity.of(int(entry.name)):
                found[int(entry.name)] = words
    return found


def _is_within(folder: str, place: str) -> bool:
    """Whether ``folder`` is the run's, or lies in it as those of trial steps do."""
    found = os.path.realpath(folder)
    return found == place or found.startswith(f"{place}{os.sep}")


def _variables(words: Iterable[bytes]) -> dict[str, str]:
    pairs = (os.fsdecode(word).partition("=") for word in words if word)
    return {name: value for name, _, value in pairs}


def end_all(run_dir: Path, seconds: float = _DYING_SECONDS) -> int:
    """Kill every process of the run on this host and wait until none is left; how many there were.

    Raises LaunchError where one does not die (it hangs in the kernel, on a dead disk perhaps).
    """
    limit = time.monotonic() + seconds
    killed: set[int] = set()
    while found := of_run(run_dir):
        killed.update(found)
        _signal_all(found, signal.SIGKILL)
        if time.monotonic() > limit:
            raise LaunchError(
                f"processes {', '.join(map(str, found))} of the run in {run_dir} do not die; "
                "nothing new is started while they live"
            )
        time.sleep(0.02)
    return len(killed)


def _signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def memory_bytes(pids: Iterable[int]) -> int:
    """Memory of these processes together, shared pages counted once."""
    return sum(_proportional(pid) for pid in pids)


def _proportional(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


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
