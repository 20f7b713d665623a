"""What became of each row of a table: predicted, or skipped for a reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from krzem.accuracy.batch import (
    IMPOSSIBLE,
    Batch,
    averaged,
    chance_of,
    memory_open,
    predict_open,
    prepare,
    situation,
    standing_of,
)
from krzem.accuracy.case import Case, UnusableRowError
from krzem.accuracy.reader import read_case
from krzem.accuracy.spread_fit import standing
from krzem.cost.assemble import machine
from krzem.cost.coefficients import Coefficients
from krzem.cost.memory import MemoryBytes
from krzem.cost.memory_error import memory_spread
from krzem.cost.uncertainty import Z80, log_sigma
from krzem.errors import KrzemError

CHUNK = 2048
"""Rows predicted at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One row of the table."""

    id: str
    source: str = "?"
    family: str = "?"
    accelerator: str = "?"
    layout: str = ""
    group: str = ""
    """Rows of one group differ only in layout."""
    measured_by: str = ""
    measured_s: float | None = None
    low_s: float = 0.0
    mid_s: float = 0.0
    high_s: float = 0.0
    memory_measured: float | None = None
    """Bytes; None where not published, or where the row leaves open what memory depends on."""
    memory_predicted: float = 0.0
    fits: bool = True
    """Whether the model gives the published layout a chance of fitting."""
    chance: float = 1.0
    """Of fitting."""
    ran: bool = True
    """False where the row says that it ran out of memory."""
    guesses: tuple[str, ...] = ()
    reason: str = ""
    """Why the row is skipped; empty where it is used."""


def outcomes(rows: Iterable[Mapping[str, str]], coefficients: Coefficients) -> Iterator[Outcome]:
    """Every row in order, predicted in chunks."""
    waiting: list[Case | Outcome] = []
    for row in rows:
        waiting.append(_read(row))
        if len(waiting) >= CHUNK:
            yield from _predicted(waiting, coefficients)
            waiting = []
    yield from _predicted(waiting, coefficients)


def _read(row: Mapping[str, str]) -> Case | Outcome:
    name = (row.get("id") or "?")[:80]
    source = (row.get("source") or "?")[:200]
    if reason := row.get("unreadable"):
        return Outcome(id=name, source=source, reason=reason)
    try:
        case = read_case(row)
        machine(situation(case), Coefficients({}))
    except UnusableRowError as error:
        return Outcome(id=name, source=source, reason=str(error))
    except KrzemError:
        return Outcome(id=name, source=source, reason="a rate of the accelerator is not published")
    return case


def _predicted(waiting: Sequence[Case | Outcome], coefficients: Coefficients) -> list[Outcome]:
    cases = [item for item in waiting if isinstance(item, Case)]
    if not cases:
        return [item for item in waiting if isinstance(item, Outcome)]
    # Absurd but well-formed rows may overflow; their prediction is then not finite.
    with np.errstate(all="ignore"):
        done = iter(_chunk(prepare(cases), coefficients))
    return [next(done) if isinstance(item, Case) else item for item in waiting]


def _chunk(batch: Batch, coefficients: Coefficients) -> list[Outcome]:
    step, variance = predict_open(batch, coefficients)
    sigma = np.hypot(log_sigma(step, standing(batch)), np.sqrt(np.maximum(variance, 0.0)))
    each = memory_open(batch)
    bytes_ = averaged(batch, each)
    capacity = np.array([s.memory_bytes for s in batch.situations])
    spread = memory_spread()
    scale = spread.scale(bytes_, standing_of(batch.cases, spread.engines))
    room = np.log(capacity[batch.case] / each.peak) - spread.shifts.get("need", 0.0)
    chance = chance_of(batch, room / np.broadcast_to(scale, len(batch.cases))[batch.case])
    shown = _by_kind(batch.cases, bytes_)
    return [
        _outcome(case, float(t), float(s), float(m), float(f))
        for case, t, s, m, f in zip(batch.cases, step.total, sigma, shown, chance, strict=True)
    ]


def _by_kind(cases: Sequence[Case], found: MemoryBytes) -> np.ndarray:
    """Peak bytes in the sense of each row."""
    kind = np.array([c.memory_kind for c in cases])
    rest = np.where(kind == "shown", found.shown, found.reserved)
    return np.where(kind == "allocated", found.tensors, rest)


def _outcome(
    case: Case, mid: float, sigma: float, memory_predicted: float, chance: float
) -> Outcome:
    base = Outcome(
        id=case.id,
        source=case.source,
        family=case.family,
        accelerator=case.device.id,
        layout=str(case.layout),
        group=_group(case),
        guesses=tuple(dict.fromkeys((*case.guesses, *case.unknown))),
    )
    if not (np.isfinite(mid) and mid > 0 and np.isfinite(sigma)):
        return replace(base, reason="row contradicts itself (values out of range)")
    known = case.recompute_known and not set(case.guesses) & _MEMORY_NEEDS
    return replace(
        base,
        measured_by=case.measured_by,
        measured_s=case.seconds,
        low_s=mid * float(np.exp(-Z80 * sigma)),
        mid_s=mid,
        high_s=mid * float(np.exp(Z80 * sigma)),
        memory_measured=case.peak_memory_bytes if known and case.ran else None,
        memory_predicted=memory_predicted,
        fits=chance >= IMPOSSIBLE,
        chance=chance,
        ran=case.ran,
    )


_MEMORY_NEEDS = frozenset({"micro-batch", "zero stage", "ep", "global batch", "ffn width", "vocab"})


def _group(case: Case) -> str:
    parts = (
        case.source, case.architecture.name, case.device.id, case.devices, case.sequence,
        round(case.global_batch), case.precision.value, f"{case.date:.2f}",
        *sorted(f"{name}={choice}" for name, choice in case.switches.items()), case.finetune,
    )  # fmt: skip
    return "|".join(str(part) for part in parts)
