"""Judging steps: each gate is a function of the records alone, so that it can be replayed.

A finding carries the rows that made its gate fire.  Gates that look at processes instead of steps
(stalls, stragglers, memory) are in :mod:`krzem.run.health`.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from krzem.run.clock import DAY
from krzem.run.contract import StepRecord
from krzem.run.gate_settings import (
    Action,
    Deadline,
    Gates,
    GradientNorm,
    Nonfinite,
    Progress,
    Restarts,
    Spike,
    Throughput,
)
from krzem.run.history import History
from krzem.run.rows import Attempt, Cause
from krzem.run.settings import RunSettings

_MAD_TO_SIGMA = 1.4826
_SHOWN = 400
"""Rows kept as evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A gate that fired."""

    gate: str
    action: Action
    message: str
    evidence: tuple[Any, ...]
    since_step: int | None = None
    """First step that is not to be built upon, where the steps themselves are in doubt."""


def throughput(
    gate: Throughput, records: Sequence[StepRecord], expected: float | None
) -> Finding | None:
    """The newest attempt's speed against ``expected`` tokens/s; never fires without one."""
    if expected is None or len(records) < gate.skip + gate.steps:
        return None
    last = records[-gate.steps :]
    median = statistics.median(r.tokens_per_s for r in last)
    if median >= gate.below * expected:
        return None
    return Finding(
        gate="throughput",
        action=gate.action,
        message=(
            f"{median:,.0f} tokens/s over the last {gate.steps} steps, {median / expected:.0%} of "
            f"the expected {expected:,.0f}; the gate is at {gate.below:.0%}"
        ),
        evidence=rows(last),
    )


_FEWEST = 3
"""Steps that a forecast can be made from."""


def deadline(
    gate: Deadline, records: Sequence[StepRecord], tokens_left: float, seconds_left: float | None
) -> Finding | None:
    """Whether the run is late, or will be at the newest attempt's speed.

    Before its window is full it is judged by its fastest step, the warm-up being slow.
    """
    if seconds_left is None or tokens_left <= 0:
        return None
    if seconds_left <= 0:
        return _is_late(gate, records, tokens_left, seconds_left)
    if len(records) < _FEWEST:
        return None
    full = len(records) >= gate.skip + gate.steps
    last = records[-gate.steps :] if full else records
    speeds = [r.tokens_per_s for r in last]
    speed = statistics.median(speeds) if full else max(speeds)
    needed = tokens_left / speed if speed > 0 else math.inf
    if needed <= (1 + gate.late) * seconds_left:
        return None
    told = f"over the last {gate.steps} steps" if full else f"in the fastest of {len(last)} steps"
    return Finding(
        gate="deadline",
        action=gate.action,
        message=(
            f"{speed:,.0f} tokens/s {told} need {needed:,.0f} s for "
            f"the {tokens_left:,.0f} tokens left, {seconds_left:,.0f} s before the deadline, "
            f"which asks for {tokens_left / seconds_left:,.0f} tokens/s"
        ),
        evidence=rows(last),
    )


def _is_late(
    gate: Deadline, records: Sequence[StepRecord], tokens_left: float, seconds_left: float
) -> Finding:
    return Finding(
        gate="deadline",
        action=gate.action,
        message=(
            f"the deadline passed {-seconds_left:,.0f} s ago, and {tokens_left:,.0f} tokens are "
            "left"
        ),
        evidence=rows(records[-gate.steps :]),
    )


def idle_deadline(
    gate: Deadline, expected: float | None, tokens_left: float, seconds_left: float | None
) -> Finding | None:
    """The same while no step is done: in a queue, at the speed that is expected of the pool."""
    if seconds_left is None or tokens_left <= 0:
        return None
    if seconds_left <= 0:
        return _is_late(gate, (), tokens_left, seconds_left)
    if not expected or tokens_left / expected <= (1 + gate.late) * seconds_left:
        return None
    return Finding(
        gate="deadline",
        action=gate.action,
        message=(
            f"no step is done yet, and at the expected {expected:,.0f} tokens/s the "
            f"{tokens_left:,.0f} tokens left need {tokens_left / expected:,.0f} s, "
            f"{seconds_left:,.0f} s before the deadline"
        ),
        evidence=(),
    )


