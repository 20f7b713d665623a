"""All runs below a folder, and every rank of one run, as rows for people and for JSON."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from krzem.errors import KrzemError
from krzem.run.clock import duration
from krzem.run.contract import HEARTBEATS, read_heartbeats
from krzem.run.gate_settings import Straggler
from krzem.run.health import others_median
from krzem.run.ledger import LEDGER, Reader
from krzem.run.status import RunStatus, read_status
from krzem.run.untrusted import printable
from krzem.run.view import count, last_word, percent

DEPTH = 3
"""Folders below the one that is asked about in which a run is looked for."""
SLOW = Straggler().ratio
"""Times the median of the others: the gate on stragglers' default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One run among others; ``status`` is None where nothing can be read from its ledger."""

    folder: Path
    status: RunStatus | None
    fault: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: what a list needs, not the whole story."""
        s = self.status
        if s is None:
            return {"folder": str(self.folder), "state": "unreadable", "reason": self.fault}
        return {
            "folder": str(self.folder), "name": s.name, "state": s.state, "pool": s.pool,
            "controlled": s.controlled, "step": s.step, "tokens": s.tokens,
            "goal_tokens": s.goal_tokens, "share": s.share, "loss": s.loss,
            "tokens_per_s": s.tokens_per_s, "planned_tokens_per_s": s.planned_tokens_per_s,
            "goodput": s.goodput, "left_seconds": s.left_seconds,
            "interruptions": len(s.interruptions), "gates": len(s.gates),
            "limits": list(s.limits), "end": last_word(s),
        }  # fmt: skip


def runs_below(folder: Path) -> list[Listed]:
    """Every run in ``folder`` or up to three folders below it, by its place."""
    return [_listed(path) for path in sorted(_holding_runs(folder, DEPTH))]


def _holding_runs(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / LEDGER).is_file():
        yield folder
        return
    try:
        below = [p for p in folder.iterdir() if depth and p.is_dir() and not p.is_symlink()]
    except OSError:
        return
    for path in below:
        yield from _holding_runs(path, depth - 1)


def _listed(folder: Path) -> Listed:
    try:
        return Listed(folder=folder, status=read_status(folder))
    except (KrzemError, OSError) as error:
        return Listed(folder=folder, status=None, fault=printable(str(error)))


def format_runs(runs: Sequence[Listed]) -> str:
    """A line for each run."""
    return "\n".join(printable(_line(run)) for run in runs)


def _line(run: Listed) -> str:
    s = run.status
    if s is None:
        return f"{run.folder}: unreadable: {run.fault}"
    where = f" on {s.pool}" if s.pool and s.state not in ("done", "failed") else ""
    left = "" if s.left_seconds is None else f", {duration(s.left_seconds)} left"
    speed = f", {count(s.tokens_per_s)} tokens/s" if s.tokens_per_s else ""
    return (
        f"{s.name}  {run.folder}: {s.state}{where}, {s.share:.0%} of {count(s.goal_tokens)} "
        f"tokens{speed}{left}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """Where one process of the newest attempt is."""

    rank: int
    host: str
    phase: str
    step: int
    silent_seconds: float
    """Since its last sign of life, by the dates of the file system."""
    own_seconds: float | None
    """Median of its own work in a step, waiting for others left out; None where it tells none."""
    against_others: float | None
    """The same over the median of the other ranks."""
    memory_bytes: int | None

    @property
    def is_slow(self) -> bool:
        """Whether it holds the others up."""
        return self.against_others is not None and self.against_others > SLOW

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def ranks_of(folder: Path) -> list[Rank]:
    """Every rank of the newest attempt of the run in ``folder``, by its number."""
    with Reader(folder) as reader:
        attempts = reader.attempts()
    beats = read_heartbeats(folder, attempts[-1].id) if attempts else {}
    own = {rank: statistics.median(s for _, s in b.work) for rank, b in beats.items() if b.work}
    now = time.time()
    return [
        Rank(
            rank=rank,
            host=beat.host,
            phase=beat.phase,
            step=beat.step,
            silent_seconds=_age(folder / HEARTBEATS / f"rank-{rank}", now),
            own_seconds=own.get(rank),
            against_others=_against(own, rank),
            memory_bytes=beat.memory_bytes,
        )
        for rank, beat in sorted(beats.items())
    ]


def _age(path: Path, now: float) -> float:
    try:
        return max(0.0, now - path.stat().st_mtime)
    except OSError:
        return 0.0


def _against(own: dict[int, float], rank: int) -> float | None:
    if rank not in own or len(own) < 2 or (usual := others_median(own, rank)) <= 0:
        return None
    return own[rank] / usual


def format_ranks(ranks: Iterable[Rank]) -> str:
    """A table in plain text, slow ranks marked."""
    head = f"{'rank':>6}  {'step':>9}  {'phase':<9} {'silent':>9} {'own work':>10} {'others':>7}"
    lines = [f"{head} {'memory':>9}  host"]
    for r in ranks:
        own = "–" if r.own_seconds is None else f"{r.own_seconds:,.3f} s"
        memory = "–" if r.memory_bytes is None else f"{r.memory_bytes / 2**30:,.2f} GiB"
        lines.append(
            f"{r.rank:>6}  {r.step:>9,}  {r.phase:<9} {r.silent_seconds:>7,.1f} s {own:>10} "
            f"{percent(r.against_others) if r.against_others else '–':>7} {memory:>9}  {r.host}"
            f"{'  slow' if r.is_slow else ''}"
        )
    return "\n".join(printable(line) for line in lines)
