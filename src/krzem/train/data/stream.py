"""The order of training: global sample index -> tokens, and nothing else.

``SampleStream.batch(start, count)`` is a pure function of the data, the mixture weights, the seed
and the sequence length.  Ranks, micro-batches, pipeline stages and restarts appear nowhere: a rank
asks for the indices that are its share, and a run that moves to other hardware goes on at the next
index, so that no token is repeated or skipped.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from krzem.errors import DataError
from krzem.train.data.dataset import Batch, TokenDataset
from krzem.train.durable import canonical_json

# Which data set the i-th sample comes from, for given mixture weights
# --------------------------------------------------------------------

MAX_PERIOD = 1_000_000

Integers = NDArray[np.int64]


def exact_weights(weights: Sequence[float | int | str | Fraction]) -> tuple[Fraction, ...]:
    """``weights`` as fractions that add up to one; ``0.1`` means one tenth, as it is written."""
    try:
        fractions = [w if isinstance(w, Fraction) else Fraction(str(w)) for w in weights]
    except (ValueError, ZeroDivisionError) as error:
        raise DataError(f"mixture weights must be numbers, got {list(weights)!r}") from error
    if not fractions or min(fractions) <= 0:
        shown = ", ".join(map(str, weights)) or "none"
        raise DataError(
            f"mixture weights must all be above zero, got {shown}; leave out a data set instead of "
            "giving it weight zero"
        )
    total = sum(fractions)
    return tuple(f / total for f in fractions)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """An assignment of sample indices to data sets, periodic and tabulated over one period."""

    weights: tuple[Fraction, ...]
    component: Integers
    """Data set of each index in one period; shape [period]."""
    rank: Integers
    """How many earlier indices of the period have the same data set; shape [period]."""
    quota: Integers
    """Indices per period of each data set; shape [data sets]."""

    @classmethod
    def of(cls, weights: Sequence[float | int | str | Fraction]) -> Mixture:
        """The assignment for ``weights``; raises DataError where they have no short period."""
        exact = exact_weights(weights)
        period = math.lcm(*(f.denominator for f in exact))
        if period > MAX_PERIOD:
            raise DataError(
                f"mixture weights {', '.join(map(str, weights))} repeat only after {period:,} "
                f"samples (limit {MAX_PERIOD:,}); round them to three or four digits"
            )
        quota = np.array([int(f * period) for f in exact], dtype=np.int64)
        component = _chairman(quota)
        rank = np.empty(period, dtype=np.int64)
        for k in range(len(exact)):
            rank[component == k] = np.arange(quota[k])
        return cls(weights=exact, component=component, rank=rank, quota=quota)

    def assign(self, index: Integers) -> tuple[Integers, Integers]:
        """Data set of each global sample index, and how many earlier ones it has served already.

        ``index`` has shape [n] with values >= 0; both results have shape [n].
        """
        period, at = np.divmod(index, self.component.size)
        component = self.component[at]
        return component, period * self.quota[component] + self.rank[at]


def _chairman(quota: Integers) -> Integers:
    """One period of the chairman assignment; integers scaled by ``period * slack`` keep it exact.

    With ``credit`` = what a data set is owed so far, it is *due* once its credit with this step's
    share reaches ``1/slack``, and its *deadline* is the number of steps after which the credit
    would exceed ``1 - 1/slack``.
    """
    period, slack = int(quota.sum()), max(2 * quota.size - 2, 1)
    if quota.size == 1:
        return np.zeros(period, dtype=np.int64)
    unit, share = period * slack, [int(q) * slack for q in quota]
    credit = [0] * quota.size
    chosen = np.empty(period, dtype=np.int64)
    for step in range(period):
        due = [k for k, c in enumerate(credit) if c + share[k] >= period]
        best = min(due, key=lambda k: (-((credit[k] + period - unit) // share[k]), k))
        credit = [c + s for c, s in zip(credit, share, strict=True)]
        credit[best] -= unit
        chosen[step] = best
    return chosen


# A shuffle whose every position can be asked for alone
# -----------------------------------------------------

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


# The order of training: global sample index -> tokens, and nothing else
# ----------------------------------------------------------------------


ORDER_VERSION = 1
"""Raised if the order for the same inputs ever changes; part of the fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One data set of a mixture, with its share of the samples."""

    dataset: TokenDataset
    weight: float | int | str | Fraction = 1
    """Relative share; taken as the decimal it is written as, so ``0.1`` is one tenth."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Places:
    """Where global samples come from; all arrays have shape [count]."""

    component: Integers
    epoch: Integers
    """How often the component was used up before, counted from zero."""
    sample: Integers
    """Number of the sample within the component."""


