"""Reading tokenised data: shards as one long row of tokens, mapped into memory.

A *sample* of sequence length ``s`` is ``s + 1`` consecutive tokens: the inputs and, one further
on, the targets.  Sample ``j`` starts at token ``j * s``, so that every token but the first is a
target exactly once (packing; documents run on into each other and are told apart by masks).
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from krzem.errors import DataError
from krzem.train.data.manifest import MANIFEST, Manifest, TokenizerRecord, read_manifest
from krzem.train.data.shard import END_TYPE, Shard, token_type
from krzem.train.data.tokenizer import check_vocabulary
from krzem.train.durable import TEMPORARY
from krzem.train.stores import (
    Progress,
    alone,
    cache_folder,
    copy_verified,
    is_url,
    located,
    reaching,
)

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Samples with the documents they are made of; all arrays have shape [count, sequence + 1]."""

    tokens: Integers
    documents: NDArray[np.int32]
    """Which document of its sample each token belongs to, counted from zero in every sample.

    A query may attend to a key where both are in the same document; a target counts where it is
    in the document of its input.
    """
    positions: NDArray[np.int32]
    """Place of each token in its document, counted from zero at the start of the document or, for
    one that began earlier, of the sample."""


class TokenDataset:
    """One split of a folder of tokenised text.

    Open it with :meth:`open`.  Attributes: ``folder``, ``split``, ``manifest``, ``tokens`` (their
    number), ``documents`` (their number), ``sha256`` (of the tokens in order).
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        self.folder = folder
        self.split = split
        self.manifest = manifest
        self.tokens = manifest.splits[split].tokens
        self.documents = manifest.splits[split].documents
        self.sha256 = manifest.order_sha256(split)
        self._shards = manifest.splits[split].shards
        counts = [s.tokens for s in self._shards]
        self._starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        self._dtype = token_type(manifest.tokenizer.vocabulary)

    @classmethod
    def open(
        cls, path: str | Path, split: str = "train", model_vocabulary: int | None = None
    ) -> TokenDataset:
        """The data set whose manifest lies at or in ``path``, a URL of a store included.

        Raises DataError where there is none, a shard is missing or has another size, the split
        does not exist, or ``model_vocabulary`` is too small.  Contents are checked by
        :meth:`verify`.
        """
        where = folder_of(Path(), path)
        manifest = read_manifest(where)
        folder = where if where.is_dir() else where.parent
        if split not in manifest.splits:
            raise DataError(
                f"{folder} has no split {split!r}, only {', '.join(manifest.splits)}; a held_out "
                "split is made with `krzem data build --held-out 0.01`"
            )
        fault = manifest.fault(folder, deep=False)
        if fault:
            raise DataError(f"{fault}; build the data again with `krzem data build`")
        if model_vocabulary is not None:
            check_vocabulary(manifest.tokenizer.vocabulary, model_vocabulary, manifest.largest_id())
        return cls(folder, manifest, split)

    @property
    def tokenizer(self) -> TokenizerRecord:
        """The tokenizer that the ids are from."""
        return self.manifest.tokenizer

    def verify(self) -> None:
        """Read every shard and raise DataError at the first that is not what the manifest says."""
        fault = self.manifest.fault(self.folder, deep=True)
        if fault:
            raise DataError(f"{fault}; build the data again with `krzem data build`")

    def samples(self, sequence: int) -> int:
        """How many samples of ``sequence`` tokens (and one more target) the split holds."""
        if sequence < 1:
            raise DataError(f"sequence length must be at least 1, got {sequence}")
        return max(0, (self.tokens - 1) // sequence)

    def read(self, start: int, stop: int) -> Integers:
        """Tokens ``start`` to ``stop`` of the split, across shards; shape [stop - start]."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start}:{stop} of {self.tokens:,}")
        out = np.empty(stop - start, dtype=np.int64)
        if out.size:
            self._fill(out, start, self._shard_of(np.array([start]))[0])
        return out

    def take(self, samples: Integers, sequence: int) -> Integers:
        """Tokens of the samples numbered ``samples`` (shape [n]); shape [n, sequence + 1].

        A token that is not to be predicted is ``-1 - id``.
        """
        out = np.empty((samples.size, sequence + 1), dtype=np.int64)
        starts = samples * sequence
        for row, start, shard in zip(out, starts.tolist(), self._shard_of(starts), strict=True):
            self._fill(row, start, shard)
        return out

    @property
    def is_partly_learned(self) -> bool:
        """Whether only some tokens are to be predicted (conversations)."""
        return any(shard.learned_sha256 for shard in self._shards)

    def boundaries(
        self, samples: Integers, sequence: int
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Document and position of every token of the samples; see :class:`Batch`."""
        starts = samples * sequence
        begins = np.zeros((samples.size, sequence + 1), dtype=np.bool_)
        for row, start, shard in zip(begins, starts.tolist(), self._shard_of(starts), strict=True):
            row[self._ends_from(shard, start, start + sequence) - start] = True
        ramp = np.arange(sequence + 1, dtype=np.int32)
        latest = np.maximum.accumulate(np.where(begins, ramp, np.int32(0)), axis=1)
        return np.cumsum(begins, axis=1, dtype=np.int32), ramp - latest

    def document_ends(self, start: int, stop: int) -> Integers:
        """Token counts in (start, stop] at which a document ends (its end token included)."""
        return self._ends_from(self._shard_of(np.array([start]))[0], start, stop)

    def _shard_of(self, tokens: Integers) -> list[int]:
        """Number of the shard that each token lies in."""
        found: list[int] = (np.searchsorted(self._starts, tokens, side="right") - 1).tolist()
        return found

    def _ends_from(self, first: int, start: int, stop: int) -> Integers:
        """Document ends in (start, stop], where ``start`` lies in shard ``first``."""
        found = []
        for number in range(first, len(self._shards)):
            base = int(self._starts[number])
            if base >= stop:
                break
            ends = self._ends(number)
            low, high = ends.searchsorted((start - base, stop - base), side="right")
            found.append(ends[low:high] + base)
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def _fill(self, out: Integers, start: int, number: int) -> None:
        """Copy tokens from ``start`` on, which lies in shard ``number``, into ``out``."""
        filled = 0
        while filled < out.size:
            tokens = self._tokens(number)
            at = start + filled - int(self._starts[number])
            piece = tokens[at : at + out.size - filled]
            place = out[filled : filled + piece.size]
            place[:] = piece
            shard = self._shards[number]
            if shard.learned_sha256:
                learned = _mapped(self.folder / shard.learned_file, np.dtype("u1"))
                hidden = learned[at : at + piece.size] == 0
                place[hidden] = -1 - place[hidden]
            filled += piece.size
            number += 1

    def _tokens(self, number: int) -> NDArray[np.unsignedinteger]:
        return _mapped(self.folder / self._shards[number].tokens_file, self._dtype)

    def _ends(self, number: int) -> NDArray[np.int64]:
        shard: Shard = self._shards[number]
        if not shard.documents:
            return np.empty(0, dtype=np.int64)
        return _mapped(self.folder / shard.ends_file, END_TYPE)


@functools.lru_cache(maxsize=4096)
def folder_of(base: Path, path: str | Path) -> Path:
    """Where on this machine the tokens of ``path`` lie, which is relative to ``base``.

    What a URL names is copied to the cache, each file verified; what is there already stays.

    Raises:
        DataError: there is no data set, a file is damaged, or the store cannot be reached.
    """
    if not is_url(path):
        return base / located(path)
    source = located(path)
    with reaching(path):
        manifest = read_manifest(source)
    named = hashlib.sha256((source / MANIFEST).read_bytes()).hexdigest()[:16]
    folder = cache_folder() / "tokens" / named
    with alone(folder):
        if not (folder / MANIFEST).exists():
            mirror(source, folder, manifest)
    return folder


def mirror(source: Path, target: Path, manifest: Manifest, progress: Progress | None = None) -> int:
    """Copy tokenised data from or to a store; returns the bytes that had to be copied.

    Raises:
        DataError: as :func:`krzem.train.stores.copy_verified`.
    """
    shards = manifest.hashes()
    with reaching(source):
        names = [p.name for p in source.iterdir() if p.is_file() and not p.name.startswith(".")]
    others = {n for n in names if not n.endswith(TEMPORARY)} - {*shards, MANIFEST}
    beside = dict.fromkeys(sorted(others), "")
    return copy_verified(source, target, {**shards, **beside}, MANIFEST, progress)


def _mapped(path: Path, dtype: np.dtype) -> NDArray:  # type: ignore[type-arg]
    """A file as an array; mapping costs more than reading a sample, so maps are kept.

    The plain view spares numpy's bookkeeping for maps at every slice.
    """
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)


def content_hash(tokens: Integers) -> str:
    """SHA-256 of a batch of tokens, to tell later that it was the same batch."""
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype="<i8").tobytes()).hexdigest()
