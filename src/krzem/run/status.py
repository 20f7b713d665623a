"""How a run is doing, from its ledger and its steps: what status, live view and report show.

Everything is a plain value, ready for JSON.  Goodput is the time in steps that count over the wall
clock since the first attempt began; a step that had to be done again counts for nothing.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from krzem.errors import DataError
from krzem.run.contract import StepRecord
from krzem.run.history import History, Metrics, prove_samples
from krzem.run.ledger import Reader
from krzem.run.processes import held
from krzem.run.rows import Attempt, Cause, Decision, Event, Fired, RunRow, State

RECENT = 50
"""Steps that "now" is taken from."""
POINTS = 400
"""Points of a curve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStory:
    """One pool's part."""

    name: str
    tokens: int
    steps: int
    lost_steps: int
    attempts: int
    faults: int
    step_seconds: float
    """Time in steps that count."""
    tokens_per_s: float | None
    """Median of its steps."""
    planned_tokens_per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruption:
    """What one fault, stop or move cost."""

    attempt: int
    pool: str
    next_pool: str | None
    cause: str
    detail: str
    at: float
    """Run seconds."""
    lost_steps: int
    lost_seconds: float
    """Of steps that were done again."""
    recovery_seconds: float | None
    """From its end to the first step of the next attempt, queues and measurements included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """All of it."""

    name: str
    folder: str
    state: str
    pool: str | None
    controlled: bool
    """Whether a controller is at work."""
    step: int
    tokens: int
    goal_tokens: int
    run_seconds: float
    loss: float | None
    tokens_per_s: float | None
    planned_tokens_per_s: float | None
    goodput: float | None
    left_seconds: float | None
    """At the recent speed and the run's goodput."""
    pools: tuple[PoolStory, ...]
    interruptions: tuple[Interruption, ...]
    gates: tuple[Mapping[str, Any], ...]
    decisions: tuple[Mapping[str, Any], ...]
    witness: tuple[Mapping[str, Any], ...]
    proof: str | None
    """How moves to other pools were proved, or that they were not; None: there was none."""
    last_event: str
    samples_exact: bool
    sample_gaps: tuple[str, ...]
    curve: tuple[tuple[int, float, float, int], ...]
    """(step, loss, tokens/s, attempt), thinned out."""
    reason: str | None
    """Why it stopped or failed."""
    limits: tuple[Mapping[str, Any], ...]
    """Deadline and budget: ``what``, ``kept`` (None while that is open) and ``message``."""
    stopped_by_gate: bool
    """Whether a gate, and not a person, stopped it."""
    unknown: tuple[str, ...]
    """What nobody can say any more, such as what stood in a ledger that was lost."""
    bad_lines: int
    """Lines of the metrics that are no record of a step."""
    bad_quotes: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the tokens that are trained."""
        return min(1.0, self.tokens / self.goal_tokens)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


class StatusReader:
    """Tells the status of a run again and again: of its steps only the new ones are read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._metrics = Metrics(folder)

    def read(self) -> RunStatus:
        """The status so far; DataError where there is no run."""
        size = self._metrics.size()  # whatever is written so far is of attempts in the ledger
        with Reader(self._folder) as reader:
            run = reader.run()
            if run is None:
                raise DataError(f"the run in {self._folder} is only just being made")
            found = _Found(
                run=run,
                attempts=reader.attempts(),
                decisions=reader.decisions(),
                fired=reader.fired(),
                events=reader.events(last=20),
                unknown=[e.message for e in reader.events(UNKNOWN)],
            )
        self._metrics.newest_attempt = max([a.id for a in found.attempts], default=0)
        self._metrics.read(size)
        return _status(self._folder, found, self._metrics)


UNKNOWN = "unknown"
"""Kind of events that say what nobody can know any more."""
LIMITS = ("deadline", "budget")
"""Subjects of the decisions that say whether a limit was kept."""


