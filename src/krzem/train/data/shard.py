"""One shard: a file of token ids and a file of where its documents end.

``NAME.tokens`` holds little-endian ``uint16`` or ``uint32`` ids, ``NAME.ends`` little-endian
``int64`` token counts, one per document, each the place just after the document's end token.
A document that goes on in the next shard has no end in this one.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from krzem.errors import DataError
from krzem.train.durable import TEMPORARY, storing, write_atomic

_BLOCK = 4 << 20
END_TYPE = np.dtype("<i8")


def token_type(vocabulary: int) -> np.dtype[np.unsignedinteger]:
    """The narrowest type that holds ids below ``vocabulary``."""
    return np.dtype("<u2") if vocabulary <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """What a manifest says about one shard; files are named relative to the manifest."""

    name: str
    tokens: int
    documents: int
    """Documents that end in this shard."""
    largest_id: int
    tokens_sha256: str
    ends_sha256: str
    learned_sha256: str = ""
    """Of ``NAME.learned``, a byte for each token: 1 where it is to be predicted.  Empty where all
    are, and then there is no such file."""

    @property
    def learned_file(self) -> str:
        """File of which tokens are to be predicted."""
        return f"{self.name}.learned"

    @property
    def tokens_file(self) -> str:
        """File of token ids."""
        return f"{self.name}.tokens"

    @property
    def ends_file(self) -> str:
        """File of document ends."""
        return f"{self.name}.ends"

    def fault(self, folder: Path, dtype: np.dtype[np.unsignedinteger], *, deep: bool) -> str:
        """What is wrong with this shard's files, or nothing; ``deep`` reads them whole."""
        checks: tuple[tuple[str, int, str], ...] = (
            (self.tokens_file, self.tokens * dtype.itemsize, self.tokens_sha256),
            (self.ends_file, self.documents * END_TYPE.itemsize, self.ends_sha256),
        )
        if self.learned_sha256:
            checks = (*checks, (self.learned_file, self.tokens, self.learned_sha256))
        for name, size, sha256 in checks:
            path = folder / name
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != size:
                return f"{path} has {path.stat().st_size:,} bytes, the manifest says {size:,}"
            if deep and file_sha256(path) != sha256:
                return f"{path} was altered: its SHA-256 is not the manifest's {sha256[:12]}…"
        return ""


class ShardWriter:
    """Writes one shard; used as a context, which renames the files into place on success."""

    def __init__(self, folder: Path, name: str, vocabulary: int) -> None:
        self._folder = folder
        self._name = name
        self._vocabulary = vocabulary
        self._dtype = token_type(vocabulary)
        self._digest = hashlib.sha256()
        self._ends: list[int] = []
        self._learned: list[bytes] = []
        self._count = 0
        self._largest = -1
        self._path = folder / f"{name}.tokens{TEMPORARY}"

    def __enter__(self) -> ShardWriter:
        with storing(self._path):
            self._file = self._path.open("wb")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    @property
    def empty(self) -> bool:
        """Whether nothing was written yet."""
        return self._count == 0

    def write(self, ids: NDArray[np.uint32], learned: NDArray[np.bool_] | None = None) -> None:
        """Append ``ids``, and which of them are to be predicted, each of shape [n]."""
        if not ids.size:
            return
        if learned is not None:
            self._learned.append(learned.astype(np.uint8).tobytes())
        self._largest = max(self._largest, int(ids.max()))
        if self._largest >= self._vocabulary:
            raise DataError(
                f"the tokenizer gave id {self._largest:,}, outside its own vocabulary of "
                f"{self._vocabulary:,}: its file is inconsistent"
            )
        raw = ids.astype(self._dtype).data
        self._digest.update(raw)
        with storing(self._path):
            self._file.write(raw)
        self._count += ids.size

    def end_document(self) -> None:
        """Mark that a document ends after the tokens written so far."""
        self._ends.append(self._count)

    def finish(self) -> Shard:
        """Force both files to the disk under their names and describe them."""
        ends = np.array(self._ends, dtype=END_TYPE).tobytes()
        with storing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            ends_path = self._folder / f"{self._name}.ends{TEMPORARY}"
            with ends_path.open("wb") as file:
                file.write(ends)
                file.flush()
                os.fsync(file.fileno())
            ends_path.replace(self._folder / f"{self._name}.ends")
            learned = b"".join(self._learned)
            if learned:
                write_atomic(self._folder / f"{self._name}.learned", learned)
            self._path.replace(self._folder / f"{self._name}.tokens")
        return Shard(
            name=self._name,
            tokens=self._count,
            documents=len(self._ends),
            largest_id=self._largest,
            tokens_sha256=self._digest.hexdigest(),
            ends_sha256=hashlib.sha256(ends).hexdigest(),
            learned_sha256=hashlib.sha256(learned).hexdigest() if learned else "",
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
