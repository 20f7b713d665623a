"""The ledger of a run: one SQLite file in which everything that happened is kept.

Write-ahead log and full synchronisation: a transaction that returned is on the disk, one that did
not never happened, and readers see the last whole state while the controller writes.  Every write
names the controller's epoch; a controller that has been superseded cannot write any more.
"""

from __future__ import annotations

import json
import math
import os
import socket
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from krzem.errors import SupersededError
from krzem.run.clock import Reading, RunClock
from krzem.run.reader import LEDGER, LedgerDamagedError, Reader, connect, sentences
from krzem.run.rows import (
    Attempt,
    Cause,
    RequestKind,
    RunRow,
    State,
)
from krzem.run.schema import migrate

__all__ = ["LEDGER", "Ledger", "LedgerDamagedError", "Reader"]


class Ledger(Reader):
    """Writes a ledger; one per run and controller, behind the run's lock."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with sentences():
            self._connection = connect((folder / LEDGER).absolute().as_uri())
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            migrate(self._connection)
        self.folder = folder
        self._file = _file(folder)
        self.epoch = 0
        self._first_attempt = 1
        self.clock = RunClock(self._last_reading())

    def check(self) -> None:
        """Read all of it; LedgerDamagedError where SQLite finds it damaged."""
        with sentences():
            found = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if found[0] != "ok":
            raise LedgerDamagedError(f"the ledger is damaged: {found[0]}")

    def begin(self, name: str, settings: Mapping[str, Any], settings_sha256: str) -> RunRow:
        """Become the run's controller, making the run if it is new; raises the epoch."""
        reading = self.clock.read()
        with sentences(), self._immediately() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO run (id, name, settings_sha256, settings, state,"
                " run_seconds, boot_id, boot_seconds, wall) VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?)",
                (name, settings_sha256, _json(settings), State.BEFORE, reading.run_seconds,
                 reading.boot_id, reading.boot_seconds, reading.wall),
            )  # fmt: skip
            connection.execute(
                "UPDATE run SET epoch = epoch + 1, settings = ?, settings_sha256 = ?",
                (_json(settings), settings_sha256),
            )
            (self.epoch,) = connection.execute("SELECT epoch FROM run").fetchone()
            connection.execute(
                "INSERT INTO controllers (epoch, host, pid, at, wall) VALUES (?, ?, ?, ?, ?)",
                (self.epoch, socket.gethostname(), os.getpid(), reading.run_seconds, reading.iso),
            )
        row = self.run()
        if row is None:
            raise AssertionError("the run was just made")
        return row

    def end(self) -> None:
        """Note that this controller ended in good order."""
        with self.writing() as connection:
            connection.execute(
                "UPDATE controllers SET ended = ? WHERE epoch = ?", (self.clock.now(), self.epoch)
            )

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction of this controller; nests into a transaction that is already open.

        Raises SupersededError where another controller has taken over, and StorageError where
        the disk does not take it: then nothing of it happened.
        """
        if self._connection.in_transaction:
            yield self._connection
            return
        with sentences(), self._immediately() as connection:
            if _file(self.folder) != self._file:
                raise SupersededError(
                    f"{LEDGER} was removed or replaced while this controller was at work on it: "
                    "start `krzem run` again, it goes on from what the folder shows"
                )
            (epoch,) = connection.execute("SELECT epoch FROM run").fetchone()
            if epoch != self.epoch:
                raise SupersededError(
                    f"controller {self.epoch} was superseded by controller {epoch}: another "
                    "`krzem run` has taken over this run"
                )
            reading = self.clock.read()
            connection.execute(
                "UPDATE run SET run_seconds = ?, boot_id = ?, boot_seconds = ?, wall = ?",
                (reading.run_seconds, reading.boot_id, reading.boot_seconds, reading.wall),
            )
            yield connection

    def set_state(self, state: State, pool: str | None, message: str, evidence: Any = None) -> None:
        """Change where the run is, and say so in the events."""
        with self.writing() as connection:
            connection.execute("UPDATE run SET state = ?, pool = ?", (state, pool))
            self.event(f"state {state}", message, pool=pool, evidence=evidence)

    def request_stop(self, how: str | None) -> None:
        """Ask the controller to stop the run (``save`` or ``now``); needs no lock and no epoch."""
        if self._connection.in_transaction:
            self._connection.execute("UPDATE run SET stop_requested = ?", (how,))
            return
        with sentences(), self._immediately() as connection:
            connection.execute("UPDATE run SET stop_requested = ?", (how,))

    def ask(self, kind: RequestKind, pool: str | None = None) -> int:
        """Ask the controller for something; needs no lock and no epoch.  The request's number."""
        with sentences(), self._immediately() as connection:
            made = connection.execute(
                "INSERT INTO requests (wall, kind, pool) VALUES (?, ?, ?)",
                (self.clock.read().iso, str(kind), pool),
            )
        return int(made.lastrowid or 0)

    def answer(self, request: int, state: str, message: str) -> None:
        """Close a request: ``done`` or ``refused``."""
        with self.writing() as connection:
            connection.execute(
                "UPDATE requests SET state = ?, message = ? WHERE id = ?",
                (state, message, request),
            )
            self.event(f"request {state}", message)

    def resettle(self, settings: Mapping[str, Any], settings_sha256: str) -> None:
        """Keep what the run file says now."""
        with self.writing() as connection:
            connection.execute(
                "UPDATE run SET settings = ?, settings_sha256 = ?",
                (_json(settings), settings_sha256),
            )

    def event(
        self,
        kind: str,
        message: str,
        *,
        pool: str | None = None,
        attempt: int | None = None,
        evidence: Any = None,
    ) -> None:
        """Keep something that happened."""
        reading = self.clock.read()
        with self.writing() as connection:
            connection.execute(
                "INSERT INTO events (at, wall, epoch, kind, pool, attempt, message, evidence)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (reading.run_seconds, reading.iso, self.epoch, kind, pool, attempt, message,
                 _json(evidence)),
            )  # fmt: skip

    def decide(self, subject: str, choice: str, reason: str, evidence: Any = None) -> None:
        """Keep a decision with its reason."""
        with self.writing() as connection:
            connection.execute(
                "INSERT INTO decisions (at, subject, choice, reason, evidence)"
                " VALUES (?, ?, ?, ?, ?)",
                (self.clock.now(), subject, choice, reason, _json(evidence)),
            )

    def new_attempt(self, pool: str, launcher: str, from_step: int) -> Attempt:
        """A new attempt with the next fencing token; there must be no open one."""
        with self.writing() as connection:
            if self.open_attempt() is not None:
                raise AssertionError("an attempt is still open")
            connection.execute("UPDATE run SET token = token + 1")
            connection.execute(
                "INSERT INTO attempts (id, pool, token, launcher, state, from_step, at)"
                " SELECT max(?, 1 + (SELECT coalesce(max(id), 0) FROM attempts)),"
                " ?, token, ?, 'starting', ?, ? FROM run",
                (self._first_attempt, pool, launcher, from_step, self.clock.now()),
            )
            found = self.open_attempt()
        if found is None:
            raise AssertionError("the attempt was just made")
        return found

    def catch_up(self, token: int, attempts: Sequence[Any], last_attempt: int) -> None:
        """Close what is open, enter attempts known from elsewhere, and go on above all of them.

        ``attempts`` have ``id``, ``token``, ``pool`` and ``launcher``.
        """
        with self.writing() as connection:
            now = self.clock.now()
            connection.execute(
                "UPDATE attempts SET state = 'ended', ended_at = ?, cause = ?, detail = ?"
                " WHERE state != 'ended'",
                (now, Cause.UNKNOWN, "the ledger knows no more of it"),
            )
            connection.executemany(
                "INSERT OR IGNORE INTO attempts (id, pool, token, launcher, state, from_step, at,"
                " ended_at, cause, detail) VALUES (?, ?, ?, ?, 'ended', 0, ?, ?, ?, ?)",
                [(a.id, a.pool, a.token, a.launcher, now, now, Cause.UNKNOWN,
                  "known from its folder alone") for a in attempts],
            )  # fmt: skip
            connection.execute(
                "UPDATE run SET token = max(token, ?, (SELECT coalesce(max(token), 0)"
                " FROM attempts)) + 1", (token,)
            )  # fmt: skip
            self._first_attempt = last_attempt + 1

    def next_token(self) -> int:
        """A token that no attempt holds: it fences off all of them."""
        with self.writing() as connection:
            connection.execute("UPDATE run SET token = token + 1")
            (token,) = connection.execute("SELECT token FROM run").fetchone()
        return int(token)

    def attempt_runs(self, attempt: int, handle: Mapping[str, Any]) -> None:
        """Keep what it takes to find the attempt again."""
        self._update_attempt(attempt, state="running", handle=_json(handle))

    def attempt_steps(self, attempt: int, last_step: int, first_step_at: float | None) -> None:
        """Keep how far an attempt has come."""
        self._update_attempt(attempt, last_step=last_step, first_step_at=first_step_at)

    def attempt_ended(
        self, attempt: int, cause: Cause, detail: str, exit_code: int | None = None
    ) -> None:
        """Close an attempt."""
        self._update_attempt(
            attempt,
            state="ended",
            ended_at=self.clock.now(),
            exit_code=exit_code,
            cause=str(cause),
            detail=detail,
        )

    def _update_attempt(self, attempt: int, **values: Any) -> None:
        columns = ", ".join(f"{name} = :{name}" for name in values)
        with self.writing() as connection:
            connection.execute(
                f"UPDATE attempts SET {columns} WHERE id = :id", {**values, "id": attempt}
            )

    def gate(
        self, attempt: Attempt, gate: str, action: str, message: str, evidence: Sequence[Any]
    ) -> None:
        """Keep a gate that fired with the rows that made it fire."""
        with self.writing() as connection:
            connection.execute(
                "INSERT INTO gates (at, attempt, pool, gate, action, message, evidence)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self.clock.now(), attempt.id, attempt.pool, gate, action, message,
                 _json(evidence)),
            )  # fmt: skip

    def checkpoint(
        self, folder: str, step: int, attempt: int | None, size: int, manifest_sha256: str
    ) -> None:
        """Keep a good checkpoint; the same one again, or again good, is no new row."""
        with self.writing() as connection:
            connection.execute(
                "INSERT INTO checkpoints (folder, step, attempt, at, bytes, manifest_sha256, state)"
                " VALUES (?, ?, ?, ?, ?, ?, 'good') ON CONFLICT (folder) DO UPDATE SET"
                " step = excluded.step, attempt = excluded.attempt, at = excluded.at,"
                " bytes = excluded.bytes, manifest_sha256 = excluded.manifest_sha256,"
                " state = 'good', reason = NULL",
                (folder, step, attempt, self.clock.now(), size, manifest_sha256),
            )

    def checkpoint_state(self, folder: str, state: str, reason: str | None) -> None:
        """Mark a checkpoint as rejected or pruned."""
        with self.writing() as connection:
            connection.execute(
                "UPDATE checkpoints SET state = ?, reason = ? WHERE folder = ?",
                (state, reason, folder),
            )

    def measure(
        self,
        pool: str,
        name: str,
        value: float,
        unit: str,
        *,
        attempt: int | None = None,
        evidence: Any = None,
    ) -> None:
        """Keep a measured number."""
        with self.writing() as connection:
            connection.execute(
                "INSERT INTO measurements (at, pool, attempt, name, value, unit, evidence)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self.clock.now(), pool, attempt, name, value, unit, _json(evidence)),
            )

    @contextmanager
    def _immediately(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the write lock from its start."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _last_reading(self) -> Reading | None:
        row = self.run()
        if row is None:
            return None
        return Reading(
            run_seconds=row.run_seconds,
            boot_id=row.boot_id,
            boot_seconds=row.boot_seconds,
            wall=row.wall,
        )


def _file(folder: Path) -> tuple[int, int] | None:
    """Which file the ledger is; None where there is none."""
    try:
        found = (folder / LEDGER).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _json(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, default=str, allow_nan=False)


def _plain(value: Any) -> Any:
    """``value`` with numbers that JSON cannot write (NaN, infinities) as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