def read_status(folder: Path) -> RunStatus:
    """The status of the run in ``folder``; DataError where there is none."""
    return StatusReader(folder).read()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What the ledger says."""

    run: RunRow
    attempts: Sequence[Attempt]
    decisions: Sequence[Decision]
    fired: Sequence[Fired]
    events: Sequence[Event]
    unknown: Sequence[str]


def _status(folder: Path, found: _Found, metrics: Metrics) -> RunStatus:
    run, history, attempts, decisions = found.run, metrics.history, found.attempts, found.decisions
    recent = history.of_attempt(history.kept[-1].attempt, RECENT) if history.kept else []
    goal = _goal(run)
    speed = statistics.median(r.tokens_per_s for r in recent) if recent else None
    good = goodput(history, attempts, run.run_seconds)
    left = (goal - history.tokens) / speed / good if speed and good else None
    proof = prove_samples(history.kept, history.columns, from_start=not _came(decisions))
    plans = {d.subject.removeprefix("plan of "): d.evidence for d in decisions
             if d.subject.startswith("plan of ")}  # fmt: skip
    return RunStatus(
        name=run.name,
        folder=str(folder),
        state=str(run.state),
        pool=run.pool,
        controlled=held(folder),
        step=history.step,
        tokens=history.tokens,
        goal_tokens=goal,
        run_seconds=run.run_seconds,
        loss=recent[-1].loss if recent else None,
        tokens_per_s=speed,
        planned_tokens_per_s=_planned(plans.get(run.pool or "")),
        goodput=good,
        left_seconds=None if run.state.final else left,
        pools=tuple(_pools(attempts, history, plans)),
        interruptions=tuple(_interruptions(attempts, history)),
        gates=tuple(asdict(f) for f in found.fired),
        decisions=tuple(asdict(d) for d in decisions),
        witness=tuple(asdict(d) for d in decisions if d.subject.startswith("witness ")),
        proof=_proof(decisions),
        last_event=found.events[-1].message if found.events else "",
        samples_exact=proof.exact,
        sample_gaps=proof.gaps,
        curve=tuple(_curve(history.kept)),
        reason=_reason(run, found.events),
        stopped_by_gate=run.state is State.STOPPED and _by_gate(found.events),
        limits=_limits(decisions),
        unknown=tuple(found.unknown),
        bad_lines=metrics.bad,
        bad_quotes=tuple(metrics.quotes),
    )


def _came(decisions: Sequence[Decision]) -> bool:
    """Whether the run goes on here from a checkpoint of another site."""
    return any(d.choice == "arrived" for d in decisions)


def _proof(decisions: Sequence[Decision]) -> str | None:
    """The outcome of every check of a checkpoint on another pool, the newest of each."""
    told = {d.subject: d for d in decisions if d.subject.startswith("witness ")}
    checks = [d for d in told.values() if d.choice in ("passed", "failed", "not checked")]
    if not checks:
        return None
    parts = []
    for choice, word in (("not checked", "not proved"), ("failed", "failed"), ("passed", "proved")):
        found = [d for d in checks if d.choice == choice]
        if found:
            types = sorted({t for d in found for t in (d.evidence or {}).get("dtypes", ())})
            how = f" in {' and '.join(reversed(types))}" if types else ""
            moves = "1 move" if len(found) == 1 else f"{len(found)} moves"
            parts.append(f"{moves} {word}{how}")
    return ", ".join(parts)


def _reason(run: RunRow, events: Sequence[Event]) -> str | None:
    """Why a run stopped or failed, as it said when it did."""
    kind = f"state {run.state}"
    told = [e.message for e in events if e.kind == kind]
    return told[-1] if told and run.state in (State.FAILED, State.STOPPED) else None


def _by_gate(events: Sequence[Event]) -> bool:
    told = [e.message for e in events if e.kind == f"state {State.STOPPED}"]
    return bool(told) and told[-1].startswith(("gate ", "witness "))


def _goal(run: RunRow) -> int:
    tokens = run.settings.get("tokens")
    return max(1, int(tokens)) if isinstance(tokens, int | float) else 1


def _limits(decisions: Sequence[Decision]) -> tuple[Mapping[str, Any], ...]:
    """The newest word on each limit."""
    newest = {d.subject: d for d in decisions if d.subject in LIMITS}
    return tuple(
        {"what": d.subject, "kept": {"kept": True, "missed": False}.get(d.choice),
         "message": d.reason}
        for d in newest.values()
    )  # fmt: skip


def goodput(history: History, attempts: Sequence[Attempt], now: float) -> float | None:
    """Time in steps that count over the wall clock since the first attempt."""
    if not attempts or not history.kept:
        return None
    end = now if attempts[-1].ended_at is None else attempts[-1].ended_at
    spent = max(end, now if attempts[-1].state != "ended" else 0.0) - attempts[0].at
    return float(history.columns.real("seconds").sum()) / spent if spent > 0 else None


def _planned(plan: Any) -> float | None:
    speed = plan.get("tokens_per_s") if isinstance(plan, Mapping) else None
    return float(speed["mid"]) if isinstance(speed, Mapping) else None


def _pools(
    attempts: Sequence[Attempt], history: History, plans: Mapping[str, Any]
) -> list[PoolStory]:
    names = list(dict.fromkeys(a.pool for a in attempts))
    place = {a.id: names.index(a.pool) for a in attempts}
    c = history.columns
    of_step = np.array([place.get(int(a), -1) for a in np.unique(c.whole("attempt"))] or [-1])
    where = of_step[np.unique(c.whole("attempt"), return_inverse=True)[1]]
    tokens = np.diff(c.whole("tokens"), prepend=0)
    seconds, speed = c.real("seconds"), c.real("tokens_per_s")
    lost = Counter(place.get(r.attempt) for r in history.lost)
    return [
        PoolStory(
            name=name,
            tokens=int(tokens[where == at].sum()),
            steps=int((where == at).sum()),
            lost_steps=lost[at],
            attempts=sum(a.pool == name for a in attempts),
            faults=sum(a.pool == name and a.is_fault for a in attempts),
            step_seconds=float(seconds[where == at].sum()),
            tokens_per_s=float(np.median(speed[where == at])) if (where == at).any() else None,
            planned_tokens_per_s=_planned(plans.get(name)),
        )
        for at, name in enumerate(names)
    ]


def _interruptions(attempts: Sequence[Attempt], history: History) -> list[Interruption]:
    found = []
    again: dict[int, list[StepRecord]] = {}
    for record in history.lost:
        again.setdefault(record.attempt, []).append(record)
    for attempt, after in itertools.zip_longest(attempts, attempts[1:]):
        if attempt.cause in (None, Cause.DONE):
            continue
        lost = again.get(attempt.id, [])
        first = after.first_step_at if after else None
        recovery = None
        if first is not None and attempt.ended_at is not None:
            recovery = max(0.0, first - attempt.ended_at)
        found.append(
            Interruption(
                attempt=attempt.id,
                pool=attempt.pool,
                next_pool=after.pool if after else None,
                cause=str(attempt.cause),
                detail=attempt.detail or "",
                at=attempt.ended_at or 0.0,
                lost_steps=len(lost),
                lost_seconds=sum(r.seconds for r in lost),
                recovery_seconds=recovery,
            )
        )
    return found


def _curve(kept: Sequence[StepRecord]) -> list[tuple[int, float, float, int]]:
    stride = max(1, -(-len(kept) // POINTS))
    return [(r.step, r.loss, r.tokens_per_s, r.attempt) for r in kept[::stride]]
