"""An n-gram model by counting: the loss that a trained model has to beat on the same tokens.

Interpolated modified Kneser-Ney smoothing (Chen and Goodman, TR-10-98, Harvard 1998, section 3):
the highest order counts occurrences, every lower one the different tokens seen before it; three
discounts for each order, for counts of one, two, and three or more, from the counts of counts; the
lowest order is mixed with the uniform distribution, so every token has a probability.

The text is one row of tokens; contexts run on across the ends of documents, as packed samples do.

Shape letters: N tokens of a text, G different grams of one order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from krzem.errors import DataError

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts of an order that has no gram seen once, twice, three or four times."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Order:
    """Grams of one length: a prefix, which is a gram of the order below, and a token."""

    keys: Integers
    """[G] ascending, prefix number times vocabulary plus token; the place is the gram's number."""
    share: Reals
    """[G] the gram's discounted count over its prefix's total."""
    seen: NDArray[np.bool_]
    """[prefixes] whether anything was counted after the prefix."""
    rest: Reals
    """[prefixes] the mass left to the order below."""
    discounts: tuple[float, float, float]


class NGram:
    """Counts of ``tokens`` with contexts of up to ``order - 1`` tokens.

    Attributes: ``order``, ``vocabulary``, ``discounts`` (three for each order, lowest first) and
    ``grams`` (how many different ones of each order were seen).

    Raises:
        DataError: no tokens, an order below 1, or a token outside the vocabulary.
    """

    def __init__(self, tokens: NDArray[Any], *, order: int, vocabulary: int) -> None:
        if order < 1:
            raise DataError(f"an n-gram model of order {order}: the order has to be 1 or more")
        self.order, self.vocabulary = order, vocabulary
        text = self._checked(tokens)
        if len(text) < order:
            raise DataError(f"{len(text)} tokens are too few to count grams of {order} tokens")
        self._orders = _count(text, order, vocabulary)

    @property
    def discounts(self) -> tuple[tuple[float, float, float], ...]:
        """What is taken from counts of one, two, and three or more, by order."""
        return tuple(o.discounts for o in self._orders)

    @property
    def grams(self) -> tuple[int, ...]:
        """Different grams of each order."""
        return tuple(len(o.keys) for o in self._orders)

    def log_probabilities(self, tokens: NDArray[Any]) -> Reals:
        """[N] natural logarithm of each token's probability after those before it in ``tokens``."""
        text = self._checked(tokens)
        probability = np.full(len(text), 1.0 / self.vocabulary)
        # The number of the gram of the order below that ends at each token: at first the empty one.
        below = np.zeros(len(text), dtype=np.int64)
        for length, order in enumerate(self._orders, start=1):
            prefix = np.full(len(text), -1, dtype=np.int64)
            prefix[1 if length > 1 else 0 :] = below[:-1] if length > 1 else below
            gram = _find(order.keys, prefix, text, self.vocabulary)
            counted = (prefix >= 0) & order.seen[prefix]
            own = np.where(gram >= 0, order.share[gram], 0.0)
            mixed = own + order.rest[prefix] * probability
            probability = np.where(counted, mixed, probability)
            below = gram
        return np.log(probability)

    def loss(self, tokens: NDArray[Any]) -> float:
        """Mean negative log probability, in nats, of every token of ``tokens`` but the first."""
        if len(tokens) < 2:
            raise DataError("a loss needs two tokens or more: the first is context alone")
        return -float(self.log_probabilities(tokens)[1:].mean())

    def distribution(self, context: Sequence[int]) -> Reals:
        """[vocabulary] probabilities of the token after ``context``."""
        rows = [[*context, token] for token in range(self.vocabulary)]
        return np.exp([self.log_probabilities(np.array(row))[-1] for row in rows])

    def _checked(self, tokens: NDArray[Any]) -> Integers:
        text = np.asarray(tokens).astype(np.int64)
        if len(text) and not 0 <= text.min() <= text.max() < self.vocabulary:
            raise DataError(
                f"token {text.max() if text.max() >= self.vocabulary else text.min()} is outside "
                f"a vocabulary of {self.vocabulary}"
            )
        return text


def _count(text: Integers, order: int, vocabulary: int) -> list[_Order]:
    """Every order up to ``order``, lowest first."""
    # ends[i] is the number of the gram that ends at token i + length - 1, in text order.
    ends, levels, suffixes = np.zeros(len(text) + 1, dtype=np.int64), [], []
    for length in range(1, order + 1):
        keys, first, inverse = np.unique(
            ends[:-1] * vocabulary + text[length - 1 :], return_index=True, return_inverse=True
        )
        suffixes.append(ends[first + 1])
        levels.append((keys, np.bincount(inverse)))
        ends = inverse
    orders = []
    for place, (keys, occurrences) in enumerate(levels):
        last = place == order - 1
        counts = occurrences if last else np.bincount(suffixes[place + 1], minlength=len(keys))
        prefixes = len(levels[place - 1][0]) if place else 1
        orders.append(_smoothed(keys, counts, prefixes, vocabulary))
    return orders


def _smoothed(keys: Integers, counts: Integers, prefixes: int, vocabulary: int) -> _Order:
    discounts = _discounts(counts)
    discount = np.array([0.0, *discounts])[np.minimum(counts, 3)]
    prefix = keys // vocabulary
    total = np.bincount(prefix, weights=counts, minlength=prefixes)
    taken = np.bincount(prefix, weights=discount, minlength=prefixes)
    safe = np.maximum(total, 1.0)
    return _Order(
        keys=keys,
        share=(counts - discount) / safe[prefix],
        seen=total > 0,
        rest=taken / safe,
        discounts=discounts,
    )


def _discounts(counts: Integers) -> tuple[float, float, float]:
    """Chen and Goodman's estimate, each between zero and the count that it is taken from."""
    n1, n2, n3, n4 = (int((counts == n).sum()) for n in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return FALLBACK
    y = n1 / (n1 + 2 * n2)
    raw = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    low, middle, high = (min(max(d, 0.0), n) for n, d in enumerate(raw, start=1))
    return low, middle, high


def _find(keys: Integers, prefix: Integers, text: Integers, vocabulary: int) -> Integers:
    """[N] numbers of the grams of ``prefix`` and token, -1 where there is none."""
    wanted = np.where(prefix >= 0, prefix * vocabulary + text, -1)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)
