"""The run's own clock: seconds since the run began, never backwards, whatever the date does.

Within one boot of one machine it follows the boot clock, which nobody can set.  Across a reboot
or another host only the date is left; a date that went backwards then counts as no time at all.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at all clocks."""

    run_seconds: float
    boot_id: str
    boot_seconds: float
    wall: float
    """Unix time, as the machine's date says it."""

    @property
    def iso(self) -> str:
        """The date for people: ISO 8601, UTC."""
        return iso(self.wall)


class RunClock:
    """Goes on from the last reading that was written down."""

    def __init__(
        self,
        last: Reading | None = None,
        *,
        wall: Callable[[], float] | None = None,
        boot: Callable[[], float] | None = None,
        boot_id: str | None = None,
    ) -> None:
        self._wall = wall or time.time
        self._boot = boot or boot_seconds
        self._boot_id = boot_id or read_boot_id()
        self._boot_start = self._boot()
        self._start = 0.0 if last is None else last.run_seconds + self._gap(last)

    def _gap(self, last: Reading) -> float:
        """Seconds between the last reading and now, while nobody watched."""
        if last.boot_id == self._boot_id:
            return max(0.0, self._boot_start - last.boot_seconds)
        return max(0.0, self._wall() - last.wall)

    def now(self) -> float:
        """Seconds since the run began."""
        return self._start + (self._boot() - self._boot_start)

    def at_least(self, seconds: float) -> None:
        """The run is known to be at least this old."""
        self._start += max(0.0, seconds - self.now())

    def read(self) -> Reading:
        """All clocks at once."""
        return Reading(
            run_seconds=self.now(),
            boot_id=self._boot_id,
            boot_seconds=self._boot(),
            wall=self._wall(),
        )


DAY = 86_400.0
"""Seconds."""


def duration(seconds: float | None) -> str:
    """A duration in its two largest units."""
    if seconds is None:
        return "unknown"
    units = (("d", DAY), ("h", 3600), ("min", 60), ("s", 1))
    for (name, size), (smaller, part) in itertools.pairwise(units):
        if seconds >= size:
            whole, rest = divmod(seconds, size)
            return f"{whole:.0f} {name} {rest // part:.0f} {smaller}"
    return f"{seconds:.1f} s"


def iso(wall: float) -> str:
    """A Unix time as ISO 8601, UTC, whole seconds."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="seconds")


def boot_seconds() -> float:
    """Seconds since boot, suspension included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read_boot_id() -> str:
    """The kernel's name for this boot."""
    return _BOOT_ID.read_text(encoding="ascii").strip()
