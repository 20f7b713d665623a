"""A shuffle whose every position can be asked for alone.

Shuffling a list needs the list.  A data order for trillions of tokens that must survive any
change of ranks needs a *function* instead: position -> position, one to one, different for every
key, without memory.  Three operations on ``b``-bit words are one to one (adding a constant,
multiplying by an odd constant, xor with one's own upper half); a few keyed rounds of them mix
``[0, 2^b)``.  Words that land outside ``[0, size)`` are sent round again until they land inside
("cycle walking"), which keeps the map one to one on ``[0, size)`` and takes under two rounds on
average because ``2^b < 2 * size``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def scramble(words: Words) -> Words:
    """The finaliser of SplitMix64: spreads every input bit over the whole word."""
    z = words + _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def permute(positions: Words, size: int, keys: Words) -> Words:
    """Shuffled place of each of ``positions``, each under its own key.

    ``positions`` and ``keys`` have the same shape ``[n]``; positions lie in ``[0, size)``.  For one
    key the map is a bijection of ``[0, size)``.
    """
    if size < 1:
        raise ValueError(f"a permutation needs at least one element, got size {size}")
    bits = max(1, (size - 1).bit_length())
    place = _mix(positions.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(place >= size)
    while outside.size:
        place[outside] = _mix(place[outside], bits, keys[outside])
        outside = outside[place[outside] >= size]
    return place


def _mix(words: Words, bits: int, keys: Words) -> Words:
    mask = np.uint64((1 << bits) - 1)
    shift = np.uint64(max(1, bits // 2))
    state = keys
    for _ in range(_ROUNDS):
        state = scramble(state)
        words = (words + (state >> np.uint64(32))) & mask
        words = (words * (state | np.uint64(1))) & mask
        words = words ^ (words >> shift)
    return words