def progress(
    gate: Progress, attempts: Sequence[Attempt], saved: Collection[int | None]
) -> Finding | None:
    """Faults of one pool in a row; ``saved`` are the attempts that committed a checkpoint."""
    row = list(itertools.takewhile(lambda a: a.is_fault and a.id not in saved, reversed(attempts)))
    if len(row) < gate.times:
        return None
    causes = ", ".join(dict.fromkeys(f"{a.cause}: {a.detail}" for a in row))
    return Finding(
        gate="progress",
        action=gate.action,
        message=f"{len(row)} attempts in a row ended without a new checkpoint ({causes[:400]})",
        evidence=tuple({"attempt": a.id, "cause": a.cause, "detail": a.detail} for a in row),
    )


def spike(gate: Spike, kept: Sequence[StepRecord]) -> Finding | None:
    """Whether the last ``recover`` losses all lie above what the window before them allows."""
    if len(kept) < gate.window + gate.recover:
        return None
    tail = kept[-gate.recover :]
    before = [r.loss for r in kept[-gate.recover - gate.window : -gate.recover]]
    limit = spike_limit(gate, before)
    if min(r.loss for r in tail) <= limit:
        return None
    return Finding(
        gate="spike",
        action=gate.action,
        message=(
            f"loss rose above {limit:.4f} (median of {gate.window} steps "
            f"{statistics.median(before):.4f}) at step {tail[0].step} and has not come back in "
            f"{gate.recover} steps: now {tail[-1].loss:.4f}"
        ),
        evidence=rows(kept[-gate.recover - gate.window :]),
        since_step=tail[0].step,
    )


def spike_limit(gate: Spike, before: Sequence[float]) -> float:
    """The loss above which a step is a spike, from the losses of the window before it."""
    median = statistics.median(before)
    deviation = statistics.median(abs(loss - median) for loss in before)
    return median + max(gate.sigmas * _MAD_TO_SIGMA * deviation, gate.share * abs(median))


def gradient_norm(gate: GradientNorm, kept: Sequence[StepRecord]) -> Finding | None:
    """Whether the last norms are all far above the median of the window before them."""
    if len(kept) < gate.window + gate.steps:
        return None
    tail = kept[-gate.steps :]
    norms = [r.grad_norm for r in kept[-gate.steps - gate.window :] if r.grad_norm is not None]
    if len(norms) < gate.window + gate.steps:
        return None  # a trainer that does not tell its norms is not judged by them
    median = statistics.median(norms[: -gate.steps])
    lowest = min(norms[-gate.steps :])
    if median <= 0 or lowest <= gate.factor * median:
        return None
    return Finding(
        gate="gradient_norm",
        action=gate.action,
        message=(
            f"the gradient norm has been above {lowest:.3g} for {gate.steps} steps, "
            f"{lowest / median:.1f} times the median {median:.3g} of the {gate.window} before"
        ),
        evidence=rows(tail),
    )


def restarts(gate: Restarts, attempts: Sequence[Attempt], now: float) -> Finding | None:
    """Faults of one pool's attempts in the last 24 hours of the run's clock."""
    faults = [a for a in attempts if a.is_fault and (a.ended_at or 0.0) > now - DAY]
    if len(faults) <= gate.per_day:
        return None
    return Finding(
        gate="restarts",
        action=gate.action,
        message=f"{len(faults)} faults within 24 hours; {gate.per_day} are accepted",
        evidence=tuple(
            {"attempt": a.id, "cause": a.cause, "detail": a.detail, "ended_at": a.ended_at,
             "last_step": a.last_step}
            for a in faults
        ),
    )  # fmt: skip


