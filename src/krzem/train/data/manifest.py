"""The manifest of tokenised data: the one file that makes a folder of shards a data set.

It is written last and atomically, so a folder with a manifest is complete.  ``order_sha256`` of a
split covers what decides the tokens and their order, and nothing else (no paths, no dates): two
builds of the same text with the same tokenizer and cut are the same data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krzem.errors import DataError
from krzem.train.data.shard import Shard, token_type
from krzem.train.durable import canonical_json, write_atomic

FORMAT = "krzem.tokens"
VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerRecord:
    """Which tokenizer the ids are from."""

    name: str
    sha256: str
    vocabulary: int
    end_of_document: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """One file the text came from."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The shards of one part of the data, in order: ``train`` or ``held_out``."""

    shards: tuple[Shard, ...]

    @property
    def tokens(self) -> int:
        """Tokens, end-of-document tokens included."""
        return sum(s.tokens for s in self.shards)

    @property
    def documents(self) -> int:
        """Documents."""
        return sum(s.documents for s in self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that is known about a folder of tokenised text."""

    tokenizer: TokenizerRecord
    splits: dict[str, Split]
    sources: tuple[SourceRecord, ...]
    options: dict[str, Any]
    """How the text was cut: field, documents, held-out share, part size."""
    bad_records: dict[str, int]
    """Records that gave no document or were repaired, counted by file."""
    skipped_files: tuple[str, ...]
    """Files in the given folders whose names are of no known kind."""
    created: str
    """Time of the build, ISO 8601, UTC."""

    def order_sha256(self, split: str) -> str:
        """Hash of the tokens of ``split`` in their order."""
        shards = [
            (s.tokens_sha256, s.ends_sha256, *((s.learned_sha256,) if s.learned_sha256 else ()))
            for s in self.splits[split].shards
        ]
        return hashlib.sha256(canonical_json([FORMAT, self.tokenizer.sha256, shards])).hexdigest()

    def fault(self, folder: Path, *, deep: bool, rank: int = 0, ranks: int = 1) -> str:
        """What is wrong with the shards in ``folder``, or nothing; ``deep`` reads them whole.

        Of ``ranks`` that look at the same folder, each looks at its share of the shards.
        """
        dtype = token_type(self.tokenizer.vocabulary)
        shards = [s for split in self.splits.values() for s in split.shards][rank::ranks]
        return next((f for s in shards if (f := s.fault(folder, dtype, deep=deep))), "")

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of each file of every shard."""
        shards = [s for split in self.splits.values() for s in split.shards]
        found = {s.tokens_file: s.tokens_sha256 for s in shards}
        found |= {s.ends_file: s.ends_sha256 for s in shards}
        return found | {s.learned_file: s.learned_sha256 for s in shards if s.learned_sha256}

    def largest_id(self) -> int:
        """The largest token id that occurs."""
        return max((s.largest_id for p in self.splits.values() for s in p.shards), default=-1)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit the data set in ``folder``."""
    value = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(manifest)}
    write_atomic(folder / MANIFEST, json.dumps(value, indent=1, ensure_ascii=False).encode())


def read_manifest(path: Path) -> Manifest:
    """The manifest at ``path`` (the file or its folder); raises DataError where there is none."""
    file = path / MANIFEST if path.is_dir() or path.name != MANIFEST else path
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        unfinished = any(file.parent.glob("part-*.json")) if file.parent.is_dir() else False
        hint = (
            "the build was not finished; run the same `krzem data build` again to finish it"
            if unfinished
            else "make it with `krzem data build TEXT --out FOLDER`"
        )
        raise DataError(f"no tokenised data at {path}: {file.name} is missing; {hint}") from error
    except NotADirectoryError as error:
        raise DataError(
            f"{file.parent} is a file, not tokenised data: make a folder of it with "
            f"`krzem data build {file.parent} --out FOLDER`"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {file}: {getattr(error, 'strerror', None) or error}"
        ) from error
    try:
        return _manifest(value)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is not a manifest of krzem data version {VERSION}; build the data again with "
            "`krzem data build`"
        ) from error


def _manifest(value: dict[str, Any]) -> Manifest:
    if value.pop("format") != FORMAT or value.pop("version") != VERSION:
        raise KeyError("format")
    splits = {
        name: Split(shards=tuple(Shard(**shard) for shard in split["shards"]))
        for name, split in value.pop("splits").items()
    }
    return Manifest(
        tokenizer=TokenizerRecord(**value.pop("tokenizer")),
        splits=splits,
        sources=tuple(SourceRecord(**s) for s in value.pop("sources")),
        skipped_files=tuple(value.pop("skipped_files")),
        **value,
    )
