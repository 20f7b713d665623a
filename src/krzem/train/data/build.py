"""Text files to a folder of memory-mapped token shards.

The work is cut into parts that several processes build; each part records that it is done, and
the manifest is written last.  Running the same build again verifies the parts that are there and
builds the rest; running another build into the same folder is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from krzem.errors import DataError
from krzem.train.data.manifest import (
    Manifest,
    SourceRecord,
    Split,
    TokenizerRecord,
    write_manifest,
)
from krzem.train.data.part import (
    SPLITS,
    TRAIN,
    Options,
    Part,
    PartReport,
    build_part,
    finished_part,
)
from krzem.train.data.records import BadRecord, check_kind
from krzem.train.data.sources import Format, Scan, Source, Span, discover, scan
from krzem.train.data.tokenizer import (
    TOKENIZER_FILES,
    Chat,
    Tokenizer,
    check_vocabulary,
    copy_files,
    load_tokenizer,
)
from krzem.train.durable import storing, write_atomic

# The same function over many jobs, in this process or in several, results in order
# ---------------------------------------------------------------------------------

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    finished: Callable[[int], None],
) -> list[Result]:
    """``function`` of every job; ``finished`` hears the number of each job as it ends.

    The first failure stops what has not begun and is raised; a worker that dies (killed, out of
    memory) becomes a DataError.
    """
    results: dict[int, Result] = {}
    if workers == 1 or len(jobs) < 2:
        for number, job in enumerate(jobs):
            results[number] = function(job)
            finished(number)
        return list(results.values())
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), _one_thread
    )
    try:
        futures = {pool.submit(function, job): number for number, job in enumerate(jobs)}
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            finished(futures[future])
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process ended suddenly, most often because memory ran out; run the same "
            "command with fewer --workers (finished parts are kept)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return [results[number] for number in range(len(jobs))]


def _one_thread() -> None:
    """Workers are the parallelism: the tokenizer library must not start its own threads too."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


# Text files to a folder of memory-mapped token shards
# ----------------------------------------------------

BAD_RECORDS = "bad-records.jsonl"
DEFAULT_PART_BYTES = 64 << 20

