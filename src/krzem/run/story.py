"""The story of a run so far, from its ledger and its steps: what status, live view and report show.

Everything is a plain value, ready for JSON.  Goodput is the time in steps that count over the wall
clock since the first attempt began; a step that had to be done again counts for nothing.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from krzem.run.contract import StepRecord
from krzem.run.history import History, prove_samples
from krzem.run.ledger import Reader
from krzem.run.lock import held
from krzem.run.rows import Attempt, Cause, Decision, RunRow

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
class Story:
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
    last_event: str
    samples_exact: bool
    sample_gaps: tuple[str, ...]
    curve: tuple[tuple[int, float, float, int], ...]
    """(step, loss, tokens/s, attempt), thinned out."""

    @property
    def share(self) -> float:
        """Share of the tokens that are trained."""
        return min(1.0, self.tokens / self.goal_tokens)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def tell(folder: Path) -> Story:
    """The story of the run in ``folder``; DataError where there is none."""
    with Reader(folder) as reader:
        run = reader.run()
        attempts, decisions = reader.attempts(), reader.decisions()
        fired, events = reader.fired(), reader.events(last=1)
    history = History.of(folder)
    if run is None:
        raise AssertionError("a ledger without its run")
    return _story(folder, run, attempts, decisions, history, events[-1].message if events else "",
                  tuple(asdict(f) for f in fired))  # fmt: skip


def _story(
    folder: Path,
    run: RunRow,
    attempts: Sequence[Attempt],
    decisions: Sequence[Decision],
    history: History,
    last_event: str,
    fired: tuple[Mapping[str, Any], ...],
) -> Story:
    recent = [r for r in history.kept[-RECENT:] if r.attempt == history.kept[-1].attempt]
    goal = int(run.settings["tokens"])
    speed = statistics.median(r.tokens_per_s for r in recent) if recent else None
    good = goodput(history, attempts, run.run_seconds)
    left = (goal - history.tokens) / speed / good if speed and good else None
    proof = prove_samples(history.kept)
    plans = {d.subject.removeprefix("plan of "): d.evidence for d in decisions
             if d.subject.startswith("plan of ")}  # fmt: skip
    return Story(
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
        gates=fired,
        decisions=tuple(asdict(d) for d in decisions),
        witness=tuple(asdict(d) for d in decisions if d.subject.startswith("witness ")),
        last_event=last_event,
        samples_exact=proof.exact,
        sample_gaps=proof.gaps,
        curve=tuple(_curve(history.kept)),
    )


def goodput(history: History, attempts: Sequence[Attempt], now: float) -> float | None:
    """Time in steps that count over the wall clock since the first attempt."""
    if not attempts or not history.kept:
        return None
    end = now if attempts[-1].ended_at is None else attempts[-1].ended_at
    spent = max(end, now if attempts[-1].state != "ended" else 0.0) - attempts[0].at
    return sum(r.seconds for r in history.kept) / spent if spent > 0 else None


def _planned(plan: Any) -> float | None:
    speed = plan.get("tokens_per_s") if isinstance(plan, Mapping) else None
    return float(speed["mid"]) if isinstance(speed, Mapping) else None


def _pools(
    attempts: Sequence[Attempt], history: History, plans: Mapping[str, Any]
) -> list[PoolStory]:
    pool_of = {a.id: a.pool for a in attempts}
    names = dict.fromkeys(a.pool for a in attempts)
    kept: dict[str, list[StepRecord]] = {name: [] for name in names}
    for record in history.kept:
        if record.attempt in pool_of:
            kept[pool_of[record.attempt]].append(record)
    lost = [pool_of.get(r.attempt) for r in history.lost]
    return [
        PoolStory(
            name=name,
            tokens=_tokens(kept[name], history),
            steps=len(kept[name]),
            lost_steps=lost.count(name),
            attempts=sum(a.pool == name for a in attempts),
            faults=sum(a.pool == name and a.is_fault for a in attempts),
            step_seconds=sum(r.seconds for r in kept[name]),
            tokens_per_s=(
                statistics.median(r.tokens_per_s for r in kept[name]) if kept[name] else None
            ),
            planned_tokens_per_s=_planned(plans.get(name)),
        )
        for name in names
    ]


def _tokens(mine: Sequence[StepRecord], history: History) -> int:
    """Tokens of these steps; the batch may have grown over the run."""
    if not mine:
        return 0
    before = {after.step: first.tokens for first, after in itertools.pairwise(history.kept)}
    return sum(r.tokens - before.get(r.step, 0) for r in mine)


def _interruptions(attempts: Sequence[Attempt], history: History) -> list[Interruption]:
    found = []
    for attempt, after in itertools.zip_longest(attempts, attempts[1:]):
        if attempt.cause in (None, Cause.DONE):
            continue
        lost = [r for r in history.lost if r.attempt == attempt.id]
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
