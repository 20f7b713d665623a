"""The planner's moments of torch's pipeline schedules are the fullest of torch's own orders."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch.distributed.pipelining import (
    ScheduleDualPipeV,
    ScheduleInterleaved1F1B,
    ScheduleZBVZeroBubble,
)

from krzem.cost.trainer_schedule import moments
from krzem.layout.layout import Layout, Schedule, pack

KINDS: dict[Schedule, Any] = {
    Schedule.INTERLEAVED: ScheduleInterleaved1F1B,
    Schedule.ZB_V: ScheduleZBVZeroBubble,
    Schedule.DUALPIPE_V: ScheduleDualPipeV,
}
WORDS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}


def order(layout: Layout, count: int, rank: int) -> Iterator[tuple[str, int]]:
    """Passes of ``rank`` in torch's order: forward F, whole backward B, its halves I and W; and the
    chunk of each."""
    pp = layout.pp
    given = SimpleNamespace(
        pp_group_size=pp, _n_microbatches=count, num_stages=pp * layout.vpp,
        n_local_stages=layout.vpp, microbatches_per_round=count // max(1, count // pp),
    )  # fmt: skip
    for action in KINDS[layout.schedule]._calculate_single_rank_operations(given, rank):
        for one in () if action is None else action.sub_actions or (action,):
            if (word := WORDS.get(one.computation_type.name)) is not None:
                yield word, one.stage_index // pp


def fullest(passes: Iterator[tuple[str, int]], kept: list[float], gradients: list[float]) -> float:
    """Most that is held, in the units of a chunk's ``kept`` and ``gradients``."""
    held, begun, best = [0] * len(kept), [False] * len(kept), 0.0
    for what, chunk in passes:
        held[chunk] += what == "F"
        sums = (h * k + b * g for h, k, b, g in zip(held, kept, begun, gradients, strict=True))
        best = max(best, sum(sums))
        if what in ("B", "W"):
            held[chunk] -= 1
            begun[chunk] = True
    return best


def drawn(draw: random.Random) -> tuple[Layout, int]:
    schedule, pp = draw.choice(list(KINDS)), draw.choice((2, 3, 4, 8))
    vpp = draw.choice((2, 3, 4)) if schedule is Schedule.INTERLEAVED else 2
    layout = Layout(pp=pp, vpp=vpp, schedule=schedule)
    count = draw.randrange(2 * pp, 6 * pp)
    if schedule is Schedule.INTERLEAVED:
        rounds = draw.choice((1, 2, 3))
        count = rounds * draw.randrange(pp, pp + max(1, pp // rounds))
    return layout, count


@pytest.mark.parametrize("seed", range(4))
def test_moments_are_the_fullest_of_torchs_orders(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(120):
        layout, count = drawn(draw)
        x, rank = pack([layout]), draw.randrange(layout.pp)
        kept = [draw.uniform(0.2, 2.0) for _ in range(layout.vpp)]
        gradients = [draw.choice((0.0, 1.0, 6.0)) for _ in range(layout.vpp)]
        best = 0.0
        for moment in moments(x, np.array([rank]), np.array([float(count)])):
            begun = moment.begun[:, 0] * np.array(gradients)
            found = float(moment.held[:, 0] @ np.array(kept) + begun.sum())
            best = max(best, found) if moment.exists[0] else best
        real = fullest(order(layout, count, rank), kept, gradients)
        assert best == pytest.approx(real, rel=1e-9), (str(layout), count, rank)


def test_a_pipe_that_is_never_filled_again_has_gradients_later() -> None:
    """1F1B with as many micro-batches as stages: all of them, then one less beside gradients."""
    layout = replace(Layout(), pp=4)
    found = list(moments(pack([layout]), np.array([0]), np.array([4.0])))
    seen = [(float(m.held[0, 0]), bool(m.begun[0, 0])) for m in found]
    assert seen == [(4.0, False), (3.0, True)]
