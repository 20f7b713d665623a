"""The fixed data of a witness: tokens, known by global sample index and content hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from krzem.errors import DataError
from krzem.train.data.dataset import content_hash

MOST_TOKENS = 2_000_000
"""Over all batches, at most."""
KEPT_TOKENS = 65_536
"""So many are kept in a witness, at four bytes each; of more the data hold them, and the witness
their positions and hash."""

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
    def shape(self) -> tuple[int, int]:
        """Sequences, and input tokens of each."""
        return self.tokens.shape[0], self.tokens.shape[1] - 1

    @property
    def sha256(self) -> str:
        """Of the tokens."""
        return content_hash(self.tokens)

    @property
    def documents_sha256(self) -> str | None:
        """Of the documents' numbers."""
        return None if self.documents is None else content_hash(self.documents)


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """A batch whose tokens the data hold: where they are, and what they have to be."""

    first_sample: int
    shape: tuple[int, int]
    """Sequences, and input tokens of each."""
    sha256: str
    """Of the tokens."""
    documents_sha256: str | None = None
    """Of the documents' numbers, where attention stays within them."""


Recorded = WitnessBatch | Positions


class Source(Protocol):
    """An order of samples, such as :class:`krzem.train.data.SampleStream`."""

    def batch(self, start: int, count: int) -> NDArray[np.int64]:
        """Tokens ``[count, S + 1]`` of global samples from ``start``."""


def batches_from(
    source: Source,
    *,
    first: int = 0,
    sequences: int = 4,
    batches: int = 2,
    documents: bool = False,
) -> tuple[WitnessBatch, ...]:
    """``batches`` batches of ``sequences`` from global sample ``first`` on.

    With ``documents`` the source also tells which document each token is of, as
    :meth:`krzem.train.data.SampleStream.batch_with_documents` does.
    """
    starts = range(first, first + sequences * batches, sequences)
    return tuple(_batch_of(source, start, sequences, documents) for start in starts)


def _batch_of(source: Any, start: int, count: int, documents: bool) -> WitnessBatch:
    if not documents:
        return WitnessBatch(tokens=source.batch(start, count), first_sample=start)
    found = source.batch_with_documents(start, count)
    return WitnessBatch(
        tokens=found.tokens,
        first_sample=start,
        documents=found.documents[:, :-1].astype(np.int64),
    )


def kept(batches: Sequence[WitnessBatch]) -> tuple[Recorded, ...]:
    """What a witness keeps of ``batches``: few tokens as they are, of many only where they are."""
    many = sum(b.tokens.size for b in batches) > KEPT_TOKENS
    return tuple(
        Positions(
            first_sample=b.first_sample,
            shape=b.shape,
            sha256=b.sha256,
            documents_sha256=b.documents_sha256,
        )
        if many and b.first_sample is not None
        else b
        for b in batches
    )


def found_again(recorded: Sequence[Recorded], source: Source | None) -> tuple[WitnessBatch, ...]:
    """The recorded batches, read from ``source`` where there is one, and compared.

    Raises:
        DataError: the data at hand do not give the recorded tokens or documents, or there are
            no data and the witness holds positions alone.
    """
    return tuple(_again(batch, source) for batch in recorded)


def _again(batch: Recorded, source: Source | None) -> WitnessBatch:
    if source is None:
        if isinstance(batch, WitnessBatch):
            return batch
        raise DataError(
            f"the witness holds the positions of its tokens (samples from {batch.first_sample:,} "
            "on) and not the tokens: give --run-file or --data, from which they are read"
        )
    if batch.first_sample is None:
        raise DataError(
            "the witness does not say which samples its batches are, so they cannot be "
            "compared with this data"
        )
    n, length = batch.shape
    found = _batch_of(source, batch.first_sample, n, batch.documents_sha256 is not None)
    where = f"samples {batch.first_sample} to {batch.first_sample + n - 1}"
    if found.shape != batch.shape:
        raise DataError(
            f"{where} have {found.shape[1]} tokens here, {length} in the witness: the sequence "
            "length differs"
        )
    if found.sha256 != batch.sha256:
        raise DataError(
            f"{where} hold other tokens here than in the witness: data, seed, weights or "
            "tokenizer differ"
        )
    if found.documents_sha256 != batch.documents_sha256:
        raise DataError(f"{where} are cut into other documents here than in the witness")
    return found


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
            f"the batches hold {tokens:,} tokens; a witness is made of at most {MOST_TOKENS:,}: "
            "use fewer or shorter sequences; ranks beyond them compute the same ones again"
        )
