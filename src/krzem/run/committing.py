"""Files of any trainer as a checkpoint of the run: a manifest over what exists."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from krzem.train.checkpoint.manifest import MANIFEST, Manifest, StoredFile, write_manifest


def commit_files(
    checkpoints: Path,
    guard: Callable[[], None],
    folder: Path,
    step: int,
    tokens: int,
    sample: int | None,
) -> Path:
    """Commit the files in ``folder`` as the checkpoint of ``step`` below ``checkpoints``.

    Files elsewhere are linked (or copied, from another file system) into the run's folder; then a
    manifest with their sizes and hashes is renamed into place, after ``guard`` was asked.  What is
    committed already is left as it is.

    Raises what ``guard`` raises, and ValueError for a folder without files.
    """
    target = checkpoints / f"step-{step:09d}"
    if (target / MANIFEST).exists():
        return target
    if folder.resolve() != target.resolve():
        link_tree(folder, target)
    files = {
        str(path.relative_to(target)): StoredFile(bytes=path.stat().st_size, sha256=_sha256(path))
        for path in sorted(target.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    if not files:
        raise ValueError(f"{folder} holds no files: there is nothing to commit")
    meta = {"step": step, "tokens": tokens} | ({} if sample is None else {"sample": sample})
    manifest = Manifest(step=step, tensors={}, files=files, meta=meta, config=None)
    write_manifest(target, manifest, guard)
    return target


def link_tree(source: Path, target: Path) -> None:
    """The regular files of ``source`` in a new folder ``target``: linked, or else copied."""
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(source.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, place)
        except OSError:
            shutil.copy2(path, place)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
