"""A predicted step over time: which pass every pipeline rank runs when, and what it holds.

The planner prices a step in closed form; here its passes are laid out by the schedule's rules.
Passes of each rank are as long as the price says, and then all of them are stretched by one factor,
so that the schedule ends when the price says that it does.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from krzem.cost.stages import RankSeconds, in_flight
from krzem.cost.step import Exchange
from krzem.errors import LayoutError
from krzem.layout.layout import V_SHAPED, Layout, Schedule, pack, stage_ranks
from krzem.plan.price import Passes, Pricer

_APART = V_SHAPED | {Schedule.ZB_H1, Schedule.DUALPIPE}
"""Schedules that compute weights' gradients apart."""
_CLOSING = ("data_parallel", "optimizer", "overhead")
_MOST = 400_000
"""Passes of all ranks that are still drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass of one micro-batch through one stage."""

    rank: int
    what: str
    """forward, backward or weights."""
    stage: int
    """Of the pipe that the micro-batch goes through, from its first."""
    micro_batch: int
    start: float
    seconds: float
    open: float
    """Of it: communication that nothing hides, at its end."""
    hidden: float
    """Communication before that, beside what is computed."""

    def stretched(self, by: float) -> Pass:
        """The pass in a step whose clock runs slower by this factor."""
        times = {n: by * getattr(self, n) for n in ("start", "seconds", "open", "hidden")}
        return replace(self, **times)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCost:
    """What a pipeline rank takes for a micro-batch, seconds, and what it holds, bytes."""

    seconds: dict[str, float]
    """By pass, of all its stages together."""
    open: dict[str, float]
    """Of these, communication that nothing hides."""
    hidden: dict[str, float]
    """Communication beside them."""
    held: float
    """Weights, gradients and states."""
    kept: float
    """Activations of one micro-batch."""
    transient: float
    most: float
    """Micro-batches whose activations it may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A predicted step."""

    layout: Layout
    passes: tuple[Pass, ...]
    ranks: tuple[RankCost, ...]
    closing: tuple[tuple[str, float], ...]
    """What every rank does after the passes, with its seconds."""
    pipeline_seconds: float
    stages: int
    """That each rank holds."""
    stretch: float
    """By which passes were lengthened so that the schedule ends when the price says."""


def timeline_of(pricer: Pricer, layout: Layout) -> Timeline:
    """The step that ``pricer`` predicts of ``layout``.

    Raises:
        LayoutError: it has more passes than can be drawn.
    """
    x = pack([layout])
    step, priced = pricer.step(x), pricer.passes(x)
    count = max(1, round(_one(step.micro_batches)))
    pipes = _pipes(layout, count)
    stages = len(pipes[0].ranks) // layout.pp
    passes = count * layout.pp * stages * (3 if layout.schedule in _APART else 2)
    if passes > _MOST:
        raise LayoutError(
            f"a step of {layout} has {count:,} micro-batches on {layout.pp * stages} stages, "
            f"{passes:,} passes; a trace holds {_MOST:,}: use a smaller --batch"
        )
    ranks = _costs(pricer, priced, layout, count)
    run = _run(pipes, ranks, _orders(layout, count))
    closing = {n: _one(getattr(step, n)) for n in _CLOSING}
    # Weights that are gathered in the open are in the passes already.
    closing["data_parallel"] -= count * _one(priced.pace) * _one(priced.slowest.gather)
    wanted = _one(step.total) - sum(closing.values())
    by = wanted / max(p.start + p.seconds for p in run)
    return Timeline(
        layout=layout,
        passes=tuple(p.stretched(by) for p in run),
        ranks=tuple(ranks),
        closing=tuple((name, max(seconds, 0.0)) for name, seconds in closing.items()),
        pipeline_seconds=wanted,
        stages=stages,
        stretch=by,
    )


def _costs(pricer: Pricer, priced: Passes, layout: Layout, count: int) -> list[RankCost]:
    """Of every pipeline rank; those between the ends cost what the fullest of them does."""
    x = pack([layout])
    memory = pricer.memory(x)
    filled = (memory.first, memory.middle, memory.last)
    share = _one(priced.weights) if layout.schedule in _APART else 0.0
    found = []
    for rank in range(layout.pp):
        place = 0 if rank == 0 else (2 if rank == layout.pp - 1 else 1)
        full, flying = filled[place], in_flight(x.schedule, x.pp, x.vpp, np.array([rank]), count)
        most = max(_one(flying), 1e-9)
        found.append(
            RankCost(
                **_passes(priced.ranks[place], priced.exchanges[place], share),
                held=_one(full.weights) + _one(full.gradients) + _one(full.optimizer),
                kept=_one(full.activations) / most,
                transient=_one(full.transient),
                most=most,
            )
        )
    return found


