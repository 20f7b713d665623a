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
from typing import Any, TypeVar

from krzem.errors import DataError, StorageError, SupersededError
from krzem.run.clock import Reading, RunClock
from krzem.run.rows import (
    Attempt,
    Cause,
    CheckpointRow,
    Decision,
    Event,
    Fired,
    Measurement,
    RunRow,
    State,
)
from krzem.run.schema import migrate

LEDGER = "ledger.sqlite"
BUSY_SECONDS = 30.0

Row = TypeVar("Row")


class Reader:
    """Reads a ledger, also while a controller writes it; use as a context."""

    def __init__(self, folder: Path) -> None:
        path = folder / LEDGER
        if not path.is_file():
            raise DataError(f"{folder} is not the folder of a run: it has no {LEDGER}")
        self._connection = _connect(f"{path.absolute().as_uri()}?mode=ro")
        with _sentences():
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if not version:
            self._connection.close()
            raise DataError(f"the run in {folder} is only just being made: look again in a moment")

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    def run(self) -> RunRow | None:
        """Where the run is; None before it began."""
        found = self._read(RunRow, "SELECT * FROM run")
        return found[0] if found else None

    def attempts(self, pool: str | None = None) -> list[Attempt]:
        """All attempts, or those of a pool, oldest first."""
        where = "" if pool is None else "WHERE pool = :pool"
        return self._read(Attempt, f"SELECT * FROM attempts {where} ORDER BY id", {"pool": pool})

    def open_attempt(self) -> Attempt | None:
        """The attempt that has not ended; there is never more than one."""
        found = self._read(Attempt, "SELECT * FROM attempts WHERE state != 'ended' ORDER BY id")
        return found[-1] if found else None

    def events(self, kind: str | None = None, last: int | None = None) -> list[Event]:
        """What happened, oldest first; ``last`` limits it to the newest."""
        where = "" if kind is None else "WHERE kind = :kind"
        sql = f"SELECT * FROM events {where} ORDER BY id DESC LIMIT :last"
        return self._read(Event, sql, {"kind": kind, "last": -1 if last is None else last})[::-1]

    def decisions(self) -> list[Decision]:
        """What was decided, oldest first."""
        return self._read(Decision, "SELECT * FROM decisions ORDER BY id")

    def fired(self) -> list[Fired]:
        """Gates that fired, oldest first."""
        return self._read(Fired, "SELECT * FROM gates ORDER BY id")

    def checkpoints(self) -> list[CheckpointRow]:
        """Every checkpoint ever seen, by step."""
        return self._read(CheckpointRow, "SELECT * FROM checkpoints ORDER BY step, at")

    def measurements(self, pool: str | None = None) -> list[Measurement]:
        """What was measured, oldest first."""
        where = "" if pool is None else "WHERE pool = :pool"
        sql = f"SELECT * FROM measurements {where} ORDER BY id"
        return self._read(Measurement, sql, {"pool": pool})

    def _read(
        self, kind: type[Row], sql: str, values: Mapping[str, Any] | None = None
    ) -> list[Row]:
        with _sentences():
            rows = self._connection.execute(sql, values or {}).fetchall()
        return [_value(kind, row) for row in rows]


class Ledger(Reader):
    """Writes a ledger; one per run and controller, behind the run's lock."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with _sentences():
            self._connection = _connect((folder / LEDGER).absolute().as_uri())
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            migrate(self._connection)
        self.folder = folder
        self.epoch = 0
        self.clock = RunClock(self._last_reading())

    def begin(self, name: str, settings: Mapping[str, Any], settings_sha256: str) -> RunRow:
        """Become the run's controller, making the run if it is new; raises the epoch."""
        reading = self.clock.read()
        with _sentences(), self._immediately() as connection:
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
        with _sentences(), self._immediately() as connection:
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
        with _sentences(), self._immediately() as connection:
            connection.execute("UPDATE run SET stop_requested = ?", (how,))

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
                "INSERT INTO attempts (pool, token, launcher, state, from_step, at)"
                " SELECT ?, token, ?, 'starting', ?, ? FROM run",
                (pool, launcher, from_step, self.clock.now()),
            )
            found = self.open_attempt()
        if found is None:
            raise AssertionError("the attempt was just made")
        return found

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


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


@contextmanager
def _sentences() -> Iterator[None]:
    """SQLite's errors as sentences."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError):
            raise
        if isinstance(error, sqlite3.OperationalError):
            raise StorageError(f"the ledger cannot be written or read: {error}") from error
        raise DataError(f"the ledger is damaged: {error}") from error


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


_JSON = frozenset({"settings", "handle", "evidence"})


def _value(kind: type[Row], row: sqlite3.Row) -> Row:
    values = {name: row[name] for name in row.keys() if name != "id" or kind is not RunRow}  # noqa: SIM118
    for name in _JSON & values.keys():
        values[name] = None if values[name] is None else json.loads(values[name])
    if kind is RunRow:
        values["state"] = State(values["state"])
    if values.get("cause"):
        values["cause"] = Cause(values["cause"])
    return kind(**values)
