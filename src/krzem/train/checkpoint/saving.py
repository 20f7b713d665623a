"""Saving: at once, or behind the back of training."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from krzem.errors import CheckpointError, KrzemError
from krzem.train.checkpoint._group import first_cause, host_group, rank_and_size
from krzem.train.checkpoint.manifest import Manifest, Shape, check_json
from krzem.train.checkpoint.pieces import Part, Pieces, State, pieces_of
from krzem.train.checkpoint.storage import CommitGuard, FolderWriter, PiecesSavePlanner
from krzem.train.checkpoint.store import Retention, prune, step_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that was committed."""

    folder: Path
    step: int
    bytes: int
    """Of all tensors, over all ranks; known on rank 0 and zero elsewhere."""
    seconds: float
    """From the call to the commit."""
    stall_seconds: float
    """For how long the caller was held up."""


def save(
    root: Path,
    step: int,
    state: State,
    *,
    meta: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    commit_guard: CommitGuard | None = None,
    group: ProcessGroup | None = None,
) -> Saved:
    """Save ``state`` as ``root/step-000000123`` and return when it is committed.

    Called by all ranks with their parts of the same logical state. ``meta`` (JSON: tokens, sample
    index, schedule, random state ...) and ``config`` (of the model) are taken from rank 0.
    ``commit_guard`` is called on rank 0 just before the manifest is renamed into place; if it
    raises, the checkpoint does not come into being.  ``group`` needs a host backend such as gloo.

    Raises StorageError where a disk does not take it and CheckpointError where the state is no
    valid one, on every rank; what was in ``root`` before is untouched.
    """
    begun = time.perf_counter()
    job = _Job(root, step, meta, config, commit_guard, group)
    size = job.run(_held(state, meta, config))
    seconds = time.perf_counter() - begun
    return Saved(folder=job.folder, step=step, bytes=size, seconds=seconds, stall_seconds=seconds)


def _held(
    state: State, meta: Mapping[str, Any], config: Mapping[str, Any] | None
) -> dict[str, Pieces] | KrzemError:
    """What this rank has to save, or why it cannot.

    The reason is not raised here: the other ranks would wait for this one.
    """
    try:
        check_json("meta", meta)
        check_json("config", config)
        return pieces_of(state)
    except KrzemError as error:
        return error


class _Job:
    """One save, from pieces to commit."""

    def __init__(
        self,
        root: Path,
        step: int,
        meta: Mapping[str, Any],
        config: Mapping[str, Any] | None,
        commit_guard: CommitGuard | None,
        group: ProcessGroup | None,
    ) -> None:
        self.folder = step_folder(root, step)
        self.group = group
        manifest = Manifest(
            step=step,
            tensors={},
            files={},
            meta=meta,
            config=config,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            written_by={
                "krzem": version("krzem"),
                "torch": torch.__version__,
                "ranks": rank_and_size(group)[1],
            },
        )
        self.writer = FolderWriter(self.folder, manifest, commit_guard)

    def run(self, pieces: dict[str, Pieces] | KrzemError) -> int:
        """Write and commit; bytes of the checkpoint (on rank 0).

        An error in place of pieces is raised on all ranks.
        """
        try:
            with first_cause():
                save_distributed(
                    {},
                    storage_writer=self.writer,
                    planner=PiecesSavePlanner(pieces),
                    process_group=self.group,
                )
        except KrzemError:  # all ranks know that it failed; after anything else, one may commit
            self.writer.give_up()
            raise
        return self.writer.manifest.bytes


