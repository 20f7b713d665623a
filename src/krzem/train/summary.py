"""What a run's own files tell: its steps, what they took, and what happened on the way.

After a fault the steps since the last checkpoint are done again, so a step may have several lines
in ``metrics.jsonl``; the last of them counts.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krzem.errors import RunError

METRICS, EVENTS = "metrics.jsonl", "events.jsonl"
POINTS = 400
"""Points of a curve at most."""
_CURVES = ("loss", "tokens_per_s", "grad_norm", "rate", "peak_load")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that is no ordinary step."""

    step: int
    kind: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run so far."""

    step: int
    """The last one."""
    tokens: int
    first_loss: float
    loss: float
    """Of the last step."""
    held_out: tuple[tuple[int, float], ...]
    """Step and loss of each evaluation on held-out data."""
    seconds: float
    """In steps that count."""
    step_seconds: float | None
    """Median of steps with the full batch; None where there is none."""
    tokens_per_s: float
    """Median of the steps of ``step_seconds``; of all where there is none."""
    mfu: float | None
    memory_bytes: int | None
    """Peak on the first rank."""
    curves: Mapping[str, tuple[tuple[int, float], ...]]
    """Step and value of loss, speed, gradient norm, rate, fullest expert; means of equal parts."""
    events: tuple[Event, ...]


def summarise(folder: Path, *, full_tokens: int) -> Summary:
    """What ``folder`` tells of its run, whose steps with the full batch have ``full_tokens``.

    Raises:
        RunError: no step is recorded there.
    """
    steps = _kept(_lines(folder / METRICS))
    if not steps:
        raise RunError(f"no step is recorded in {folder / METRICS}, so there is nothing to show")
    full = [s for s in steps if round(s["tokens_per_s"] * s["seconds"]) == full_tokens]
    noted = list(_lines(folder / EVENTS))
    return Summary(
        step=steps[-1]["step"],
        tokens=steps[-1]["tokens"],
        first_loss=steps[0]["loss"],
        loss=steps[-1]["loss"],
        held_out=tuple({e["step"]: e["value"] for e in noted if "value" in e}.items()),
        seconds=sum(s["seconds"] for s in steps),
        step_seconds=statistics.median(s["seconds"] for s in full) if full else None,
        tokens_per_s=statistics.median(s["tokens_per_s"] for s in full or steps),
        mfu=_median(s.get("mfu") for s in full or steps),
        memory_bytes=max((s["memory_bytes"] for s in steps if s.get("memory_bytes")), default=None),
        curves={name: _curve(steps, name) for name in _CURVES},
        events=tuple(
            Event(step=e["step"], kind=e["kind"], message=e["message"])
            for e in noted
            if "message" in e
        ),
    )


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects in ``file``; a line that a death cut short is passed over."""
    if not file.exists():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value


def _kept(lines: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps that count: one that comes again replaces all from there on."""
    kept: list[dict[str, Any]] = []
    for record in lines:
        while kept and kept[-1]["step"] >= record["step"]:
            kept.pop()
        kept.append(record)
    return kept


def _median(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _curve(steps: Sequence[Mapping[str, Any]], name: str) -> tuple[tuple[int, float], ...]:
    """Means over equal parts, at the last step of each; nothing where no step has ``name``."""
    known = [(s["step"], s[name]) for s in steps if s.get(name) is not None]
    each = max(1, -(-len(known) // POINTS))
    parts = [known[i : i + each] for i in range(0, len(known), each)]
    return tuple((part[-1][0], statistics.fmean(v for _, v in part)) for part in parts)


def last_step(folder: Path) -> int:
    """The highest step that has a line in the run's metrics, 0 where there is none."""
    path = folder / METRICS
    if not path.exists():
        return 0
    steps = [0]
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                steps.append(int(json.loads(line)["step"]))
            except (ValueError, KeyError, TypeError):
                continue  # a line that a kill cut short
    return max(steps)
