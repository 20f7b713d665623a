"""The ledger's tables, as the list of scripts that made them: script n leads to version n."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from krzem.errors import DataError

_FIRST = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    name TEXT NOT NULL,
    settings_sha256 TEXT NOT NULL,
    settings TEXT NOT NULL CHECK (json_valid(settings)),
    state TEXT NOT NULL,
    pool TEXT,
    epoch INTEGER NOT NULL DEFAULT 0,
    token INTEGER NOT NULL DEFAULT 0,
    stop_requested TEXT,
    run_seconds REAL NOT NULL,
    boot_id TEXT NOT NULL,
    boot_seconds REAL NOT NULL,
    wall REAL NOT NULL
) STRICT;
CREATE TABLE controllers (
    epoch INTEGER PRIMARY KEY,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    at REAL NOT NULL,
    wall TEXT NOT NULL,
    ended REAL
) STRICT;
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY,
    pool TEXT NOT NULL,
    token INTEGER NOT NULL UNIQUE,
    launcher TEXT NOT NULL,
    handle TEXT CHECK (handle IS NULL OR json_valid(handle)),
    state TEXT NOT NULL CHECK (state IN ('starting', 'running', 'ended')),
    from_step INTEGER NOT NULL,
    at REAL NOT NULL,
    first_step_at REAL,
    ended_at REAL,
    exit_code INTEGER,
    cause TEXT,
    detail TEXT,
    last_step INTEGER
) STRICT;
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    wall TEXT NOT NULL,
    epoch INTEGER NOT NULL REFERENCES controllers (epoch),
    kind TEXT NOT NULL,
    pool TEXT,
    attempt INTEGER REFERENCES attempts (id),
    message TEXT NOT NULL,
    evidence TEXT NOT NULL CHECK (json_valid(evidence))
) STRICT;
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    subject TEXT NOT NULL,
    choice TEXT NOT NULL,
    reason TEXT NOT NULL,
    evidence TEXT NOT NULL CHECK (json_valid(evidence))
) STRICT;
CREATE TABLE gates (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    attempt INTEGER NOT NULL REFERENCES attempts (id),
    pool TEXT NOT NULL,
    gate TEXT NOT NULL,
    action TEXT NOT NULL,
    message TEXT NOT NULL,
    evidence TEXT NOT NULL CHECK (json_valid(evidence))
) STRICT;
CREATE TABLE checkpoints (
    folder TEXT PRIMARY KEY,
    step INTEGER NOT NULL,
    attempt INTEGER REFERENCES attempts (id),
    at REAL NOT NULL,
    bytes INTEGER NOT NULL,
    manifest_sha256 TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('good', 'rejected', 'pruned')),
    reason TEXT
) STRICT;
CREATE TABLE measurements (
    id INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    pool TEXT NOT NULL,
    attempt INTEGER REFERENCES attempts (id),
    name TEXT NOT NULL,
    value REAL NOT NULL,
    unit TEXT NOT NULL,
    evidence TEXT NOT NULL CHECK (json_valid(evidence))
) STRICT;
CREATE INDEX events_by_kind ON events (kind, at);
CREATE INDEX measurements_by_name ON measurements (pool, name);
"""

_REQUESTS = """
CREATE TABLE requests (
    id INTEGER PRIMARY KEY,
    wall TEXT NOT NULL,
    kind TEXT NOT NULL,
    pool TEXT,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'done', 'refused')),
    message TEXT NOT NULL DEFAULT ''
) STRICT;
"""

SCRIPTS: Sequence[str] = (_FIRST, _REQUESTS)


def migrate(connection: sqlite3.Connection, scripts: Sequence[str] = SCRIPTS) -> None:
    """Bring a ledger to the newest version, one script and one transaction at a time.

    Raises DataError for a ledger that a newer krzem has written.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(scripts):
        raise DataError(
            f"the ledger has schema version {version}; this krzem knows up to {len(scripts)}: "
            "use the newer krzem that wrote it"
        )
    for number in range(version, len(scripts)):
        connection.execute("BEGIN IMMEDIATE")
        try:
            _apply(connection, number, scripts[number])
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


def _apply(connection: sqlite3.Connection, number: int, script: str) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found != number:
        return  # another process got here first
    for statement in _statements(script):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {number + 1}")


def _statements(script: str) -> list[str]:
    """``executescript`` would commit the transaction that a migration must be."""
    return [text for part in script.split(";") if (text := part.strip())]
