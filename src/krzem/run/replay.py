"""Gates asked of metrics that are there already: what would have fired, and at which step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from krzem.run import gates
from krzem.run.contract import StepRecord
from krzem.run.gate_settings import Action
from krzem.run.gates import Finding
from krzem.run.history import History
from krzem.run.settings import RunSettings


def replay(
    settings: RunSettings, history: History, expected: float | None
) -> Iterator[tuple[int, Finding]]:
    """(step, finding) of every gate on steps, each once an attempt, as a controller would fire it.

    Time goes by as the steps took it; what was between attempts is not counted.
    """
    seconds, fired = 0.0, set[tuple[int, str]]()
    kept = history.kept
    longest = _longest(settings)
    for count, record in enumerate(kept, 1):
        seconds += record.seconds
        newest = _attempt(kept, count, longest)
        found = _finite(settings, record)
        found += gates.judge_steps(
            settings.gates, kept[max(0, count - longest) : count], newest, 1, expected
        )
        found += _late(settings, newest, record, seconds)
        for finding in found:
            key = (record.attempt, finding.gate)
            if key not in fired:
                fired.add(key)
                yield record.step, finding


def _longest(settings: RunSettings) -> int:
    g = settings.gates
    speed = [x.skip + x.steps for x in (g.throughput, g.deadline) if x]
    spike = [g.spike.window + g.spike.recover] if g.spike else []
    norm = [g.gradient_norm.window + g.gradient_norm.steps] if g.gradient_norm else []
    return max([50, *speed, *spike, *norm])


def _attempt(kept: list[StepRecord], count: int, most: int) -> list[StepRecord]:
    """The newest steps up to ``count``, of one attempt."""
    back = reversed(kept[max(0, count - most) : count])
    mine = itertools.takewhile(lambda r: r.attempt == kept[count - 1].attempt, back)
    return list(mine)[::-1]


def _finite(settings: RunSettings, record: StepRecord) -> list[Finding]:
    if record.finite or settings.gates.nonfinite is None:
        return []
    return [Finding(gate="nonfinite", action=Action.RESTART, evidence=gates.rows([record]),
                    message=f"loss {record.loss}, gradient norm {record.grad_norm}")]  # fmt: skip


def _late(
    settings: RunSettings, newest: list[StepRecord], record: StepRecord, seconds: float
) -> list[Finding]:
    days = settings.goal.deadline_days
    if settings.gates.deadline is None or days is None:
        return []
    left = days * 86_400.0 - seconds
    tokens = settings.goal.tokens - record.tokens
    found = gates.deadline(settings.gates.deadline, newest, tokens, left)
    return [found] if found else []
