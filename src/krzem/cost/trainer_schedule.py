"""What a pipeline rank of krzem's own trainer holds at the fullest moments of torch's schedules.

Closed forms of the orders of ``torch/distributed/pipelining/schedules.py`` (2.13): micro-batches
under way in each chunk of the rank, whose turn it is, and which chunks have gradients by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from krzem.cost.stages import is_schedule
from krzem.layout.layout import Layouts, Schedule

Array = Any
_FEW = 4
"""Chunks of a rank up to which each one's turn is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A forward and backward pass of one chunk of pipeline ranks ``[N]``."""

    held: Array
    """[C, N] micro-batches under way in each chunk, the one that runs among them."""
    turn: Array
    """[N] the chunk that runs."""
    begun: Array
    """[C, N] whether a chunk has gradients."""
    exists: Array
    """[N] whether the schedule has this moment."""


def moments(x: Layouts, rank: Array, count: Array) -> Iterator[Moment]:
    """The moments at which ranks ``[N]`` can be fullest, with ``count`` micro-batches a step."""
    chunks = int(np.max(x.vpp))
    folded = is_schedule(x.schedule, Schedule.ZB_V, Schedule.DUALPIPE_V) & (x.pp > 1)
    if not np.all(folded):
        yield from _looped(x, rank, count, chunks, ~folded)
    if np.any(folded):
        yield from _folded(x, rank, count, chunks, folded)


def _looped(x: Layouts, rank: Array, count: Array, chunks: int, exists: Array) -> Iterator[Moment]:
    """1F1B and interleaved chunks, which take rounds of ``each`` micro-batches a chunk in turn.

    After ``ahead`` forward passes one follows on each backward pass.
    """
    # Few layouts of a search differ in what matters here.
    code = (x.pp.astype(np.int64) << 12 | rank.astype(np.int64)) << 8 | x.vpp
    code = code << 30 | count.astype(np.int64)
    _, first, which = np.unique(code, return_index=True, return_inverse=True)
    pp, vpp, rank, count = x.pp[first], x.vpp[first], rank[first], count[first]
    each = np.where(vpp > 1, count / np.maximum(np.floor(count / pp), 1.0), count)
    total, behind = count * vpp, np.where(pp > 1, pp - 1.0 - rank, 0.0)
    ahead = (vpp - 1.0) * each + np.where(vpp > 1, 2.0, 1.0) * behind
    number = np.arange(chunks)[:, None]
    # Of the backward passes this one is at: where either kind of pass goes on to another chunk.
    near = [np.ones_like(each)]
    if chunks > 1:
        cut = (2.0 * behind) % each
        near += [each - cut] if chunks > _FEW else [each - cut, each - cut - 1.0, each - 1.0]
    index = np.stack(
        [0.0 * each, *(turn * each + after for turn in _turns(chunks) for after in near)]
    )[:, None]

    def passed(done: Array, chunk: Array) -> Array:
        """[M, C, U] of the first ``done`` passes in turns, those of the chunk with this place."""
        rounds, rest = np.divmod(done, each * vpp)
        return rounds * each + np.minimum(np.maximum(rest - chunk * each, 0.0), each)

    forward = np.minimum(np.minimum(ahead, total) + 1.0 + index, total)
    held = passed(forward, number) - passed(index, vpp - 1.0 - number)
    held = np.where(number < vpp, held, 0.0)
    # Without a pipeline gradients of earlier micro-batches count.
    begun = (index > (vpp - 1.0 - number) * each) | (pp <= 1)
    turn = (vpp - 1 - (index // each) % vpp).astype(np.int64)[:, 0]
    there = (index < total)[:, 0]
    for i in range(len(index)):
        yield Moment(
            held=held[i][:, which],
            turn=turn[i][which],
            begun=begun[i][:, which],
            exists=exists & there[i][which],
        )


def _turns(chunks: int) -> list[int]:
    """Turns of chunks that are looked at: of two rounds all; of many chunks the first and the last
    two of one and the first two of the next, since each of many holds little."""
    if chunks == 1:
        return [0]
    last = {chunks - 2, chunks - 1, chunks, chunks + 1}
    return list(range(2 * chunks)) if chunks <= _FEW else sorted({0, 1, *last})


def _folded(x: Layouts, rank: Array, count: Array, chunks: int, folded: Array) -> Iterator[Moment]:
    """Two chunks in a V.

    ZB-V has 2 (pp - r) - 1 forward passes of the near chunk before the far one begins; then turns
    of both.  DualPipeV runs each chunk's forward pass just before the other's backward pass, so
    that one of the near chunk more is there.
    """
    dual = is_schedule(x.schedule, Schedule.DUALPIPE_V)
    near, far = 2.0 * x.pp - rank, rank + 1.0
    once = dual & (count - 2.0 * x.pp + rank + 1.0 <= 1.0)  # The main part has one turn alone.

    def at(low: Array, high: Array, turn: int, low_begun: bool, exists: Array) -> Moment:
        held = np.zeros((chunks, len(x)))
        held[0], held[1] = np.clip(low, 0.0, count), np.minimum(high, count)
        begun = np.ones((chunks, len(x)), dtype=bool)
        begun[0] = low_begun
        number = np.full(len(x), turn)
        return Moment(held=held, turn=number, begun=begun, exists=folded & exists)

    stable = ~dual & (np.maximum(2.0 * x.pp - 1.0, count) > x.pp)
    full = np.minimum(near, count)
    yield at(near - 1.0, far, 1, False, np.ones(len(x), dtype=bool))
    yield at(full, np.where(dual, far, far - 1.0), 0, False, stable | dual)
    yield at(full, far, 1, False, dual)
    yield at(full - 1.0, far, 1, True, stable | (dual & once))
    yield at(np.minimum(near, count - 1.0), far - 1.0, 0, True, stable)
    yield at(full, far, 1, True, dual & ~once)
    yield at(full, far, 0, True, dual & ~once)