class SampleStream:
    """An endless, seeded order over a mixture of data sets.

    Every component is gone through in an order of its own, each sample once per epoch, shuffled
    anew every epoch.  ``fingerprint`` identifies the order: two streams with equal fingerprints
    give equal tokens at every index.
    """

    def __init__(
        self,
        components: Sequence[Component] | TokenDataset,
        *,
        sequence: int,
        seed: int,
    ) -> None:
        if isinstance(components, TokenDataset):
            components = (Component(dataset=components),)
        self.components = tuple(components)
        self.sequence = sequence
        self.seed = seed
        self.mixture = Mixture.of([c.weight for c in self.components])
        _check_tokenizers([c.dataset for c in self.components])
        self.sizes = tuple(c.dataset.samples(sequence) for c in self.components)
        for component, size in zip(self.components, self.sizes, strict=True):
            _check_size(component.dataset, size, sequence)
        self._keys = [self._key(c.dataset.sha256) for c in self.components]
        self.is_partly_learned = any(c.dataset.is_partly_learned for c in self.components)
        """Whether some tokens are not to be predicted, and come as ``-1 - id``."""
        self.fingerprint = hashlib.sha256(canonical_json(self._identity())).hexdigest()

    def batch(self, start: int, count: int) -> Integers:
        """Tokens of global samples ``start`` to ``start + count``: int64 [count, sequence + 1]."""
        return self._tokens(self.places(start, count))

    def batch_with_documents(self, start: int, count: int) -> Batch:
        """The same samples with their document numbers and positions, for document masking."""
        places = self.places(start, count)
        shape = (count, self.sequence + 1)
        documents, positions = np.empty(shape, np.int32), np.empty(shape, np.int32)
        for number, component in enumerate(self.components):
            rows = np.flatnonzero(places.component == number)
            if rows.size:
                documents[rows], positions[rows] = component.dataset.boundaries(
                    places.sample[rows], self.sequence
                )
        return Batch(tokens=self._tokens(places), documents=documents, positions=positions)

    def places(self, start: int, count: int) -> Places:
        """Data set, epoch and sample of each global sample index; no data is read."""
        if start < 0 or count < 0:
            raise IndexError(f"samples {start} to {start + count}")
        component, served = self.mixture.assign(np.arange(start, start + count, dtype=np.int64))
        epoch = np.empty_like(served)
        sample = np.empty_like(served)
        for number, size in enumerate(self.sizes):
            rows = np.flatnonzero(component == number)
            epoch[rows], position = np.divmod(served[rows], size)
            keys = scramble(self._keys[number] ^ scramble(epoch[rows].astype(np.uint64)))
            sample[rows] = permute(position.astype(np.uint64), size, keys).astype(np.int64)
        return Places(component=component, epoch=epoch, sample=sample)

    def _tokens(self, places: Places) -> Integers:
        out = np.empty((places.sample.size, self.sequence + 1), dtype=np.int64)
        for number, component in enumerate(self.components):
            rows = np.flatnonzero(places.component == number)
            if rows.size:
                out[rows] = component.dataset.take(places.sample[rows], self.sequence)
        return out

    def _key(self, dataset_sha256: str) -> np.uint64:
        text = f"{ORDER_VERSION} {self.seed} {dataset_sha256}"
        return np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))

    def _identity(self) -> list[object]:
        weights = [str(w) for w in self.mixture.weights]
        hashes = [c.dataset.sha256 for c in self.components]
        return ["krzem.order", ORDER_VERSION, self.seed, self.sequence, weights, hashes]


def _check_size(dataset: TokenDataset, size: int, sequence: int) -> None:
    if not size:
        raise DataError(
            f"{dataset.folder} ({dataset.split}) has {dataset.tokens:,} tokens, fewer than the "
            f"{sequence + 1:,} of one sample of sequence length {sequence:,}; shorten the "
            "sequence or add text"
        )


def _check_tokenizers(datasets: Sequence[TokenDataset]) -> None:
    first = datasets[0]
    for other in datasets[1:]:
        if other.tokenizer.sha256 != first.tokenizer.sha256:
            raise DataError(
                f"a mixture needs one tokenizer: {first.folder} is made with "
                f"{first.tokenizer.name}, {other.folder} with another ({other.tokenizer.name}); "
                "build them with the same file"
            )
