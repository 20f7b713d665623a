"""The first rank of every pipeline stage rehearsed, side by side in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from krzem.layout.layout import Layout
from krzem.train.rehearsal.match import Fault, Program, find_faults
from krzem.train.rehearsal.rank import RankRecord, Step, rehearse_rank
from krzem.train.rehearsal.record import Communication, Kind, Phase, Record, Storage

POINTS = 240
"""Moments of a timeline that are kept."""
_LARGEST = 12
_KINDS = tuple(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Bytes at one moment of a step."""

    operator: int
    """Index of the operator."""
    bytes: dict[str, int]
    """By kind."""

    @property
    def total(self) -> int:
        """Of all kinds."""
        return sum(self.bytes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Collectives, or messages, of one kind over one kind of group."""

    operation: str
    group: str
    ranks: int
    """Members of a group."""
    count: int
    bytes: int
    """Of the larger side of each, summed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Storages of one shape that are alike, at the peak."""

    kind: str
    operator: str
    """That made them."""
    shape: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One pass of a step."""

    phase: Phase
    start: int
    """Its first operator."""
    stop: int
    flops: float
    traffic: float
    """Bytes read and written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSummary:
    """One rank's step."""

    rank: int
    stage: int
    """Pipeline rank."""
    layers: tuple[int, ...]
    parameters: int
    peak: Moment
    at: Phase
    """In which pass the peak is."""
    moments: tuple[Moment, ...]
    largest: tuple[Piece, ...]
    traffic: tuple[Traffic, ...]
    reads: dict[str, int]
    """Host reads by line of code."""
    reads_in_passes: float
    """Host reads of one micro-batch's forward and backward passes."""
    flops: float
    program: Program
    spans: tuple[Span, ...]
    seconds: float
    """Processor time of the rehearsal."""
    notes: tuple[str, ...] = ()
    """Where what was run differs from what was asked."""


StepT = TypeVar("StepT", bound="AnyStep")


class AnyStep(Protocol):
    """A step of whatever trainer, as far as its rehearsal is shown."""

    @property
    def layout(self) -> Layout: ...
    @property
    def sequence(self) -> int: ...
    @property
    def micro_batches(self) -> int: ...
    @property
    def precision(self) -> str: ...
    @property
    def optimizer_name(self) -> str: ...
    @property
    def crowding(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A rehearsed step."""

    step: AnyStep
    ranks: tuple[RankSummary, ...]
    faults: tuple[Fault, ...]

    @property
    def fullest(self) -> RankSummary:
        """The rank that needs most memory."""
        return max(self.ranks, key=lambda rank: rank.peak.total)


def stage_rank(layout: Layout, stage: int) -> int:
    """The first rank of a pipeline stage: its parts are the largest where parts are uneven."""
    return stage * layout.tp * layout.cp * layout.dp


def rehearse(
    step: StepT,
    ranks: Sequence[int] | None = None,
    *,
    one: Callable[[StepT, int], RankSummary],
    workers: int | None = None,
    progress: Callable[[str], None] = lambda said: None,
) -> Rehearsal:
    """Rehearse ``step`` as ``ranks``, by default the first of every stage, with ``one``.

    ``progress`` is told each rank that is done.

    Raises:
        KrzemError: the step is none that its trainer runs.
    """
    wanted = list(ranks or [stage_rank(step.layout, i) for i in range(step.layout.pp)])
    found: dict[int, RankSummary] = {}
    count = min(len(wanted), workers or os.cpu_count() or 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        jobs = {pool.submit(one, step, rank): rank for rank in wanted}
        for job in as_completed(jobs):
            done = found[jobs[job]] = job.result()
            progress(
                f"rank {done.rank} (stage {done.stage}): {done.peak.total / 2**30:.1f} GiB, "
                f"{len(found)} of {len(wanted)} ranks"
            )
    summaries = tuple(found[rank] for rank in wanted)
    faults = find_faults({s.rank: s.program for s in summaries})
    return Rehearsal(step=step, ranks=summaries, faults=tuple(faults))


def summary_of(step: Step, rank: int) -> RankSummary:
    """Rehearse one rank in this process."""
    return summarise(step, rehearse_rank(step, rank))


def summarise(step: AnyStep, found: RankRecord, notes: tuple[str, ...] = ()) -> RankSummary:
    """What a record says, in sums and samples."""
    record = found.record
    highest, moments = _over_time(record)
    return RankSummary(
        rank=found.rank,
        stage=found.rank // stage_rank(step.layout, 1),
        layers=found.layers,
        parameters=found.parameters,
        peak=highest,
        at=record.phases[_phase_at(record, highest.operator)],
        moments=moments,
        largest=_largest(record, highest.operator),
        traffic=_traffic(record),
        reads=dict(Counter(where for _, _, where in record.reads).most_common()),
        reads_in_passes=_reads(record, found.micro_batches),
        flops=sum(record.flops),
        program=tuple(record.communications),
        spans=_spans(record),
        seconds=found.seconds,
        notes=notes,
    )


def _phase_at(record: Record, operator: int) -> int:
    return max(i for i, start in enumerate(record.starts) if start <= max(operator - 1, 0))


def kind_of(record: Record, storage: Storage) -> Kind:
    """What ``storage`` is, by its life where the program did not say.

    What a forward pass leaves behind when it ends is an activation, what a backward pass leaves is
    a gradient; weights that are gathered for longer than a pass are weights; what comes to be
    between passes and stays was received, and counts as an activation.  All else is transient.
    """
    if storage.kind is not None:
        return storage.kind
    leaves = storage.died_phase is None or storage.died_phase > storage.phase
    what = record.phases[storage.phase].what
    if not leaves or what == "update":
        return Kind.WEIGHTS if storage.gathered and leaves else Kind.TRANSIENT
    if storage.gathered:
        return Kind.WEIGHTS
    return Kind.GRADIENTS if what in ("backward", "weights", "loss") else Kind.ACTIVATIONS


def _over_time(record: Record) -> tuple[Moment, tuple[Moment, ...]]:
    """The fullest moment of a step, and the fullest of each of ``POINTS`` stretches, in order.

    What an operator reads is still there when it makes its results, also where nothing needs it
    afterwards.
    """
    kinds = np.array([_KINDS.index(kind_of(record, s)) for s in record.storages])
    sizes = np.array([s.size for s in record.storages])
    born = np.array([s.born for s in record.storages])
    died = np.array([-1 if s.died is None else s.died for s in record.storages])
    gone = died >= 0
    at = np.concatenate((2 * born + 1, 2 * died[gone] + 2))
    changes = np.zeros((len(at), len(_KINDS)), dtype=np.int64)
    changes[np.arange(len(at)), np.concatenate((kinds, kinds[gone]))] = np.concatenate(
        (sizes, -sizes[gone])
    )
    order = np.argsort(at, kind="stable")
    at, held = at[order], changes[order].cumsum(axis=0)
    last = np.append(at[1:] != at[:-1], True)
    at, held = at[last], held[last]
    total = held.sum(axis=1)

    def moment(i: int) -> Moment:
        bytes_by_kind = {str(k): int(n) for k, n in zip(_KINDS, held[i], strict=True)}
        return Moment(operator=int(at[i]) // 2, bytes=bytes_by_kind)

    each = max(1, -(-len(at) // POINTS))
    starts = range(0, len(at), each)
    sampled = tuple(moment(i + int(total[i : i + each].argmax())) for i in starts)
    return moment(int(total.argmax())), sampled


def _largest(record: Record, operator: int) -> tuple[Piece, ...]:
    sums: Counter[tuple[str, str, str]] = Counter()
    counts: Counter[tuple[str, str, str]] = Counter()
    for storage in record.storages:
        if storage.born <= operator and (storage.died is None or storage.died > operator):
            key = (str(kind_of(record, storage)), storage.origin, storage.shape)
            sums[key] += storage.size
            counts[key] += 1
    return tuple(
        Piece(kind=kind, operator=origin, shape=shape, count=counts[kind, origin, shape], bytes=n)
        for (kind, origin, shape), n in sums.most_common(_LARGEST)
    )


def _traffic(record: Record) -> tuple[Traffic, ...]:
    counts: Counter[tuple[str, str, int]] = Counter()
    sums: Counter[tuple[str, str, int]] = Counter()
    for event in record.communications:
        if isinstance(event, Communication):
            key = (event.operation, event.group, len(event.ranks))
            counts[key] += 1
            sums[key] += event.size
    return tuple(
        Traffic(operation=o, group=g, ranks=n, count=counts[o, g, n], bytes=sums[o, g, n])
        for o, g, n in sorted(counts)
    )


def _reads(record: Record, micro_batches: int) -> float:
    passes = {
        i for i, p in enumerate(record.phases) if p.what in ("forward", "backward", "weights")
    }
    return sum(phase in passes for _, phase, _ in record.reads) / micro_batches


def _spans(record: Record) -> tuple[Span, ...]:
    stops = [*record.starts[1:], record.operators]
    return tuple(
        Span(phase=phase, start=start, stop=stop, flops=flops, traffic=traffic)
        for phase, start, stop, flops, traffic in zip(
            record.phases, record.starts, stops, record.flops, record.traffic, strict=True
        )
        if stop > start
    )


def as_document(found: Rehearsal) -> dict[str, Any]:
    """The rehearsal as one JSON document; sizes in bytes."""
    return {
        "layout": str(found.step.layout),
        "ranks_in_all": found.step.layout.devices,
        "sequence": found.step.sequence,
        "micro_batches": found.step.micro_batches,
        "precision": found.step.precision,
        "optimizer": found.step.optimizer_name,
        "crowding": found.step.crowding,
        "peak_bytes": found.fullest.peak.total,
        "faults": [{"kind": f.kind, "ranks": list(f.ranks), "said": f.said} for f in found.faults],
        "ranks": [_rank_document(rank) for rank in found.ranks],
    }


def _rank_document(r: RankSummary) -> dict[str, Any]:
    return {
        "rank": r.rank,
        "stage": r.stage,
        "layers": list(r.layers),
        "parameters": r.parameters,
        "peak_bytes": r.peak.total,
        "peak": r.peak.bytes,
        "peak_in": {"pass": r.at.what, "chunk": r.at.chunk, "micro_batch": r.at.micro_batch},
        "flops": r.flops,
        "host_reads": r.reads,
        "host_reads_per_micro_batch": r.reads_in_passes,
        "processor_seconds": round(r.seconds, 2),
        "collectives": [
            {
                "operation": t.operation,
                "group": t.group,
                "ranks": t.ranks,
                "count": t.count,
                "bytes": t.bytes,
            }
            for t in r.traffic
        ],
        "largest": [
            {
                "kind": p.kind,
                "operator": p.operator,
                "shape": p.shape,
                "count": p.count,
                "bytes": p.bytes,
            }
            for p in r.largest
        ],
        "timeline": [{"operator": m.operator, **m.bytes} for m in r.moments],
    }
