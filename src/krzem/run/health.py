"""Judging processes by their heartbeats: hung, slow or too large.

Time here is the controller's own monotonic clock, and a heartbeat counts as new when its content
differs from the last look: no date is ever compared with another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from krzem.run.contract import PHASES, Heartbeat
from krzem.run.gate_settings import Gates, Memory, Stall, Straggler
from krzem.run.gates import Finding
from krzem.run.straggler import OwnWork

IN_A_STEP = frozenset({"data", "compute", "reduce", "update"})
"""Phases that last about as long as a step; the others may take the time of a load."""


@dataclass(slots=True)
class _Seen:
    beat: Heartbeat
    since: float


class Pulse:
    """The heartbeats of one attempt over time."""

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