def nonfinite(
    gate: Nonfinite, attempts: Sequence[Attempt], records: Sequence[StepRecord]
) -> Finding | None:
    """Attempts of one pool that ended in NaN or infinity."""
    bad = [a for a in attempts if a.cause is Cause.NONFINITE]
    if len(bad) < gate.times:
        return None
    return Finding(
        gate="nonfinite",
        action=gate.action,
        message=(
            f"{len(bad)} attempts on this pool ended with a loss or gradient norm that is not "
            f"finite (steps {', '.join(str(a.last_step) for a in bad)})"
        ),
        evidence=rows(records[-20:]),
    )


def judge_steps(
    gates: Gates,
    kept: Sequence[StepRecord],
    newest: Sequence[StepRecord],
    new: int,
    expected: float | None,
) -> list[Finding]:
    """All gates on steps, asked once for each of the ``new`` last records.

    ``kept`` is the history, ``newest`` what the running attempt has done of it.
    """
    found: list[Finding | None] = []
    tail = kept[-(_longest(gates) + new) :]
    for back in range(min(new, len(tail)) - 1, -1, -1):
        until = tail[: len(tail) - back]
        if gates.spike:
            found.append(spike(gates.spike, until))
        if gates.gradient_norm:
            found.append(gradient_norm(gates.gradient_norm, until))
    if gates.throughput:
        found.append(throughput(gates.throughput, newest, expected))
    return [finding for finding in found if finding is not None]


def speed_steps(gates: Gates) -> int:
    """Steps that gates on speed look back at."""
    windows = [gate.skip + gate.steps for gate in (gates.throughput, gates.deadline) if gate]
    return max([50, *windows])


def _longest(gates: Gates) -> int:
    """How many records the gates look back at."""
    spikes = gates.spike.window + gates.spike.recover if gates.spike else 0
    norms = gates.gradient_norm.window + gates.gradient_norm.steps if gates.gradient_norm else 0
    return max(spikes, norms)


def rows(records: Sequence[StepRecord]) -> tuple[dict[str, Any], ...]:
    """Records as evidence."""
    return tuple(asdict(record) for record in records[-_SHOWN:])


def replay(
    settings: RunSettings, history: History, expected: float | None
) -> Iterator[tuple[int, Finding]]:
    """(step, finding) of every gate on steps, each once an attempt, as a controller would fire it.

    Time goes by as the steps took it; what was between attempts is not counted.
    """
    seconds, fired = 0.0, set[tuple[int, str]]()
    kept = history.kept
    longest = max(speed_steps(settings.gates), _longest(settings.gates))
    for count, record in enumerate(kept, 1):
        seconds += record.seconds
        newest = _attempt(kept, count, longest)
        found = _finite(settings, record)
        found += judge_steps(
            settings.gates, kept[max(0, count - longest) : count], newest, 1, expected
        )
        found += _late(settings, newest, record, seconds)
        for finding in found:
            key = (record.attempt, finding.gate)
            if key not in fired:
                fired.add(key)
                yield record.step, finding


def _attempt(kept: list[StepRecord], count: int, most: int) -> list[StepRecord]:
    """The newest steps up to ``count``, of one attempt."""
    back = reversed(kept[max(0, count - most) : count])
    mine = itertools.takewhile(lambda r: r.attempt == kept[count - 1].attempt, back)
    return list(mine)[::-1]


def _finite(settings: RunSettings, record: StepRecord) -> list[Finding]:
    if record.finite or settings.gates.nonfinite is None:
        return []
    return [Finding(gate="nonfinite", action=Action.RESTART, evidence=rows([record]),
                    message=f"loss {record.loss}, gradient norm {record.grad_norm}")]  # fmt: skip


def _late(
    settings: RunSettings, newest: list[StepRecord], record: StepRecord, seconds: float
) -> list[Finding]:
    days = settings.goal.deadline_days
    if settings.gates.deadline is None or days is None:
        return []
    left = days * 86_400.0 - seconds
    tokens = settings.goal.tokens - record.tokens
    found = deadline(settings.gates.deadline, newest, tokens, left)
    return [found] if found else []
