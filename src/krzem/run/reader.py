"""Reading the ledger of a run, also while a controller writes it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from krzem.errors import DataError, StorageError
from krzem.run.rows import (
    Attempt,
    Cause,
    CheckpointRow,
    Decision,
    Event,
    Fired,
    Measurement,
    Request,
    RequestKind,
    RunRow,
    State,
)

LEDGER = "ledger.sqlite"
BUSY_SECONDS = 30.0
Row = TypeVar("Row")


class LedgerDamagedError(DataError):
    """A ledger that SQLite cannot read any more."""


class Reader:
    """Reads a ledger, also while a controller writes it; use as a context."""

    def __init__(self, folder: Path) -> None:
        path = folder / LEDGER
        if not path.is_file():
            raise DataError(f"{folder} is not the folder of a run: it has no {LEDGER}")
        self._connection = connect(f"{path.absolute().as_uri()}?mode=ro")
        with sentences():
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

    def events(
        self, kind: str | None = None, last: int | None = None, after: int = 0
    ) -> list[Event]:
        """What happened after event ``after``, oldest first; ``last`` limits it to the newest."""
        where = "WHERE id > :after" + ("" if kind is None else " AND kind = :kind")
        sql = f"SELECT * FROM events {where} ORDER BY id DESC LIMIT :last"
        values = {"kind": kind, "last": -1 if last is None else last, "after": after}
        return self._read(Event, sql, values)[::-1]

    def decisions(self) -> list[Decision]:
        """What was decided, oldest first."""
        return self._read(Decision, "SELECT * FROM decisions ORDER BY id")

    def fired(self) -> list[Fired]:
        """Gates that fired, oldest first."""
        return self._read(Fired, "SELECT * FROM gates ORDER BY id")

    def requests(self) -> list[Request]:
        """What operators asked for, oldest first."""
        return self._read(Request, "SELECT * FROM requests ORDER BY id")

    def open_requests(self) -> list[Request]:
        """Those that are not answered yet."""
        return self._read(Request, "SELECT * FROM requests WHERE state = 'open' ORDER BY id")

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
        with sentences():
            rows = self._connection.execute(sql, values or {}).fetchall()
        return [_value(kind, row) for row in rows]


def connect(uri: str) -> sqlite3.Connection:
    """A connection that waits for others, and keeps foreign keys."""
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


@contextmanager
def sentences() -> Iterator[None]:
    """SQLite's errors as sentences."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.IntegrityError):
            raise
        if isinstance(error, sqlite3.OperationalError):
            raise StorageError(f"the ledger cannot be written or read: {error}") from error
        raise LedgerDamagedError(f"the ledger is damaged: {error}") from error


_JSON = frozenset({"settings", "handle", "evidence"})


def _value(kind: type[Row], row: sqlite3.Row) -> Row:
    values = {name: row[name] for name in row.keys() if name != "id" or kind is not RunRow}  # noqa: SIM118
    for name in _JSON & values.keys():
        values[name] = None if values[name] is None else json.loads(values[name])
    if kind is RunRow:
        values["state"] = State(values["state"])
    if kind is Request:
        values["kind"] = RequestKind(values["kind"])
    if values.get("cause"):
        values["cause"] = Cause(values["cause"])
    return kind(**values)