class AsyncSaver:
    """Saves while training goes on: it waits only while the state is copied to host memory.

    Every rank makes one, with the same arguments, at the same place.  At most one save is under
    way; the next waits for it.  A save that failed raises its error at the next call.  Use as a
    context, or call :meth:`close`, so that the last save is finished before the process ends.
    """

    def __init__(
        self,
        root: Path,
        *,
        config: Mapping[str, Any] | None = None,
        retention: Retention | None = None,
        commit_guard: CommitGuard | None = None,
        verify_kept: bool = True,
    ) -> None:
        self.root = root
        self.config = config
        self.retention = retention
        self.commit_guard = commit_guard
        self.verify_kept = verify_kept
        """Read a kept checkpoint whole before an older one is removed."""
        self._group = host_group()
        self._host = _HostCopies()
        self._copied = threading.Event()
        self._copied.set()
        self._stall = 0.0
        self._thread: threading.Thread | None = None
        self._outcome: Saved | BaseException | None = None

    def save(
        self, step: int, state: State, meta: Mapping[str, Any], *, copy_now: bool = True
    ) -> Saved | None:
        """Begin to save ``state``; returns when it may be changed again.

        With ``copy_now=False`` it returns at once and the state is copied while the next forward
        and backward passes run: call :meth:`wait_copied` before the optimizer changes it.

        The result is that of the save before, if there was one.  Raises its error likewise.
        """
        begun = time.perf_counter()
        before = self.wait()
        job = _Job(self.root, step, meta, self.config, self.commit_guard, self._group)
        pieces = _held(state, meta, self.config)
        self._copied.clear()
        if copy_now:
            pieces = self._copy(pieces)
        self._stall = time.perf_counter() - begun
        self._thread = threading.Thread(
            target=self._run, args=(job, pieces, begun), name="krzem-checkpoint"
        )
        self._thread.start()
        return before

    def wait_copied(self) -> None:
        """Wait until the state of the save under way may be changed."""
        begun = time.perf_counter()
        self._copied.wait()
        self._stall += time.perf_counter() - begun

    def wait(self) -> Saved | None:
        """Wait for the save under way and give its result; raises its error, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        outcome, self._outcome = self._outcome, None
        if isinstance(outcome, KrzemError):
            raise outcome
        if isinstance(outcome, BaseException):
            raise CheckpointError(f"saving failed: {outcome!r}") from outcome
        return outcome

    def poll(self) -> Saved | None:
        """The result of the save under way if it has ended; never waits."""
        busy = self._thread is not None and self._thread.is_alive()
        return None if busy else self.wait()

    def close(self) -> Saved | None:
        """Finish the save under way."""
        return self.wait()

    def __enter__(self) -> AsyncSaver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        with contextlib.suppress(KrzemError):  # what ended the block is the first cause
            self.close()

    def _copy(self, pieces: dict[str, Pieces] | KrzemError) -> dict[str, Pieces] | KrzemError:
        try:
            return pieces if isinstance(pieces, KrzemError) else self._host.take(pieces)
        finally:
            self._copied.set()

    def _run(self, job: _Job, pieces: dict[str, Pieces] | KrzemError, begun: float) -> None:
        try:
            copies = pieces if self._copied.is_set() else self._copy(pieces)
            size = job.run(copies)
            seconds = time.perf_counter() - begun
            if self.retention is not None and rank_and_size(self._group)[0] == 0:
                prune(self.root, self.retention, deep=self.verify_kept)
            self._outcome = Saved(
                folder=job.folder,
                step=job.writer.manifest.step,
                bytes=size,
                seconds=seconds,
                stall_seconds=self._stall,
            )
        except BaseException as error:  # raised again in the training thread, by wait()
            self._outcome = error


class _HostCopies:
    """Copies of pieces in host memory, in buffers that are kept from one save to the next.

    Fresh memory costs far more than the copy: the kernel clears every page at first touch.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, Shape], Tensor] = {}

    def take(self, pieces: dict[str, Pieces]) -> dict[str, Pieces]:
        """A copy of ``pieces``, independent of the originals."""
        copies = {
            name: Pieces(
                dtype=p.dtype, shape=p.shape, parts=tuple(self._copy(name, x) for x in p.parts)
            )
            for name, p in pieces.items()
        }
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return copies

    def _copy(self, name: str, part: Part) -> Part:
        source = part.tensor
        held = self._buffers.get((name, part.offset))
        if held is None or held.shape != source.shape or held.dtype != source.dtype:
            held = self._buffers[name, part.offset] = _host_buffer(source)
        held.copy_(source, non_blocking=True)
        return Part(tensor=held, shape=part.shape, offset=part.offset)


def _host_buffer(like: Tensor) -> Tensor:
    """Host memory for a copy of ``like``; page-locked, where its device can make use of that."""
    if like.device.type != "cpu":
        with contextlib.suppress(RuntimeError):  # not every vendor's plug-in has such memory
            return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
    return torch.empty(like.shape, dtype=like.dtype)
