"""Pipeline schedules: idle time and micro-batches in flight, in closed form.

Sources: 1F1B and interleaving, Narayanan et al. (arXiv 2104.04473); ZB-H1 and ZB-V, Qi et al.
(arXiv 2401.10241, 2405.15362); DualPipe and DualPipeV, DeepSeek (arXiv 2412.19437 table 2 and the
DualPipe repository).  The closed forms are tested against event-by-event simulation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from krzem.layout.layout import SCHEDULES, Schedule

Array = Any

_INDEX = {schedule: i for i, schedule in enumerate(SCHEDULES)}


def is_schedule(codes: Array, *schedules: Schedule) -> Array:
    """Mask of the layouts that use one of ``schedules``."""
    found = codes == _INDEX[schedules[0]]
    for schedule in schedules[1:]:
        found = found | (codes == _INDEX[schedule])
    return found


def fill_factor(codes: Array, vpp: Array, forward: Array, backward: Array, weight: Array) -> Array:
    """Idle time of a pipeline relative to plain 1F1B (whose idle time is that of filling it).

    Arguments are seconds of one micro-batch on one rank; ``weight`` is the part of ``backward``
    that computes weight gradients.
    """
    total = forward + backward
    factor = np.ones_like(total)
    factor = np.where(is_schedule(codes, Schedule.INTERLEAVED), 1.0 / vpp, factor)
    h1 = np.maximum(total - 2.0 * weight, 0.0) / total
    factor = np.where(is_schedule(codes, Schedule.ZB_H1), h1, factor)
    v = np.maximum(total - 3.0 * weight, 0.05 * total) / total
    factor = np.where(is_schedule(codes, Schedule.ZB_V), v, factor)
    dual = np.maximum(total + backward - 3.0 * weight, 0.0) / (2.0 * total)
    return np.where(is_schedule(codes, Schedule.DUALPIPE, Schedule.DUALPIPE_V), dual, factor)


def in_flight(codes: Array, pp: Array, vpp: Array, rank: Array, micro_batches: Array) -> Array:
    """Micro-batches whose activations pipeline rank ``rank`` holds at the peak.

    In units of one micro-batch through all layers of the rank (chunks count as parts of it).
    """
    plain = pp - rank
    chunks = (vpp - 1.0) * pp + 2.0 * (pp - rank - 1.0) + 1.0
    held = np.where(is_schedule(codes, Schedule.INTERLEAVED), chunks / vpp, plain)
    # ZB-V holds p micro-batches' worth on every rank; DualPipe one more (both directions).
    held = np.where(is_schedule(codes, Schedule.ZB_V), pp, held)
    held = np.where(is_schedule(codes, Schedule.DUALPIPE, Schedule.DUALPIPE_V), pp + 1.0, held)
    return np.minimum(held, micro_batches)


def weight_copies(codes: Array) -> Array:
    """Copies of the weights a rank holds: DualPipe keeps both directions."""
    return np.where(is_schedule(codes, Schedule.DUALPIPE), 2.0, 1.0)


def joined_ends(codes: Array, first: Array, middle: Array, last: Array) -> tuple[Array, Array]:
    """What the first and the last rank carry, given what the ends and the middle of a pipe cost.

    In a V the first rank holds the first and the last chunk, at least a half of either end;
    DualPipe's ranks each hold a stage and its mirror image and work half of the time for either.
    """
    v = is_schedule(codes, Schedule.ZB_V, Schedule.DUALPIPE_V)
    both = is_schedule(codes, Schedule.DUALPIPE)
    mean = 0.5 * (first + last)
    folded = np.maximum(first + last - middle, 0.5 * np.maximum(first, last))
    front = np.where(v, folded, np.where(both, mean, first))
    return front, np.where(v, middle, np.where(both, mean, last))


def overlaps_dispatch(codes: Array) -> Array:
    """Whether forward and backward chunks run against each other, hiding the all-to-all."""
    return is_schedule(codes, Schedule.DUALPIPE, Schedule.DUALPIPE_V)
