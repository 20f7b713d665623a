"""One unit of building: some spans of text in, one shard per split out.

What a part yields depends only on its spans, the tokenizer and the options, so parts can be built
by any number of processes in any order, and a part that is done need not be done again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from krzem.train.data.records import BadRecord, Piece, Record, read_span
from krzem.train.data.shard import Shard, ShardWriter, token_type
from krzem.train.data.sources import Documents, Span
from krzem.train.data.tokenizer import Chat, Tokenizer, conversation
from krzem.train.durable import canonical_json, write_atomic

TRAIN, HELD_OUT = "train", "held_out"
SPLITS = (TRAIN, HELD_OUT)

_BATCH_CHARACTERS = 1 << 20
_BATCH_PIECES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How text becomes documents."""

    field: str = "text"
    documents: Documents = "file"
    held_out: float = 0.0
    """Share of documents kept apart for evaluation, chosen by a hash of their text."""
    chat: bool = False
    """Whether ``field`` holds messages with roles, of which the assistant's are learned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Consecutive spans that make one shard per split."""

    number: int
    spans: tuple[Span, ...]

    @property
    def name(self) -> str:
        """Start of the names of its files."""
        return f"part-{self.number:05d}"

    @property
    def bytes(self) -> int:
        """Size on disk of the text."""
        return sum(s.bytes for s in self.spans)

    def key(self, tokenizer_sha256: str, options: Options) -> str:
        """Hash of all that decides what this part yields."""
        spans = [(s.source_sha256, s.source.format, s.start, s.stop) for s in self.spans]
        told = dataclasses.asdict(options)
        if not options.chat:  # builds of plain text keep the key that they had
            del told["chat"]
        value = [spans, tokenizer_sha256, told]
        return hashlib.sha256(canonical_json(value)).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReport:
    """What building a part gave."""

    shards: dict[str, Shard]
    bad: tuple[BadRecord, ...]
    text_bytes: int


def build_part(part: Part, tokenizer: Tokenizer, options: Options, folder: Path) -> PartReport:
    """Tokenise ``part`` into ``folder`` and record that it is done."""
    bad: list[BadRecord] = []
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                ShardWriter(folder, f"{part.name}.{split}", tokenizer.vocabulary)
            )
            for split in SPLITS
        }
        pieces = _pieces(part, options, bad)
        if options.chat:
            size = _tokenise_chats(pieces, tokenizer, options, writers, bad)
        else:
            size = _tokenise(pieces, tokenizer, options, writers)
        shards = {s: w.finish() for s, w in writers.items() if not w.empty}
    report = PartReport(shards=shards, bad=tuple(bad), text_bytes=size)
    value = {"key": part.key(tokenizer.sha256, options), **dataclasses.asdict(report)}
    write_atomic(folder / f"{part.name}.json", json.dumps(value, ensure_ascii=False).encode())
    return report


def finished_part(
    part: Part, tokenizer: Tokenizer, options: Options, folder: Path
) -> PartReport | None:
    """The report of ``part`` if it was built before with the same text, tokenizer and options.

    Its files are verified in full; None means that it must be built.
    """
    try:
        value = json.loads((folder / f"{part.name}.json").read_bytes())
        if value["key"] != part.key(tokenizer.sha256, options):
            return None
        report = _report(value)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    dtype = token_type(tokenizer.vocabulary)
    if any(s.fault(folder, dtype, deep=True) for s in report.shards.values()):
        return None
    return report


def _report(value: dict[str, Any]) -> PartReport:
    return PartReport(
        shards={name: Shard(**s) for name, s in value["shards"].items()},
        bad=tuple(BadRecord(**b) for b in value["bad"]),
        text_bytes=value["text_bytes"],
    )


def _pieces(part: Part, options: Options, bad: list[BadRecord]) -> Iterator[Piece]:
    for span in part.spans:
        records: Iterable[Record] = read_span(
            span, field=options.field, documents=options.documents, chat=options.chat
        )
        for record in records:
            if isinstance(record, BadRecord):
                bad.append(record)
            else:
                yield record


def _tokenise(
    pieces: Iterable[Piece],
    tokenizer: Tokenizer,
    options: Options,
    writers: dict[str, ShardWriter],
) -> int:
    """Write all pieces, encoded in batches; returns the bytes of text."""
    end = np.array([tokenizer.end_of_document], dtype=np.uint32)
    size = 0
    for batch in _batches(pieces):
        for piece, ids in zip(batch, tokenizer.encode([p.text for p in batch]), strict=True):
            writer = writers[_split(piece.identity, options.held_out)]
            writer.write(np.append(ids, end) if piece.last else ids)
            if piece.last:
                writer.end_document()
        size += sum(len(p.text.encode()) for p in batch)
    return size


def _tokenise_chats(
    pieces: Iterable[Piece],
    tokenizer: Tokenizer,
    options: Options,
    writers: dict[str, ShardWriter],
    bad: list[BadRecord],
) -> int:
    """Write conversations, each followed by the end of a document, which is not learned."""
    chat, size = Chat(tokenizer), 0
    for piece in pieces:
        try:
            ids, learned = chat.encode(conversation(piece.text))
        except ValueError as error:
            bad.append(BadRecord(file=piece.place[0], line=piece.place[1], reason=str(error)))
            continue
        writer = writers[_split(piece.identity, options.held_out)]
        end = np.array([tokenizer.end_of_document], dtype=np.uint32)
        writer.write(np.append(ids, end), np.append(learned, False))
        writer.end_document()
        size += len(piece.text.encode())
    return size


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= _BATCH_CHARACTERS or len(batch) >= _BATCH_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _split(identity: str, held_out: float) -> str:
    """Where a document goes: a function of its text, so equal texts are never on both sides."""
    if held_out <= 0:
        return TRAIN
    digest = hashlib.blake2b(identity.encode(), digest_size=8).digest()
    return HELD_OUT if int.from_bytes(digest, "big") < held_out * 2**64 else TRAIN
