"""Whether the ranks of a step meet: collectives in one order, every message with its other end.

Ranks run their records side by side.  A collective holds a rank until all members of its group that
are looked at are at the same one; a message holds it where it waits for it.  Where no rank can go
on, the step would hang: what each waits for is said.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from krzem.train.rehearsal.record import Communication, Wait

Program = Sequence[Communication | Wait]
_UNEVEN = frozenset({"all-to-all"})
"""Collectives whose ranks may bring different sizes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One place at which a step goes wrong."""

    kind: str
    """``order``, ``size``, ``deadlock`` or ``message``."""
    ranks: tuple[int, ...]
    said: str
    """For people."""


@dataclass(slots=True)
class _Run:
    """How far one rank has come."""

    rank: int
    program: Program
    place: int = 0
    counted: dict[tuple[int, ...], int] = field(default_factory=lambda: defaultdict(int))
    """Collectives done, by group."""
    open: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """Messages of each batch that have no other end yet."""

    @property
    def now(self) -> Communication | Wait | None:
        return self.program[self.place] if self.place < len(self.program) else None


def find_faults(programs: Mapping[int, Program]) -> list[Fault]:
    """Every fault of a step whose ranks do ``programs``, by global rank; none where all end.

    Ranks that are not given are taken to do what their group does.
    """
    return _Meeting(programs).run()


class _Meeting:
    def __init__(self, programs: Mapping[int, Program]) -> None:
        self.runs = {rank: _Run(rank, program) for rank, program in programs.items()}
        self.faults: list[Fault] = []
        self.sent: dict[tuple[int, int], deque[Communication]] = defaultdict(deque)
        self.awaited: dict[tuple[int, int], deque[Communication]] = defaultdict(deque)

    def run(self) -> list[Fault]:
        while any(self._advance(run) for run in self.runs.values()):
            if self.faults:
                return self.faults
        stuck = [run for run in self.runs.values() if run.now is not None]
        if stuck and not self.faults:
            self.faults.append(_deadlock(stuck))
        if not stuck:
            self._left_over()
        return self.faults

    def _advance(self, run: _Run) -> bool:
        """Go on with one rank as far as it comes; whether it came anywhere."""
        start = run.place
        while (event := run.now) is not None and not self.faults:
            if isinstance(event, Wait):
                if run.open.get(event.batch):
                    break
                run.place += 1
            elif event.peer is not None:
                self._post(run, event, event.peer)
                run.place += 1
            elif not self._meet(run, event):
                break
        return run.place > start

    def _meet(self, run: _Run, event: Communication) -> bool:
        """Let all members that are at this collective go on, if all are."""
        members = [self.runs[rank] for rank in event.ranks if rank in self.runs]
        others = [m.now for m in members]
        if not all(isinstance(o, Communication) and o.ranks == event.ranks for o in others):
            return False
        for member in members:
            other = member.now
            assert isinstance(other, Communication)
            fault = _difference(run, event, member, other)
            if fault is not None:
                self.faults.append(fault)
                return False
        for member in members:
            member.counted[event.ranks] += 1
            member.place += 1
        return True

    def _post(self, run: _Run, event: Communication, peer: int) -> None:
        if peer not in self.runs or event.batch is None:
            return
        run.open[event.batch] += 1
        sends = event.operation == "send"
        key = (run.rank, peer) if sends else (peer, run.rank)
        waiting = self.awaited if sends else self.sent
        if not waiting[key]:
            (self.sent if sends else self.awaited)[key].append(event)
            return
        other = waiting[key].popleft()
        if (other.size, other.dtype) != (event.size, event.dtype):
            send, receive = (event, other) if sends else (other, event)
            self.faults.append(_sizes(key, send, receive))
        run.open[event.batch] -= 1
        if other.batch is not None:
            self.runs[peer].open[other.batch] -= 1

    def _left_over(self) -> None:
        for kind, queues in (("sends", self.sent), ("waits for", self.awaited)):
            for (source, target), queue in queues.items():
                if queue:
                    rank, peer = (source, target) if kind == "sends" else (target, source)
                    said = (
                        f"rank {rank} {kind} {len(queue)} messages "
                        f"{'to' if kind == 'sends' else 'from'} rank {peer} that have no other end"
                    )
                    self.faults.append(Fault("message", (rank, peer), said))


def _difference(a: _Run, one: Communication, b: _Run, two: Communication) -> Fault | None:
    where = f"collective {a.counted[one.ranks] + 1} of group {one.group} ({len(one.ranks)} ranks)"
    if one.operation != two.operation:
        said = f"{where}: rank {a.rank} is at {_named(one)}, rank {b.rank} at {_named(two)}"
        return Fault("order", (a.rank, b.rank), said)
    uneven = one.operation in _UNEVEN
    if one.dtype != two.dtype or (one.size != two.size and not uneven):
        said = f"{where}: rank {a.rank} brings {_named(one)}, rank {b.rank} {_named(two)}"
        return Fault("size", (a.rank, b.rank), said)
    return None


def _sizes(key: tuple[int, int], send: Communication, receive: Communication) -> Fault:
    said = (
        f"rank {key[0]} sends {send.size:,} bytes of {send.dtype} to rank {key[1]}, which expects "
        f"{receive.size:,} bytes of {receive.dtype}"
    )
    return Fault("size", key, said)


def _deadlock(stuck: Sequence[_Run]) -> Fault:
    shown = [f"rank {run.rank} {_waits(run)}" for run in stuck[:4]]
    more = f"; and {len(stuck) - 4} more" if len(stuck) > 4 else ""
    said = f"no rank can go on: {'; '.join(shown)}{more}"
    return Fault("deadlock", tuple(run.rank for run in stuck), said)


def _waits(run: _Run) -> str:
    event = run.now
    if isinstance(event, Communication):
        number = run.counted[event.ranks] + 1
        return f"waits in {_named(event)}, collective {number} of group {event.group}"
    assert isinstance(event, Wait)
    messages = [
        f"{e.operation} {'to' if e.operation == 'send' else 'from'} rank {e.peer}"
        for e in run.program[: run.place]
        if isinstance(e, Communication) and e.batch == event.batch
    ]
    return f"waits for {', '.join(messages)}"


def _named(event: Communication) -> str:
    return f"{event.operation} of {event.size:,} bytes of {event.dtype}"
