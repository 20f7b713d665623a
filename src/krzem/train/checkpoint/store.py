"""A folder of checkpoints: finding the last good one, verifying, adding to and removing from it.

None of this needs torch, so that it also runs where no model can.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from krzem.errors import CheckpointError
from krzem.train.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    StoredFile,
    read_manifest,
    write_manifest,
)
from krzem.train.durable import fsync_folder, storing
from krzem.train.stores import Progress, copy_verified, reaching

_BLOCK = 8 << 20
ROOT = "checkpoints"
_STEP = re.compile(r"step-(\d+)")


def step_folder(root: Path, step: int) -> Path:
    """Folder of the checkpoint of ``step``."""
    return root / f"step-{step:09d}"


def root_of(run: Path) -> Path:
    """Where the checkpoints of the run in folder ``run`` lie: ``run`` itself, if they lie there."""
    return run if run.name == ROOT or checkpoints(run) else run / ROOT


def checkpoints(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything in ``root`` that is named like a checkpoint, oldest first."""
    if not root.is_dir():
        return []
    found = ((_STEP.fullmatch(p.name), p) for p in root.iterdir() if p.is_dir())
    return sorted((int(match[1]), path) for match, path in found if match)


def committed(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the checkpoints in ``root`` that have their manifest, oldest first.

    What is named like one and has none was interrupted, or refused by a newer attempt's fence.
    """
    return [(step, path) for step, path in checkpoints(root) if (path / MANIFEST).exists()]


def fault_in(folder: Path, manifest: Manifest, names: Iterator[str] | None = None) -> str:
    """What is wrong with the files of a checkpoint, or nothing; reads them whole.

    ``names`` limits the check to some files, so that ranks can share the work.
    """
    for name in sorted(manifest.files) if names is None else names:
        stored = manifest.files[name]
        fault = size_fault(folder, name, stored)
        if not fault and _sha256(folder / name) != stored.sha256:
            fault = _altered(folder, manifest, name)
        if fault:
            return fault
    return ""


def size_fault(folder: Path, name: str, stored: StoredFile) -> str:
    """Whether a file is missing or has another size than it should."""
    path = folder / name
    try:
        found = path.lstat()
        outside = not path.parent.resolve().is_relative_to(folder.resolve())
    except OSError:
        return f"{path} is missing"
    if outside or not stat.S_ISREG(found.st_mode):
        return f"{path} is not a regular file inside the checkpoint"
    size = found.st_size
    if size != stored.bytes:
        return f"{path} has {size:,} bytes, the manifest says {stored.bytes:,}"
    return ""


def verify(folder: Path) -> Manifest:
    """Read all of a checkpoint; CheckpointError says which file, and which tensor, is bad."""
    manifest = read_manifest(folder)
    fault = fault_in(folder, manifest)
    if fault:
        raise CheckpointError(f"{fault}; do not use this checkpoint, take an earlier one")
    return manifest


def quick_check(folder: Path) -> Manifest:
    """Manifest and file sizes only: finds what was interrupted, not what was altered."""
    manifest = read_manifest(folder)
    for name, stored in manifest.files.items():
        fault = size_fault(folder, name, stored)
        if fault:
            raise CheckpointError(fault)
    return manifest


def latest_good(
    root: Path, *, deep: bool = True, rejected: Callable[[Path, str], None] | None = None
) -> Path | None:
    """The newest checkpoint in ``root`` that passes its checks, or None.

    ``deep`` reads every byte; ``rejected`` is told of each newer one and why it was passed over.
    """
    for _, folder in reversed(checkpoints(root)):
        try:
            verify(folder) if deep else quick_check(folder)
        except CheckpointError as error:
            if rejected is not None:
                rejected(folder, str(error))
            continue
        return folder
    return None


def chosen_checkpoint(folder: Path, rejected: dict[str, str] | None = None) -> Path:
    """``folder`` where it is a checkpoint, else the last good one of the run in it.

    ``rejected`` takes later ones by name, with what is wrong.

    Raises:
        CheckpointError: there is none.
    """
    if (folder / MANIFEST).exists():
        return folder
    root, passed = root_of(folder), {} if rejected is None else rejected
    if not checkpoints(root):
        quick_check(folder)
    good = latest_good(root, rejected=lambda path, why: passed.update({path.name: why}))
    if good is None:
        raise CheckpointError(f"no good checkpoint in {root}: {'; '.join(passed.values())}")
    return good


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which checkpoints to keep; the last good one is kept whatever this says."""

    keep_last: int = 3
    keep_every: int | None = None
    """Keep also every checkpoint whose step is a multiple of this."""

    def __post_init__(self) -> None:
        if self.keep_last < 1 or (self.keep_every is not None and self.keep_every < 1):
            raise CheckpointError(
                f"retention keeps at least one checkpoint, got keep_last={self.keep_last}, "
                f"keep_every={self.keep_every}"
            )


def prune(root: Path, retention: Retention, *, deep: bool = True) -> list[Path]:
    """Remove what ``retention`` does not keep, and return it.

    Nothing is removed unless one of the kept checkpoints passes its checks (every byte read if
    ``deep``).  Interrupted saves older than that one are removed too.
    """
    found = checkpoints(root)
    complete = committed(root)
    kept = {p for s, p in complete[-retention.keep_last :]}
    if retention.keep_every is not None:
        kept |= {p for s, p in complete if s % retention.keep_every == 0}
    doomed = [(s, p) for s, p in found if p not in kept]
    good = _newest_good([(s, p) for s, p in complete if p in kept], deep=deep) if doomed else None
    if good is None:
        return []
    return [p for s, p in doomed if s < good and _remove(p)]


def _newest_good(candidates: list[tuple[int, Path]], *, deep: bool) -> int | None:
    for step, folder in reversed(candidates):
        with contextlib.suppress(CheckpointError):
            verify(folder) if deep else quick_check(folder)
            return step
    return None


def _remove(folder: Path) -> bool:
    """Delete a checkpoint, manifest first: a crash midway leaves an incomplete one, not a bad one.

    A folder that cannot be deleted is left; that must not stop training.
    """
    try:
        (folder / MANIFEST).unlink(missing_ok=True)
        fsync_folder(folder)
        shutil.rmtree(folder)
    except OSError:
        return False
    return True


def remove_strays(folder: Path, manifest: Manifest) -> None:
    """Delete data files in ``folder`` that its manifest does not name (an earlier save's)."""
    for path in folder.iterdir():
        if path.name != MANIFEST and path.name not in manifest.files:
            with contextlib.suppress(OSError):
                path.unlink()


def attach(
    folder: Path,
    name: str,
    content: bytes,
    commit_guard: Callable[[], None] | None = None,
) -> None:
    """Add a file such as a witness to a checkpoint, under its checksums; replaces an older one.

    The manifest is exchanged atomically, so the checkpoint is good before, during and after.
    """
    manifest = read_manifest(folder)
    digest = hashlib.sha256(content).hexdigest()
    file = f"{name}-{digest[:12]}"
    if os.sep in name or name in (MANIFEST, "") or file in manifest.files:
        if file in manifest.files:
            return
        raise CheckpointError(f"an attachment needs a plain file name, got {name!r}")
    with storing(folder / file), (folder / file).open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    old = manifest.attachments.get(name)
    files = {n: f for n, f in manifest.files.items() if n != old}
    files[file] = StoredFile(bytes=len(content), sha256=digest)
    new = dataclasses.replace(
        manifest, files=files, attachments={**manifest.attachments, name: file}
    )
    write_manifest(folder, new, commit_guard)
    if old is not None:
        (folder / old).unlink(missing_ok=True)


def read_attachment(folder: Path, name: str) -> bytes:
    """Content of an attachment, verified; CheckpointError where there is none."""
    manifest = read_manifest(folder)
    if name not in manifest.attachments:
        known = ", ".join(manifest.attachments) or "none"
        raise CheckpointError(f"{folder} has no attachment {name!r}; it has: {known}")
    file = manifest.attachments[name]
    try:
        content = (folder / file).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {folder / file}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != manifest.files[file].sha256:
        raise CheckpointError(f"{folder / file} was altered: its checksum does not match")
    return content


def push(folder: Path, url: Path, progress: Progress | None = None) -> tuple[Path, int]:
    """Copy the checkpoint ``folder`` below ``url``; returns its place there and the bytes copied.

    Raises:
        DataError: as :func:`krzem.train.stores.copy_verified`.
    """
    manifest = quick_check(folder)
    target = url / folder.name
    files = {name: stored.sha256 for name, stored in manifest.files.items()}
    return target, copy_verified(folder, target, files, MANIFEST, progress, _same_save)


def pull(url: Path, run: Path, progress: Progress | None = None) -> tuple[Path, int]:
    """Copy a checkpoint to the run in folder ``run``; returns its place and the bytes copied.

    ``url`` is a checkpoint, or a place with several, of which the last one with a manifest is
    taken.

    Raises:
        CheckpointError: there is none.
        DataError: as :func:`krzem.train.stores.copy_verified`.
    """
    with reaching(url):
        source = url if (url / MANIFEST).exists() else _last(url)
        raw = (source / MANIFEST).read_bytes()
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / MANIFEST).write_bytes(raw)
        manifest = read_manifest(Path(place))
    target = step_folder(root_of(run), manifest.step)
    files = {name: stored.sha256 for name, stored in manifest.files.items()}
    return target, copy_verified(source, target, files, MANIFEST, progress, _same_save)


