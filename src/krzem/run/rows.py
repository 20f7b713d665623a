"""What the ledger holds, as values."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class State(enum.StrEnum):
    """Where a run is; only the controller that holds the run's lock changes it."""

    BEFORE = "before"
    """Pools are to be planned."""
    QUALIFY = "qualify"
    """The current pool is to be measured."""
    TRAIN = "train"
    """The current pool trains, or is about to."""
    MOVE = "move"
    """The current pool was given up; the next one is to take over."""
    AFTER = "after"
    """All tokens are trained; the report is to be written."""
    PAUSED = "paused"
    """On request: nothing runs, and the controller waits."""
    DONE = "done"
    STOPPED = "stopped"
    """On request; starting again goes on."""
    FAILED = "failed"
    """No pool is left; starting again tries them anew."""

    @property
    def final(self) -> bool:
        """Whether the controller has nothing more to do."""
        return self in (State.DONE, State.STOPPED, State.FAILED)


FINAL = tuple(state for state in State if state.final)


class Cause(enum.StrEnum):
    """Why an attempt ended."""

    DONE = "done"
    STOPPED = "stopped"
    """Saved and stopped on request."""
    PREEMPTED = "preempted"
    """Saved and stopped because the scheduler asked."""
    CRASH = "crash"
    KILLED = "killed"
    """By a signal that the controller did not send."""
    LOST = "lost"
    """The process is gone and left no exit code."""
    NOT_STARTED = "not started"
    QUEUED = "queued"
    """It waited in a scheduler's queue for longer than its pool allows."""
    SITE = "site"
    """Another site, where the run went on, ended it before its last token."""
    STALL = "stall"
    NONFINITE = "nonfinite"
    STORAGE = "storage"
    MEMORY = "memory"
    CHECKPOINT = "checkpoint"
    """The trainer refused the checkpoint that it was to begin from."""
    FENCED = "fenced"
    GATE = "gate"
    """A gate ended it."""
    UNKNOWN = "unknown"
    """The ledger that knew it was lost."""
    ABORTED = "aborted"
    """Killed on request, without saving."""


FAULTS = frozenset(
    {Cause.CRASH, Cause.KILLED, Cause.LOST, Cause.NOT_STARTED, Cause.STALL, Cause.NONFINITE,
     Cause.CHECKPOINT, Cause.MEMORY, Cause.FENCED}
)  # fmt: skip
"""Causes that count as restarts of a pool.  A full disk is the storage's fault, not the pool's."""


class RequestKind(enum.StrEnum):
    """What operators ask for."""

    MOVE = "move"
    RETRY = "retry"
    """A pool that was repaired: its faults so far count no more."""
    PAUSE = "pause"
    RESUME = "resume"
    RELOAD = "reload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Something that an operator asked for."""

    id: int
    wall: str
    kind: RequestKind
    pool: str | None
    state: str
    """open, done, refused."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """The one row that says where the run is."""

    name: str
    settings_sha256: str
    settings: Mapping[str, Any]
    state: State
    pool: str | None
    epoch: int
    token: int
    stop_requested: str | None
    """``save`` or ``now``."""
    run_seconds: float
    boot_id: str
    boot_seconds: float
    wall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of a trainer."""

    id: int
    pool: str
    token: int
    launcher: str
    handle: Mapping[str, Any] | None
    """What the launcher needs to find it again."""
    state: str
    """starting, running, ended."""
    from_step: int
    """Step of the checkpoint it began from; 0 for the beginning."""
    at: float
    first_step_at: float | None
    ended_at: float | None
    exit_code: int | None
    cause: Cause | None
    detail: str | None
    last_step: int | None

    @property
    def is_fault(self) -> bool:
        """Whether it ended in a way that counts against its pool."""
        return self.cause in FAULTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened."""

    id: int
    at: float
    wall: str
    epoch: int
    kind: str
    pool: str | None
    attempt: int | None
    message: str
    evidence: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Something that was decided, and why."""

    id: int
    at: float
    subject: str
    choice: str
    reason: str
    evidence: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """A gate that fired, with the rows that made it fire."""

    id: int
    at: float
    attempt: int
    pool: str
    gate: str
    action: str
    message: str
    evidence: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRow:
    """A checkpoint that was seen."""

    folder: str
    step: int
    attempt: int | None
    at: float
    bytes: int
    manifest_sha256: str
    state: str
    """good, rejected, pruned."""
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A number that was measured on a pool."""

    id: int
    at: float
    pool: str
    attempt: int | None
    name: str
    value: float
    unit: str
    evidence: Any