def _passes(cost: RankSeconds, exchange: Exchange, share: float) -> dict[str, dict[str, float]]:
    """Seconds by pass, and of them exposed and hidden communication.

    Weights that are gathered in the open are drawn half in either pass.
    """
    forward, backward = _one(cost.forward), _one(cost.backward)
    sent = (_one(exchange.sent_f), _one(exchange.sent_b))
    part = sent[0] / max(sum(sent), 1e-30)
    around, dispatch, gather = _one(cost.comm), _one(cost.dispatch), _one(cost.gather)
    first = around * _one(exchange.around) + dispatch * part + gather / 2
    apart = min(share * (forward + backward), 0.9 * backward)
    beside = max(sum(sent) - dispatch, 0.0)
    return {
        "seconds": {"forward": forward, "backward": backward - apart, "weights": apart},
        "open": {"forward": first, "backward": around + dispatch + gather - first, "weights": 0.0},
        "hidden": {"forward": beside * part, "backward": beside * (1 - part), "weights": 0.0},
    }


def _one(value: Any) -> float:
    return float(np.ravel(value)[0])


@dataclass(frozen=True, slots=True)
class _Pipe:
    """A way through the ranks, stage by stage, and the micro-batches that take it."""

    ranks: tuple[int, ...]
    micro_batches: tuple[int, ...]


def _pipes(layout: Layout, count: int) -> list[_Pipe]:
    numbers = tuple(range(count))
    if layout.schedule is Schedule.DUALPIPE and layout.pp > 1:
        down = tuple(range(layout.pp))
        return [_Pipe(down, numbers[::2]), _Pipe(down[::-1], numbers[1::2])]
    return [_Pipe(stage_ranks(layout), numbers)]


def _orders(layout: Layout, count: int) -> list[list[tuple[str, int, int]]] | None:
    """Each rank's passes in the order of 1F1B, interleaved or not (Megatron-LM, arXiv 2104.04473):
    (forward or backward, stage, micro-batch).  None: by urgency."""
    if layout.schedule not in (Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED):
        return None
    p, v = layout.pp, layout.vpp
    found = []
    for rank in range(p):
        stages = range(rank, p * v, p)
        every = [(number // p, stage, number) for number in range(count) for stage in stages]
        forward = [("forward", stage, n) for _, stage, n in sorted(every)]
        backward = sorted((group, -stage, n) for group, stage, n in every)
        warm = p - rank - 1 if v == 1 else 2 * (p - rank - 1) + (v - 1) * p
        late = [("backward", -stage, n) for _, stage, n in backward]
        order, rest = forward[:warm], forward[warm:]
        order += [one for pair in zip(rest, late, strict=False) for one in pair]
        found.append(order + late[len(rest) :])
    return found


class _Item(NamedTuple):
    """A pass that has its inputs."""

    earliest: float
    pipe: int
    stage: int
    micro_batch: int
    what: str


class _Rank:
    """What one rank can do now, and what it holds."""

    def __init__(
        self, cost: RankCost, stages: int, deep: int, order: list[tuple[str, int, int]] | None
    ) -> None:
        self.cost, self.stages, self.deep = cost, stages, deep
        self.order = None if order is None else iter(order)
        self.wanted = None if self.order is None else next(self.order, None)
        self.now, self.held, self.owed = 0.0, 0, 0
        self.ready: list[_Item] = []
        self.later: list[_Item] = []
        """Weights' gradients that wait for idle time."""

    def able(self, item: _Item) -> bool:
        """Whether it is this pass's turn, or there is room for what it keeps.

        Room is kept for the later stages of micro-batches whose first this rank has run.
        """
        if self.order is not None:
            return self.wanted == (item.what, item.stage, item.micro_batch)
        if item.what == "backward" or item.stage >= self.deep:
            return True
        return self.held + self.owed + self.stages <= self.cost.most * self.stages + 1e-9

    def take(self, item: _Item) -> None:
        """Run a pass that is ready."""
        self.ready.remove(item)
        if item.what == "forward":
            self.held += 1
            self.owed += -1 if item.stage >= self.deep else self.stages - 1
        else:
            self.held -= 1
            if self.cost.seconds["weights"]:
                self.later.append(item._replace(what="weights"))
        if self.order is not None:
            self.wanted = next(self.order, None)


def _urgency(item: _Item) -> tuple[int, int, int]:
    """Backward passes first, then micro-batches in their order."""
    return (0 if item.what == "backward" else 1, item.micro_batch, -item.stage)


def _run(
    pipes: Sequence[_Pipe],
    costs: Sequence[RankCost],
    orders: list[list[tuple[str, int, int]]] | None,
) -> list[Pass]:
    """Passes of all ranks: each runs, of what it has the inputs for, what its order says next."""
    stages = len(pipes[0].ranks) // len(costs)
    ranks = [
        _Rank(cost, stages, len(costs), None if orders is None else orders[number])
        for number, cost in enumerate(costs)
    ]
    entering = [iter(pipe.micro_batches) for pipe in pipes]

    def enter(number: int) -> None:
        """One micro-batch waits at the head of a pipe: the next one would not run before it."""
        m = next(entering[number], None)
        if m is not None:
            ranks[pipes[number].ranks[0]].ready.append(_Item(0.0, number, 0, m, "forward"))

    for number in range(len(pipes)):
        enter(number)
    found: list[Pass] = []
    moments = [(0.0, r) for r in range(len(ranks))]
    while moments:
        now, own = heapq.heappop(moments)
        if now < ranks[own].now:
            continue
        done = _next(ranks[own], own, now, found)
        if done is None:
            continue
        heapq.heappush(moments, (ranks[own].now, own))
        if done.what == "forward" and not done.stage:
            enter(done.pipe)
        then = _follows(done, pipes[done.pipe], ranks[own].now)
        if then is not None:
            to = pipes[then.pipe].ranks[then.stage]
            ranks[to].ready.append(then)
            heapq.heappush(moments, (max(then.earliest, ranks[to].now), to))
    return found


def _follows(done: _Item, pipe: _Pipe, now: float) -> _Item | None:
    """The pass that one that is over makes possible."""
    if done.what == "forward" and done.stage + 1 < len(pipe.ranks):
        return done._replace(earliest=now, stage=done.stage + 1)
    if done.what == "forward":
        return done._replace(earliest=now, what="backward")
    if done.what == "backward" and done.stage:
        return done._replace(earliest=now, stage=done.stage - 1)
    return None


def _next(rank: _Rank, own: int, now: float, found: list[Pass]) -> _Item | None:
    """Run the next pass of ``rank``; what was run, None where it has to wait."""
    able = [item for item in rank.ready if item.earliest <= now and rank.able(item)]
    if able:
        item = min(able, key=_urgency)
        rank.take(item)
    elif rank.later:
        item = rank.later.pop(0)
    else:
        return None
    seconds = rank.cost.seconds[item.what] / rank.stages
    found.append(
        Pass(
            rank=own, what=item.what, stage=item.stage, micro_batch=item.micro_batch, start=now,
            seconds=seconds, open=rank.cost.open[item.what] / rank.stages,
            hidden=rank.cost.hidden[item.what] / rank.stages,
        )
    )  # fmt: skip
    rank.now = now + seconds
    return item


def trace_of(found: Timeline) -> dict[str, Any]:
    """The step as Chrome's trace events, for ui.perfetto.dev: a process for each pipeline rank,
    passes and communication as tracks, memory by kind as a counter."""
    events: list[dict[str, Any]] = []
    for number, cost in enumerate(found.ranks):
        name = f"pipeline rank {number} of {len(found.ranks)}"
        events.append({"ph": "M", "pid": number, "name": "process_name", "args": {"name": name}})
        own = [p for p in found.passes if p.rank == number]
        for item in own:
            events += _drawn(item)
        events += _memory(number, cost, own, found.stages)
        at = found.pipeline_seconds
        for what, seconds in found.closing:
            if seconds > 0:
                events.append(_span(number, "passes", what.replace("_", " "), at, seconds))
            at += seconds
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "layout": str(found.layout),
            "pass lengths": f"of the price, times {found.stretch:.4f}",
        },
    }


