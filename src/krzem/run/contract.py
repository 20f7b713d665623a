"""What a trainer and the controller promise each other: files, environment and exit codes.

The controller starts a trainer with a run folder, an attempt number and a fencing token (as
arguments or in the environment).  The trainer reports one JSON object per optimizer step and one
heartbeat file per rank, keeps its checkpoints below the run folder, and asks :meth:`commit_guard`
just before it commits one.  Nothing else passes between the two, so that either may die at any
instant.  This module needs the standard library alone; docs/run.md says the same in prose.

::

    RUN/fence.json            {"token": 7}: the newest token given out
    RUN/metrics.jsonl         one StepRecord per line, written by rank 0, appended by all attempts
    RUN/heartbeat/rank-3      one Heartbeat, replaced at each change of phase
    RUN/checkpoints/step-…    portable checkpoints
    RUN/attempts/0007/        what belongs to one attempt: job.json, stop, output.log, exit.json,
                              and left/rank-3, the code with which a rank left
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from krzem.run.untrusted import (
    MOST,
    BadInputError,
    amount,
    parse_object,
    read_object,
    read_regular,
    real,
    whole,
    words,
)

ENV_RUN_DIR = "KRZEM_RUN_DIR"
ENV_ATTEMPT = "KRZEM_ATTEMPT"
ENV_TOKEN = "KRZEM_FENCING_TOKEN"
ENV_LAYOUT = "KRZEM_LAYOUT"
"""The layout planned for this pool, as ``--layout`` reads it; absent where none was planned."""
ENV_RESUME = "KRZEM_RESUME_FROM"
"""Folder of the checkpoint to begin from; absent: begin at step 0, whatever lies around."""
ENV_PRECISION = "KRZEM_PRECISION"
"""Arithmetic on this pool, where the pool overrides the goal's."""

EXIT_DONE = 0
EXIT_NONFINITE = 65
"""A loss or gradient norm was not finite; nothing was committed after it."""
EXIT_CHECKPOINT = 66
"""The checkpoint to begin from is incomplete, altered or of another model."""
EXIT_FENCED = 73
"""A newer attempt exists: this one must not commit and has no more to do."""
EXIT_STORAGE = 74
"""The disk did not take a checkpoint; the run goes on when there is room."""
EXIT_SITE = 76
"""The run ended without its last token where it went on, at another site."""
EXIT_STOPPED = 75
"""Saved and stopped because it was asked to."""

FENCE = "fence.json"
METRICS = "metrics.jsonl"
HEARTBEATS = "heartbeat"
CHECKPOINTS = "checkpoints"
ATTEMPTS = "attempts"
STOP = "stop"
LEFT = "left"

PHASES = (
    "start", "load", "data", "compute", "reduce", "update", "save", "evaluate", "stop",
)  # fmt: skip
"""Phases of a heartbeat, in the order in which a step goes through them."""
WORK_STEPS = 64
"""Steps of own work that a heartbeat keeps."""


