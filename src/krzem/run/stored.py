"""Checkpoints of a run as the controller sees them: which is the last good one, what came of each.

The trainer alone writes checkpoints; the controller reads, writes down, and at most sets aside.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krzem.errors import CheckpointError
from krzem.run.contract import CHECKPOINTS
from krzem.run.ledger import Ledger
from krzem.run.untrusted import BadInputError, read_object, words
from krzem.train.checkpoint.manifest import MANIFEST, read_manifest
from krzem.train.checkpoint.store import checkpoints, committed, quick_check, verify

ASIDE = "set-aside"
ARRIVING, ARRIVED = "arriving", "arrived.json"
"""Where copies from another site are verified, and what came last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Good:
    """A checkpoint that passed its checks."""

    folder: Path
    step: int
    tokens: int | None
    """As the trainer noted them under ``meta.tokens``."""


def last_good(ledger: Ledger, *, deep: bool = True) -> Good | None:
    """The newest checkpoint that passes; every newer one is noted in the ledger as rejected.

    ``deep`` reads every byte.
    """
    for step, folder in reversed(checkpoints(ledger.folder / CHECKPOINTS)):
        try:
            manifest = verify(folder) if deep else quick_check(folder)
        except CheckpointError as error:
            _reject(ledger, folder, step, str(error))
            continue
        tokens = manifest.meta.get("tokens")
        return Good(folder=folder, step=step, tokens=None if tokens is None else int(tokens))
    return None


def _reject(ledger: Ledger, folder: Path, step: int, reason: str) -> None:
    """Note a bad checkpoint once; one that was never finished is no checkpoint at all."""
    row = next((c for c in ledger.checkpoints() if c.folder == folder.name), None)
    if not (folder / MANIFEST).exists() and row is None:
        return
    if row is not None and row.state == "rejected" and row.reason == reason:
        return
    with ledger.writing():
        if row is None:
            ledger.checkpoint(folder.name, step, None, 0, "")
        ledger.checkpoint_state(folder.name, "rejected", reason)
        ledger.event("checkpoint rejected", reason, evidence={"step": step, "folder": folder.name})


def note_new(ledger: Ledger, attempt: int) -> list[str]:
    """Write down checkpoints that were committed, and those that were pruned, since the last look.

    Only manifests are read: bytes are checked when a checkpoint is used.
    """
    known = {c.folder: c for c in ledger.checkpoints()}
    there = {folder.name: (step, folder) for step, folder in checkpoints(_root(ledger))}
    fresh = []
    for name, (step, folder) in there.items():
        digest = _manifest_digest(folder)
        old = known.get(name)
        if digest is None or (old is not None and digest == old.manifest_sha256):
            continue
        if old is not None and old.state == "rejected" and not old.manifest_sha256:
            continue
        size = _size(folder)
        if size is None:
            continue
        with ledger.writing():
            ledger.checkpoint(name, step, attempt, size, digest)
            ledger.event("checkpoint", f"step {step:,} committed", attempt=attempt,
                         evidence={"step": step, "folder": name, "bytes": size})  # fmt: skip
        fresh.append(name)
    for name, row in known.items():
        if name not in there and row.state == "good":
            ledger.checkpoint_state(name, "pruned", "removed by retention")
    return fresh


def set_aside(ledger: Ledger, since_step: int, reason: str) -> list[str]:
    """Take checkpoints of ``since_step`` and later out of the way: kept, but not resumed from.

    Nothing is moved where no earlier checkpoint would be left to go on from.
    """
    found = committed(_root(ledger))
    doubted = [(s, f) for s, f in found if s >= since_step]
    if len(doubted) == len(found):
        return []
    for step, folder in doubted:
        place = ledger.folder / ASIDE
        place.mkdir(exist_ok=True)
        with ledger.writing():
            os.rename(folder, _free(place, folder.name))
            ledger.checkpoint_state(folder.name, "rejected", reason)
            ledger.event("checkpoint set aside", f"step {step:,}: {reason}")
    return [folder.name for _, folder in doubted]


def _free(place: Path, name: str) -> Path:
    number = 0
    while (path := place / f"{name}.{number}").exists():
        number += 1
    return path


def _root(ledger: Ledger) -> Path:
    return ledger.folder / CHECKPOINTS


def _manifest_digest(folder: Path) -> str | None:
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError:
        return None


def _size(folder: Path) -> int | None:
    try:
        return read_manifest(folder).bytes
    except CheckpointError:
        return None


# What came from another site
# ---------------------------


def checkpoint_name(asked: dict[str, Any]) -> str:
    """The checkpoint that a message names; raises BadInputError."""
    name = words(asked, "name")
    if not name.startswith("step-") or not name[5:].isdigit():
        raise BadInputError(f"{name!r} is no name of a checkpoint")
    return name


def arrival(folder: Path) -> dict[str, Any]:
    """What came last from another site; nothing where that cannot be read."""
    try:
        return read_object(folder / ARRIVED)
    except (OSError, BadInputError):
        return {}


def arrived(folder: Path) -> tuple[str, str] | None:
    """Name and origin of the checkpoint that came last from another site, if any did."""
    value = arrival(folder)
    try:
        return words(value, "name"), words(value, "from")
    except BadInputError:
        return None


def put_in_place(folder: Path, name: str, guard: Callable[[], None] = lambda: None) -> Path:
    """Verify the checkpoint ``name`` in the run's arriving folder and rename it into its place.

    Checkpoints of its step and of later ones are of a history that is given up: set aside.

    Raises:
        CheckpointError: a file that is missing, short or altered; the copy stays to be mended.
    """
    place, root = folder / ARRIVING / name, folder / CHECKPOINTS
    step = verify(place).step
    root.mkdir(exist_ok=True)
    guard()
    for other, path in committed(root):
        if other >= step:
            aside = folder / ASIDE / f"{path.name}.{time.time_ns()}"
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)
    shutil.rmtree(root / name, ignore_errors=True)
    return place.rename(root / name)