def _drawn(item: Pass) -> Iterator[dict[str, Any]]:
    where = f" of stage {item.stage}"
    yield _span(
        item.rank, "passes", f"{item.what} {item.micro_batch}{where}", item.start, item.seconds
    )
    end, computed = item.start + item.seconds, item.seconds - item.open
    beside = min(item.hidden, computed)
    if item.open + beside > 0:
        begin = end - item.open - beside
        yield _span(item.rank, "communication", item.what, begin, item.open + beside)
    if beside > 0:
        yield _span(item.rank, "overlap", item.what, end - item.open - beside, beside)


def _span(pid: int, track: str, name: str, start: float, seconds: float) -> dict[str, Any]:
    return {
        "ph": "X", "pid": pid, "tid": track, "name": name, "ts": start * 1e6, "dur": seconds * 1e6
    }  # fmt: skip


def _memory(
    number: int, cost: RankCost, own: Sequence[Pass], stages: int
) -> Iterator[dict[str, Any]]:
    """What the rank holds after every pass: states, and activations of what is under way."""
    flying = 0
    for item in sorted(own, key=lambda p: p.start + p.seconds):
        if item.what == "forward":
            flying += 1
        elif item.what == "backward":
            flying -= 1
        kinds = {
            "weights, gradients, states": cost.held,
            "activations": cost.kept * flying / stages,
            "transient": cost.transient,
        }
        yield {
            "ph": "C",
            "pid": number,
            "name": "memory, GiB",
            "ts": (item.start + item.seconds) * 1e6,
            "args": {kind: round(n / 2**30, 3) for kind, n in kinds.items()},
        }
