"""The fixed data of a witness: tokens, known by global sample index and content hash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from krzem.errors import DataError
from krzem.train.data.dataset import content_hash

MOST_TOKENS = 2_000_000
"""Over all batches: they are kept in the witness, at four bytes each."""

BUILT_IN = (
    "The quick brown fox jumps over the lazy dog. Whoever reads this on other hardware should "
    "read the same: sums in another order differ in their last digits and nowhere else. "
    "1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144. Ein Satz mit Umlauten: Übergröße, Äpfel, Öl. "
    "def mean(values): return sum(values) / len(values)  # of a list that is not empty\n"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WitnessBatch:
    """Some sequences of one step."""

    tokens: NDArray[np.int64]
    """[n, S + 1]: inputs and, one further on, targets."""
    first_sample: int | None = None
    """Global index of the first sequence; None for data without an order."""
    documents: NDArray[np.int64] | None = None
    """[n, S] an id per input token, where attention stays within documents."""

    @property
    def sha256(self) -> str:
        """Of the tokens."""
        return content_hash(self.tokens)


class Source(Protocol):
    """An order of samples, such as :class:`krzem.train.data.SampleStream`."""

    def batch(self, start: int, count: int) -> NDArray[np.int64]:
        """Tokens ``[count, S + 1]`` of global samples from ``start``."""


def batches_from(
    source: Source, *, first: int = 0, sequences: int = 4, batches: int = 2
) -> tuple[WitnessBatch, ...]:
    """``batches`` batches of ``sequences`` from global sample ``first`` on."""
    starts = range(first, first + sequences * batches, sequences)
    return tuple(
        WitnessBatch(tokens=source.batch(start, sequences), first_sample=start) for start in starts
    )


def batches_of(
    tokens: NDArray[np.int64], *, length: int, sequences: int = 4, batches: int = 2
) -> tuple[WitnessBatch, ...]:
    """Batches cut from a row of tokens; a short row is gone through again.

    Raises:
        DataError: there are no tokens.
    """
    if not tokens.size:
        raise DataError("a witness needs tokens, and there are none in what was given")
    need = batches * sequences * length + 1
    row = np.resize(tokens.reshape(-1), max(need, tokens.size)).astype(np.int64)
    starts = np.arange(batches * sequences) * length
    cut = row[starts[:, None] + np.arange(length + 1)[None]]
    return tuple(WitnessBatch(tokens=part) for part in np.split(cut, batches))


def tokens_of_text(text: str, vocabulary: int) -> NDArray[np.int64]:
    """Text as bytes, folded into the vocabulary: for models without a tokenizer."""
    return np.frombuffer(text.encode(), np.uint8).astype(np.int64) % vocabulary


def tokens_of_file(path: Path, vocabulary: int) -> NDArray[np.int64]:
    """Token ids of a file: whole numbers apart by spaces or lines, or a ``.npy`` array.

    Raises:
        DataError: it holds something else, or ids that the model has not.
    """
    try:
        if path.suffix == ".npy":
            found = np.load(path, allow_pickle=False).reshape(-1)
        else:
            found = np.array(path.read_text(encoding="utf-8").replace(",", " ").split(), np.int64)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as token ids: {error}") from None
    if not np.issubdtype(found.dtype, np.integer):
        raise DataError(f"{path} holds {found.dtype}, not whole numbers: token ids are needed")
    check_ids(found, vocabulary, str(path))
    ids: NDArray[np.int64] = found.astype(np.int64)
    return ids


def check_ids(tokens: NDArray[np.int64], vocabulary: int, where: str) -> None:
    """Raise DataError where an id lies outside the vocabulary."""
    low, high = (int(tokens.min()), int(tokens.max())) if tokens.size else (0, 0)
    if low < 0 or high >= vocabulary:
        raise DataError(
            f"{where} holds token id {high if high >= vocabulary else low}, but the model has a "
            f"vocabulary of {vocabulary:,}: 0 to {vocabulary - 1:,}"
        )


def check_batches(batches: tuple[WitnessBatch, ...]) -> None:
    """Raise DataError where there is no batch, or more than a small record can hold."""
    if not batches or not all(b.tokens.ndim == 2 and b.tokens.shape[1] > 1 for b in batches):
        raise DataError("a witness needs at least one batch of token ids [sequences, length + 1]")
    tokens = sum(b.tokens.size for b in batches)
    if tokens > MOST_TOKENS:
        raise DataError(
            f"the batches hold {tokens:,} tokens; a witness keeps at most {MOST_TOKENS:,}: "
            "use fewer or shorter sequences"
        )