def _last(url: Path) -> Path:
    found = committed(url)
    if not found:
        raise CheckpointError(
            f"no checkpoint at {url}: name one, or a place with folders step-… that have their "
            f"{MANIFEST}"
        )
    return found[-1][1]


def _same_save(a: bytes, b: bytes) -> bool:
    """Whether two manifests are of one save: what is attached later changes the rest."""
    try:
        first, second = (json.loads(raw) for raw in (a, b))
        return bool(all(first[k] == second[k] for k in ("step", "tensors", "meta", "created")))
    except (ValueError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def _altered(folder: Path, manifest: Manifest, name: str) -> str:
    """Names the first tensor of an altered file whose own checksum is wrong."""
    path = folder / name
    with path.open("rb") as file:
        for tensor, stored in sorted(manifest.tensors.items()):
            for chunk in stored.chunks:
                if chunk.file == name and _crc32(file.fileno(), chunk.start, chunk.stop) != (
                    chunk.crc32
                ):
                    where = f"in {tensor} at {list(chunk.offset)} (bytes {chunk.start:,} on)"
                    return f"{path} was altered {where}: its checksum does not match"
    return f"{path} was altered (outside the tensors' data): its checksum does not match"


def _crc32(descriptor: int, start: int, stop: int) -> int:
    crc = 0
    for at in range(start, stop, _BLOCK):
        crc = zlib.crc32(os.pread(descriptor, min(_BLOCK, stop - at), at), crc)
    return crc
