"""Which rank holds the others up, from what every rank says of its own work in each step.

A heartbeat carries the last steps, so that a controller that looks rarely still sees all of them;
what decides is a median over steps against the median of the other ranks, so that neither a hiccup
nor one odd step counts.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from krzem.run.gate_settings import Straggler

_LOOKS_PER_WINDOW = 8
"""How often a window of steps is judged while it fills anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """A rank that takes longer than the others, over the steps up to ``step``."""

    rank: int
    step: int
    seconds: dict[int, float]
    """Median of its own work, by rank."""

    @property
    def ratio(self) -> float:
        """Its own work against the median of the others."""
        return self.seconds[self.rank] / others_median(self.seconds, self.rank)


@dataclass(slots=True)
class OwnWork:
    """The own work of each rank, step by step."""

    gate: Straggler
    _told: dict[int, dict[int, float]] = field(default_factory=dict)
    """By rank and step: seconds, until every rank has told of the step."""
    _windows: dict[int, deque[float]] = field(default_factory=dict)
    _taken: int = -1
    """The last step that all ranks have told of."""
    _fresh: int = 0

    def tell(self, rank: int, work: Iterable[tuple[int, float]]) -> None:
        """What one rank's heartbeat says."""
        mine = self._told.setdefault(rank, {})
        mine.update((step, seconds) for step, seconds in work if step > self._taken)

    def judge(self) -> Slow | None:
        """The slowest rank of the first new window in which one is too slow."""
        if len(self._told) < 2:
            return None
        common = set.intersection(*(set(mine) for mine in self._told.values()))
        found = None
        for step in sorted(common):
            found = self._take(step) or found
        for mine in self._told.values():
            for step in [s for s in mine if s <= self._taken]:
                del mine[step]
        return found

    def _take(self, step: int) -> Slow | None:
        """Move every rank's window on to ``step``."""
        for rank, mine in self._told.items():
            window = self._windows.setdefault(rank, deque(maxlen=self.gate.steps))
            window.append(mine[step])
        self._taken = step
        self._fresh += 1
        full = all(len(window) == self.gate.steps for window in self._windows.values())
        if not full or self._fresh < self.gate.steps // _LOOKS_PER_WINDOW:
            return None
        self._fresh = 0
        seconds = {rank: statistics.median(window) for rank, window in self._windows.items()}
        rank = max(seconds, key=seconds.__getitem__)
        others = others_median(seconds, rank)
        if others <= 0 or seconds[rank] <= self.gate.ratio * others:
            return None
        return Slow(rank=rank, step=step, seconds=seconds)


def others_median(seconds: dict[int, float], rank: int) -> float:
    """The median over all ranks but one, of which there is at least one."""
    return statistics.median(s for r, s in seconds.items() if r != rank)
