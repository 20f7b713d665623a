"""When the passes of a rehearsed step run, and the step as a trace for Perfetto.

A pass takes as long as the slower of its products at the device's peak and its bytes at the rate of
its memory: a bound from below.  A pass that waits for a message begins when that has been sent.
Without a device an operator counts as a microsecond.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from krzem.train.rehearsal.record import Communication, Wait
from krzem.train.rehearsal.stages import RankSummary, Rehearsal, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Of one device."""

    flops: float
    """Dense products a second, in the run's arithmetic."""
    bytes: float
    """Memory traffic a second."""


@dataclass(frozen=True, slots=True)
class Timed:
    """One pass, or one collective, with its seconds."""

    name: str
    start: float
    seconds: float
    track: str
    size: int = 0


def trace(found: Rehearsal, rates: Rates | None = None) -> dict[str, Any]:
    """The step as Chrome's trace events: a process for each rank, passes and collectives as tracks,
    memory by kind as a counter."""
    times = schedule(found.ranks, rates)
    events: list[dict[str, Any]] = []
    for rank in found.ranks:
        name = f"rank {rank.rank}, stage {rank.stage}"
        events.append(_meta(rank.rank, "process_name", name))
        events += [_complete(rank.rank, timed) for timed in times[rank.rank]]
        events += _memory(rank, times[rank.rank])
    basis = "an operator as a microsecond" if rates is None else f"{rates.flops:.3g} FLOP/s"
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"layout": str(found.step.layout), "time": basis},
    }


def schedule(ranks: Sequence[RankSummary], rates: Rates | None) -> dict[int, list[Timed]]:
    """What each rank does when; a pass waits for the messages that it needs."""
    clocks = {rank.rank: _Clock(rank, rates) for rank in ranks}
    posted: dict[tuple[int, int], list[float]] = defaultdict(list)
    while any(clock.advance(posted, clocks) for clock in clocks.values()):
        pass
    return {rank: clock.found for rank, clock in clocks.items()}


class _Clock:
    """One rank, going through its passes and its messages in order."""

    def __init__(self, rank: RankSummary, rates: Rates | None) -> None:
        self.rank, self.rates = rank, rates
        self.now = 0.0
        self.found: list[Timed] = []
        self._steps = _in_order(rank)
        self._next: Span | Communication | Wait | None = next(self._steps, None)
        self._taken: dict[int, int] = defaultdict(int)
        self._batches: dict[int, list[tuple[int, int]]] = defaultdict(list)

    def advance(self, posted: dict[tuple[int, int], list[float]], clocks: dict[int, Any]) -> bool:
        """Go as far as the messages that have been sent allow; whether that was anywhere."""
        moved = False
        while (item := self._next) is not None:
            if isinstance(item, Wait) and not self._arrived(item, posted, clocks):
                break
            if isinstance(item, Span):
                self._pass(item)
            elif isinstance(item, Communication):
                self._communicate(item, posted)
            self._next, moved = next(self._steps, None), True
        return moved

    def _arrived(
        self, wait: Wait, posted: dict[tuple[int, int], list[float]], clocks: dict[int, Any]
    ) -> bool:
        for peer, number in self._batches[wait.batch]:
            times = posted[(peer, self.rank.rank)]
            if peer in clocks and number >= len(times):
                return False
            if number < len(times):
                self.now = max(self.now, times[number])
        return True

    def _pass(self, span: Span) -> None:
        if self.rates is None:
            seconds = (span.stop - span.start) * 1e-6
        else:
            seconds = max(span.flops / self.rates.flops, span.traffic / self.rates.bytes)
        phase = span.phase
        if phase.what != "between":
            name = phase.what
            if phase.what in ("forward", "backward", "weights"):
                name = f"{phase.what} {phase.micro_batch}" + (
                    f" of chunk {phase.chunk}" if phase.chunk else ""
                )
            self.found.append(Timed(name, self.now, seconds, "passes"))
        self.now += seconds

    def _communicate(
        self, event: Communication, posted: dict[tuple[int, int], list[float]]
    ) -> None:
        name = f"{event.operation} {event.group}"
        self.found.append(Timed(name, self.now, 0.0, "collectives", event.size))
        if event.peer is None or event.batch is None:
            return
        if event.operation == "send":
            posted[(self.rank.rank, event.peer)].append(self.now)
        else:
            self._batches[event.batch].append((event.peer, self._taken[event.peer]))
            self._taken[event.peer] += 1


def _in_order(rank: RankSummary) -> Iterator[Span | Communication | Wait]:
    """Passes and communications by the operator at which they begin."""
    events = iter(rank.program)
    event = next(events, None)
    for span in rank.spans:
        while event is not None and event.at <= span.start:
            yield event
            event = next(events, None)
        yield span
    while event is not None:
        yield event
        event = next(events, None)


def _meta(pid: int, name: str, value: str) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "name": name, "args": {"name": value}}


def _complete(pid: int, timed: Timed) -> dict[str, Any]:
    event = {
        "ph": "X",
        "pid": pid,
        "tid": timed.track,
        "name": timed.name,
        "ts": timed.start * 1e6,
        "dur": timed.seconds * 1e6,
    }
    return event | ({"args": {"bytes": timed.size}} if timed.size else {})


def _memory(rank: RankSummary, times: Sequence[Timed]) -> Iterator[dict[str, Any]]:
    """The counter of memory, at the time of the pass that each moment falls in."""
    passes = [t for t in times if t.track == "passes"]
    spans = [s for s in rank.spans if s.phase.what != "between"]
    at = list(zip(spans, passes, strict=True))
    place = 0
    for moment in rank.moments:
        while place + 1 < len(at) and at[place + 1][0].start <= moment.operator:
            place += 1
        if not at:
            return
        span, timed = at[place]
        share = (moment.operator - span.start) / max(span.stop - span.start, 1)
        when = timed.start + min(max(share, 0.0), 1.0) * timed.seconds
        yield {
            "ph": "C",
            "pid": rank.rank,
            "name": "memory",
            "ts": when * 1e6,
            "args": {kind: round(n / 2**30, 3) for kind, n in moment.bytes.items()},
        }