class FencedError(RuntimeError):
    """This attempt's token is no longer the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One optimizer step, as a line of ``metrics.jsonl``."""

    step: int
    """Steps done, this one included: the first is 1."""
    tokens: int
    """Tokens trained since the start of the run, this step's included."""
    loss: float
    grad_norm: float | None
    """Global norm before clipping; None where the trainer does not tell it."""
    seconds: float
    """Of this step, on a clock that never jumps."""
    tokens_per_s: float
    first_sample: int
    last_sample: int
    """Global sample indices of this step's batch, both included."""
    attempt: int
    time: float
    """Unix time; for people, never for arithmetic."""
    memory_bytes: int | None = None
    """Peak on the fullest device, where known."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient norm are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """Where a rank is."""

    rank: int
    attempt: int
    step: int
    phase: str
    host: str
    pid: int
    work: tuple[tuple[int, float], ...] = ()
    """(step, seconds of own work in it) of the last steps, waiting for other ranks left out:
    shows a straggler, also to a controller that did not look in time."""
    memory_bytes: int | None = None


class TrainerContract:
    """The trainer's side: made once per rank, used by its loop."""

    def __init__(
        self,
        *,
        run_dir: Path,
        attempt: int,
        token: int,
        rank: int = 0,
        resume_from: Path | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.resume_from = resume_from
        self.attempt = attempt
        self.token = token
        self.rank = rank
        self._host = host_name()
        self._signalled = False
        self._work: deque[tuple[int, float]] = deque(maxlen=WORK_STEPS)
        (run_dir / HEARTBEATS).mkdir(parents=True, exist_ok=True)

    @classmethod
    def from_environment(
        cls, rank: int = 0, environment: Mapping[str, str] | None = None
    ) -> TrainerContract | None:
        """The contract that the environment states; None where no controller started this."""
        given = os.environ if environment is None else environment
        if not all(given.get(name) for name in (ENV_RUN_DIR, ENV_ATTEMPT, ENV_TOKEN)):
            return None
        return cls(
            run_dir=Path(given[ENV_RUN_DIR]),
            attempt=int(given[ENV_ATTEMPT]),
            token=int(given[ENV_TOKEN]),
            rank=rank,
            resume_from=Path(given[ENV_RESUME]) if given.get(ENV_RESUME) else None,
        )

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.run_dir / CHECKPOINTS

    def install_signals(self) -> None:
        """Take SIGTERM and SIGUSR1 (a preemption notice) as requests to save and stop."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def stop_requested(self) -> bool:
        """Whether to save and exit with EXIT_STOPPED after this step.

        True on some ranks first: agree on it (all-reduce) before acting.
        """
        return self._signalled or (attempt_folder(self.run_dir, self.attempt) / STOP).exists()

    def beat(
        self,
        step: int,
        phase: str,
        *,
        own_seconds: float | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """Say where this rank is; a few tens of microseconds, and a full disk is no error.

        ``own_seconds``: how long this rank worked in ``step``, waiting for others left out.
        """
        if own_seconds is not None:
            self._work.append((step, round(own_seconds, 7)))
        beat = Heartbeat(
            rank=self.rank,
            attempt=self.attempt,
            step=step,
            phase=phase,
            host=self._host,
            pid=os.getpid(),
            work=tuple(self._work),
            memory_bytes=memory_bytes,
        )
        path = self.run_dir / HEARTBEATS / f"rank-{self.rank}"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(asdict(beat)), encoding="utf-8")
            temporary.replace(path)

    def log_step(self, record: StepRecord) -> None:
        """Append ``record``; a line that a dead attempt left unfinished is closed first."""
        line = json.dumps(asdict(record)).encode() + b"\n"
        path = self.run_dir / METRICS
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def leave(self, code: int) -> int:
        """Note the exit code of this rank, which torchrun would not pass on; returns it."""
        folder = attempt_folder(self.run_dir, self.attempt) / LEFT
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"rank-{self.rank}").write_text(str(code), encoding="ascii")
        return code

    def commit_guard(self) -> None:
        """Called just before a checkpoint's manifest is renamed into place.

        Raises FencedError where a newer attempt was given a token: do not commit, exit with
        EXIT_FENCED.
        """
        try:
            newest = read_fence(self.run_dir)
        except BadInputError as error:
            raise FencedError(f"whether this run has a newer attempt is unknown: {error}") from None
        if newest > self.token:
            raise FencedError(
                f"attempt {self.attempt} holds fencing token {self.token} but {newest} was given "
                "out since: another trainer owns this run, nothing is committed"
            )


def commit(
    folder: Path,
    step: int,
    tokens: int,
    *,
    sample: int | None = None,
    contract: TrainerContract | None = None,
) -> Path:
    """Make the files in ``folder`` a checkpoint of the run: for trainers in any style.

    Call it on one rank, after ``step`` steps and ``tokens`` tokens, once every file is whole; see
    :func:`krzem.run.committing.commit_files`.  Returns the checkpoint's folder.

    Raises FencedError where a newer attempt owns the run, ValueError outside of a run or for a
    folder without files.
    """
    from krzem.run.committing import commit_files

    contract = contract or TrainerContract.from_environment()
    if contract is None:
        raise ValueError(f"{ENV_RUN_DIR} is not set: this process was not started by `krzem run`")
    guard = contract.commit_guard
    return commit_files(contract.checkpoints, guard, folder, step, tokens, sample)


def attempt_folder(run_dir: Path, attempt: int) -> Path:
    """Folder of one attempt."""
    return run_dir / ATTEMPTS / f"{attempt:04d}"


def read_fence(run_dir: Path) -> int:
    """The newest token given out; 0 where none was.  Raises BadInputError."""
    try:
        return whole(read_object(run_dir / FENCE), "token")
    except FileNotFoundError:
        return 0


def environment_of(run_dir: Path, attempt: int, token: int) -> dict[str, str]:
    """The variables that tell a trainer which attempt it is."""
    return {ENV_RUN_DIR: str(run_dir), ENV_ATTEMPT: str(attempt), ENV_TOKEN: str(token)}


def parse_record(line: str | bytes) -> StepRecord:
    """A line of ``metrics.jsonl``; BadInputError for one that was cut short or is something else.

    A loss or a norm that is null is one that is not finite, as JSON writers put it.
    """
    return record_of(parse_object(line))


COUNTS = ("step", "tokens", "first_sample", "last_sample", "attempt")
"""Fields of a step that are whole numbers."""
_REALS = ("loss", "grad_norm", "seconds", "tokens_per_s", "time")


def record_of(value: dict[str, Any]) -> StepRecord:
    """The record that a JSON object describes; errors as :func:`parse_record`."""
    if _is_plain(value):
        return StepRecord(**value)
    memory = value.get("memory_bytes")
    return StepRecord(
        step=whole(value, "step", 1), tokens=whole(value, "tokens"),
        loss=real(value, "loss", finite=False),
        grad_norm=real(value, "grad_norm", finite=False) if "grad_norm" in value else None,
        seconds=amount(value, "seconds"), tokens_per_s=amount(value, "tokens_per_s"),
        first_sample=whole(value, "first_sample"), last_sample=whole(value, "last_sample"),
        attempt=whole(value, "attempt", 1), time=real(value, "time"),
        memory_bytes=None if memory is None else whole(value, "memory_bytes"),
    )  # fmt: skip


def _is_plain(value: dict[str, Any]) -> bool:
    """Whether it is just what :meth:`TrainerContract.log_step` writes, as nearly every line is."""
    get = value.get
    return (
        len(value) == 11
        and all(type(get(name)) is int and 0 < get(name, 0) + 1 <= MOST for name in COUNTS)
        and all(type(get(name)) is float for name in _REALS)
        and 0 <= value["seconds"] < math.inf
        and 0 <= value["tokens_per_s"] < math.inf
        and math.isfinite(value["time"])
        and value["step"] > 0 < value["attempt"]
        and "memory_bytes" in value
        and (value["memory_bytes"] is None or type(value["memory_bytes"]) is int)
    )


def read_heartbeats(run_dir: Path, attempt: int) -> dict[int, Heartbeat]:
    """The last heartbeat of each rank of ``attempt``; one that cannot be read tells nothing."""
    found: dict[int, Heartbeat] = {}
    for path in (run_dir / HEARTBEATS).glob("rank-*"):
        with contextlib.suppress(OSError, BadInputError):
            beat = _heartbeat(read_object(path))
            if beat.attempt == attempt:
                found[beat.rank] = beat
    return found


def _heartbeat(value: dict[str, Any]) -> Heartbeat:
    work = value.get("work") or []
    if not isinstance(work, list) or len(work) > WORK_STEPS:
        raise BadInputError(f"work is no list of up to {WORK_STEPS} steps")
    memory = value.get("memory_bytes")
    return Heartbeat(
        rank=whole(value, "rank"), attempt=whole(value, "attempt"), step=whole(value, "step"),
        phase=words(value, "phase"), host=words(value, "host"), pid=whole(value, "pid"),
        work=tuple(_work(item) for item in work),
        memory_bytes=None if memory is None else whole(value, "memory_bytes"),
    )  # fmt: skip


def _work(item: object) -> tuple[int, float]:
    if not isinstance(item, list) or len(item) != 2:
        raise BadInputError("work is no list of pairs of step and seconds")
    pair = dict(zip(("step", "seconds"), item, strict=True))
    return whole(pair, "step"), amount(pair, "seconds")


def code_left(folder: Path) -> int | None:
    """The gravest code with which a rank of the attempt in ``folder`` left; None if none said."""
    codes = []
    for path in (folder / LEFT).glob("rank-*"):
        with contextlib.suppress(OSError, ValueError):
            codes.append(int(read_regular(path, 16)))
    grave = (EXIT_NONFINITE, EXIT_CHECKPOINT, EXIT_STORAGE, EXIT_FENCED)
    known = [code for code in grave if code in codes]
    others = [code for code in codes if code not in (EXIT_DONE, EXIT_STOPPED)]
    return next(iter([*known, *others, *sorted(codes, reverse=True)]), None)


def host_name() -> str:
    """This host, as its scheduler calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def now() -> float:
    """Unix time for a record's ``time``."""
    return time.time()
