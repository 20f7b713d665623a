"""Which elements are sampled: a function of the name and the full shape alone.

So every layout, device and version of the software samples the same elements, and none of the
positions needs to be stored.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]

SAMPLES = 96
"""Of each tensor, where the budget allows."""
PER_EXPERT = 3
"""Of each expert in a tensor of experts: the same places in all, so that an order shows."""
BUDGET = 1_200_000
"""Sampled values of all tensors of a model; 4 bytes each, several quantities per tensor."""
FEWEST = 4


def samples_per_tensor(tensors: int) -> int:
    """Samples of each of so many tensors, within the budget."""
    return max(FEWEST, min(SAMPLES, BUDGET // max(1, tensors)))


def positions(name: str, shape: tuple[int, ...], samples: int) -> Positions:
    """Coordinates ``[K, len(shape)]`` of the sampled elements of a tensor.

    Tensors of more than two axes hold one expert each in the first: all of them are sampled, at
    the same places.
    """
    if not shape:
        return np.zeros((1, 0), np.int64)
    if len(shape) <= 2:
        flat = _spread(name, math.prod(shape), samples)
        return np.stack(np.unravel_index(flat, shape), axis=1).astype(np.int64)
    each = max(PER_EXPERT, samples // shape[0])
    inner = _spread(name, math.prod(shape[1:]), each)
    places = np.stack(np.unravel_index(inner, shape[1:]), axis=1)
    experts = np.repeat(np.arange(shape[0]), len(places))
    return np.column_stack((experts, np.tile(places, (shape[0], 1)))).astype(np.int64)


def scattered(name: str, shape: tuple[int, ...], samples: int) -> Positions:
    """Coordinates of ``samples`` elements of an activation, all axes alike."""
    flat = _spread(name, math.prod(shape), samples)
    return np.stack(np.unravel_index(flat, shape), axis=1).astype(np.int64)


def _spread(name: str, elements: int, samples: int) -> Positions:
    """``samples`` (or all) of ``elements``, one at a random place of each equal part."""
    if elements <= samples:
        return np.arange(elements, dtype=np.int64)
    digest = hashlib.shake_128(name.encode()).digest(8 * samples)
    share = np.frombuffer(digest, "<u8").astype(np.float64) / 2.0**64
    edges = [i * elements // samples for i in range(samples + 1)]
    first, width = np.array(edges[:-1], np.int64), np.diff(np.array(edges, np.int64))
    picked: Positions = first + np.minimum((share * width).astype(np.int64), width - 1)
    return picked
