"""The order of training: global sample index -> tokens, and nothing else.

``SampleStream.batch(start, count)`` is a pure function of the data, the mixture weights, the seed
and the sequence length.  Ranks, micro-batches, pipeline stages and restarts appear nowhere: a rank
asks for the indices that are its share, and a run that moves to other hardware goes on at the next
index, so that no token is repeated or skipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from krzem.errors import DataError
from krzem.train.data._mixture import Mixture
from krzem.train.data._permutation import permute, scramble
from krzem.train.data.dataset import Batch, TokenDataset
from krzem.train.durable import canonical_json

Integers = NDArray[np.int64]

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
