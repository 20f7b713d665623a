"""Judging processes by their heartbeats: hung, slow or too large; who holds the others up.

Time here is the controller's own monotonic clock, and a heartbeat counts as new when its content
differs from the last look: no date is ever compared with another.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from krzem.run.contract import PHASES, Heartbeat
from krzem.run.gate_settings import Gates, Memory, Stall, Straggler
from krzem.run.gates import Finding

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


IN_A_STEP = frozenset({"data", "compute", "reduce", "update"})
"""Phases that last about as long as a step; the others may take the time of a load."""


@dataclass(slots=True)
class _Seen:
    beat: Heartbeat
    since: float


class HeartbeatJudge:
    """Follows the heartbeats of one attempt over time, and says when a gate fires."""

    def __init__(self, gates: Gates, clock: Callable[[], float]) -> None:
        self._gates = gates
        self._clock = clock
        self._begun = clock()
        self._seen: dict[int, _Seen] = {}
        self._work = OwnWork(gates.straggler or Straggler())
        self._full = 0

    @property
    def beats(self) -> dict[int, Heartbeat]:
        """The last heartbeat of every rank."""
        return {rank: seen.beat for rank, seen in self._seen.items()}

    def settle(self, gates: Gates) -> None:
        """Judge by other gates from now on."""
        self._gates = gates
        self._work.gate = gates.straggler or Straggler()

    def look(
        self,
        beats: Mapping[int, Heartbeat],
        *,
        step_seconds: float | None,
        memory: int | None = None,
        memory_limit: float | None = None,
    ) -> list[Finding]:
        """Take a look at the ranks; ``step_seconds`` is what a step usually takes."""
        now = self._clock()
        for rank, beat in beats.items():
            seen = self._seen.get(rank)
            if seen is None or seen.beat != beat:
                self._seen[rank] = _Seen(beat, now)
        g = self._gates
        found = [
            g.stall and self._stalled(g.stall, now, step_seconds),
            self.straggling(beats),
            g.memory and self._full_memory(g.memory, memory, memory_limit),
        ]
        return [finding for finding in found if finding]

    def waiting(self) -> None:
        """The job waits in a queue: silence means nothing."""
        self._begun = self._clock()
        self._seen.clear()
        self._work = OwnWork(self._work.gate)

    def _stalled(self, gate: Stall, now: float, step_seconds: float | None) -> Finding | None:
        """Stalled where any rank's beat is older than its phase allows: the others wait for it."""
        if not self._seen:
            silent = now - self._begun
            return None if silent <= gate.load else self._stall(gate, silent, gate.load, "start")
        usual = max(gate.seconds, gate.factor * (step_seconds or 0.0))
        for seen in self._seen.values():
            limit = usual if seen.beat.phase in IN_A_STEP else max(gate.load, usual)
            silent = now - seen.since
            if silent > limit:
                return self._stall(gate, silent, limit, seen.beat.phase)
        return None

    def _stall(self, gate: Stall, silent: float, limit: float, phase: str) -> Finding:
        behind = self.last_ranks()
        names = ", ".join(f"{b.rank} on {b.host} in {b.phase!r}" for b in behind[:4])
        blamed = f"; furthest behind: rank {names}" if behind else ""
        return Finding(
            gate="stall",
            action=gate.action,
            message=f"no sign of life for {silent:,.1f} s in {phase!r} (limit {limit:,.0f} s)"
            f"{blamed}",
            evidence=tuple(_row(seen.beat) for _, seen in sorted(self._seen.items())),
        )

    def last_ranks(self) -> list[Heartbeat]:
        """The ranks that are furthest behind: the others are most likely waiting for them."""
        places = {rank: _place(seen.beat) for rank, seen in self._seen.items()}
        last = min(places.values(), default=None)
        return [self._seen[rank].beat for rank in sorted(places) if places[rank] == last]

    def straggling(self, beats: Mapping[int, Heartbeat]) -> Finding | None:
        """Whether one rank's own work takes longer than the others'."""
        gate = self._gates.straggler
        for rank, beat in beats.items():
            self._work.tell(rank, beat.work)
        slow = self._work.judge() if gate else None
        if gate is None or slow is None:
            return None
        hosts = {rank: beat.host for rank, beat in beats.items()}
        return Finding(
            gate="straggler",
            action=gate.action,
            message=f"rank {slow.rank} on {hosts.get(slow.rank)} takes {slow.ratio:.1f} times as "
            f"long as the others in its own work (gate {gate.ratio:g}, median of the {gate.steps} "
            f"steps up to {slow.step:,})",
            evidence=tuple(
                {"rank": rank, "host": hosts.get(rank), "own_seconds": seconds}
                for rank, seconds in sorted(slow.seconds.items())
            ),
        )

    def _full_memory(self, gate: Memory, memory: int | None, limit: float | None) -> Finding | None:
        if memory is None or limit is None or memory <= gate.above * limit:
            self._full = 0
            return None
        self._full += 1
        if self._full < gate.steps:
            return None
        self._full = 0
        return Finding(
            gate="memory",
            action=gate.action,
            message=f"{memory / 2**30:.2f} GiB in use, {memory / limit:.0%} of the limit",
            evidence=({"memory_bytes": memory, "limit_bytes": limit},),
        )


def _place(beat: Heartbeat) -> tuple[int, int]:
    phase = PHASES.index(beat.phase) if beat.phase in PHASES else 0
    return beat.step, phase


def _row(beat: Heartbeat) -> dict[str, Any]:
    """A heartbeat as evidence, without its own work step by step."""
    return {name: value for name, value in asdict(beat).items() if name != "work"}