Progress = Callable[[str, int, int], None]
"""Called with what is being done, bytes done and bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """A build of token files: what to read, how to cut it, and where to put it."""

    sources: tuple[Path, ...]
    out: Path
    tokenizer: str = "bytes"
    """``bytes``, a ``tokenizer.json``, or a folder that holds one."""
    end_of_document: str | None = None
    """Token written after each document, where the tokenizer's files do not declare one."""
    format: Format | None = None
    """None: by the name of each file."""
    options: Options = field(default_factory=Options)
    part_bytes: int = DEFAULT_PART_BYTES
    workers: int = 1
    model_vocabulary: int | None = None
    max_bad: float = 0.01
    """Share of records that may be bad before the build is refused."""

    def __post_init__(self) -> None:
        _between("--held-out", self.options.held_out, 0, 1)
        _between("--max-bad", self.max_bad, 0, 1.0000001)
        if self.workers < 1 or self.part_bytes < 1:
            raise DataError(
                f"workers and bytes of a part have to be 1 or more, got {self.workers} and "
                f"{self.part_bytes}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What a build gave."""

    manifest: Manifest
    bad: tuple[BadRecord, ...]
    parts: int
    kept_parts: int
    """Parts that an earlier run had finished."""
    text_bytes: int


def build(request: BuildRequest, progress: Progress | None = None) -> BuildResult:
    """Tokenise ``request.sources`` into ``request.out``.

    Raises DataError where nothing can be read, too many records are bad, the vocabulary does not
    fit, or the folder holds another build; StorageError where the disk does not take it.
    """
    tokenizer = load_tokenizer(request.tokenizer, request.end_of_document)
    if request.options.chat:
        Chat(tokenizer)
    if request.model_vocabulary is not None:
        check_vocabulary(tokenizer.vocabulary, request.model_vocabulary, tokenizer.vocabulary - 1)
    sources, skipped = discover(request.sources, request.format)
    with storing(request.out):
        request.out.mkdir(parents=True, exist_ok=True)
    with _only_build(request.out):
        scans = _scan_all(request, sources, progress)
        parts = _parts([s for found in scans for s in found.spans], request.part_bytes)
        _same_build(request.out, parts, tokenizer, request.options)
        outcomes = _build_all(request, parts, progress)
        return _commit(request, tokenizer, scans, skipped, outcomes)


def _scan_all(
    request: BuildRequest, sources: list[Source], progress: Progress | None
) -> list[Scan]:
    sizes = [s.path.stat().st_size for s in sources]
    jobs = [(s, request) for s in sources]
    return run_jobs(_scan_job, jobs, request.workers, _told(progress, "hashing", sizes))


def _build_all(
    request: BuildRequest, parts: list[Part], progress: Progress | None
) -> list[_Outcome]:
    sizes = [p.bytes for p in parts]
    jobs = [(p, request) for p in parts]
    return run_jobs(_part_job, jobs, request.workers, _told(progress, "tokenising", sizes))


def _scan_job(job: tuple[Source, BuildRequest]) -> Scan:
    source, request = job
    check_kind(source, request.options.field, stated=request.format is not None)
    return scan(source, request.options.documents, request.part_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    report: PartReport
    kept: bool


def _part_job(job: tuple[Part, BuildRequest]) -> _Outcome:
    part, request = job
    tokenizer = _tokenizer(request.tokenizer, request.end_of_document)
    there = finished_part(part, tokenizer, request.options, request.out)
    report = there or build_part(part, tokenizer, request.options, request.out)
    return _Outcome(report=report, kept=there is not None)


_tokenizer = functools.cache(load_tokenizer)
"""One tokenizer per worker process: a large file takes seconds to parse."""


def _told(progress: Progress | None, what: str, sizes: Sequence[int]) -> Callable[[int], None]:
    total = sum(sizes)
    done = 0

    def finished(number: int) -> None:
        nonlocal done
        done += sizes[number]
        if progress is not None:
            progress(what, done, total)

    return finished


def _between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value < high:
        raise DataError(f"{name} is a share between {low:g} and {high:g}, got {value:g}")


@contextlib.contextmanager
def _only_build(folder: Path) -> Iterator[None]:
    with storing(folder):
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(
                f"another build is writing to {folder}; wait for it or choose another folder"
            ) from error
        yield


def _parts(spans: Sequence[Span], part_bytes: int) -> list[Part]:
    """Small files together, large ones apart; always in the order of the sources."""
    parts: list[Part] = []
    held: list[Span] = []
    for span in spans:
        held.append(span)
        if sum(s.bytes for s in held) >= part_bytes:
            parts.append(Part(number=len(parts), spans=tuple(held)))
            held = []
    if held:
        parts.append(Part(number=len(parts), spans=tuple(held)))
    return parts


def _same_build(folder: Path, parts: list[Part], tokenizer: Tokenizer, options: Options) -> None:
    """Refuse to mix two builds in one folder: what is there must belong to this one."""
    expected = {f"{p.name}.json": p.key(tokenizer.sha256, options) for p in parts}
    for file in sorted(folder.glob("part-*.json")):
        try:
            key = json.loads(file.read_bytes())["key"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if expected.get(file.name) != key:
            raise DataError(
                f"{folder} holds a build of other text, another tokenizer or other options "
                f"({file.name} differs); choose an empty folder, or delete this one to rebuild it"
            )


def _commit(
    request: BuildRequest,
    tokenizer: Tokenizer,
    scans: list[Scan],
    skipped: list[Path],
    outcomes: list[_Outcome],
) -> BuildResult:
    reports = [o.report for o in outcomes]
    bad = tuple(b for r in reports for b in r.bad)
    lines = "".join(json.dumps(asdict(b), ensure_ascii=False) + "\n" for b in bad)
    write_atomic(request.out / BAD_RECORDS, lines.encode())
    splits = {
        name: Split(shards=tuple(r.shards[name] for r in reports if name in r.shards))
        for name in SPLITS
    }
    documents = sum(s.documents for s in splits.values())
    if not documents:
        _forget(request.out)
    _check_bad(request, bad, documents)
    counts: dict[str, int] = {}
    for record in bad:
        counts[record.file] = counts.get(record.file, 0) + 1
    manifest = Manifest(
        tokenizer=TokenizerRecord(
            name=tokenizer.name,
            sha256=tokenizer.sha256,
            vocabulary=tokenizer.vocabulary,
            end_of_document=tokenizer.end_of_document,
        ),
        splits={n: s for n, s in splits.items() if s.shards or n == TRAIN},
        sources=tuple(
            SourceRecord(path=str(s.source.path), bytes=s.bytes, sha256=s.sha256) for s in scans
        ),
        options={**asdict(request.options), "part_bytes": request.part_bytes},
        bad_records=counts,
        skipped_files=tuple(map(str, skipped)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _keep_tokenizer(request, tokenizer)
    write_manifest(request.out, manifest)
    return BuildResult(
        manifest=manifest,
        bad=bad,
        parts=len(reports),
        kept_parts=sum(o.kept for o in outcomes),
        text_bytes=sum(r.text_bytes for r in reports),
    )


def _forget(folder: Path) -> None:
    """Drop the records of parts that gave nothing, so that the mended command is not refused."""
    for file in folder.glob("part-*.json"):
        file.unlink()


def _check_bad(request: BuildRequest, bad: Sequence[BadRecord], documents: int) -> None:
    first = f"; the first: {bad[0].file}:{bad[0].line}: {bad[0].reason}" if bad else ""
    if not documents:
        raise DataError(f"no document in the text given ({_records(len(bad))}{first})")
    share = len(bad) / (documents + len(bad))
    if share > request.max_bad:
        raise DataError(
            f"{len(bad):,} of {documents + len(bad):,} records are bad ({share:.2%}, limit "
            f"{request.max_bad:.2%}){first}. All are listed in {request.out / BAD_RECORDS}; mend "
            f"them, or accept them with --max-bad {min(1.0, share * 1.01 + 0.001):.3f} (finished "
            "parts are kept)"
        )


def _records(count: int) -> str:
    return f"{count:,} bad record{'' if count == 1 else 's'}"


def _keep_tokenizer(request: BuildRequest, tokenizer: Tokenizer) -> None:
    """A copy of the tokenizer's files beside its tokens, to read them as text."""
    path = getattr(tokenizer, "path", None)
    if path is None:
        return
    first, *others = TOKENIZER_FILES
    write_atomic(request.out / first, path.read_bytes())
    copy_files(path.parent, request.out, others)
