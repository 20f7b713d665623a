import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import DataError, StorageError, SupersededError
from krzem.run.clock import Reading, RunClock
from krzem.run.ledger import LEDGER, Ledger, Reader
from krzem.run.rows import Cause, State
from krzem.run.schema import SCRIPTS, migrate


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path)
    made.begin("test", {"a": 1}, "hash")
    yield made
    made.close()


def test_everything_written_is_read_back(ledger: Ledger) -> None:
    attempt = ledger.new_attempt("first", "local", from_step=40)
    ledger.attempt_runs(attempt.id, {"pid": 7})
    ledger.attempt_steps(attempt.id, 55, 1.5)
    ledger.gate(attempt, "throughput", "move", "too slow", [{"step": 50, "tokens_per_s": 3.0}])
    ledger.attempt_ended(attempt.id, Cause.GATE, "throughput", 137)
    ledger.decide("pool", "second", "first is slow", {"share": 0.4})
    ledger.checkpoint("step-50", 50, attempt.id, 1000, "abc")
    ledger.measure("first", "tokens_per_s", 3.0, "1/s", attempt=attempt.id)
    ledger.set_state(State.MOVE, "second", "moving")

    assert ledger.open_attempt() is None
    (read,) = ledger.attempts("first")
    assert (read.handle, read.last_step, read.cause, read.exit_code) == (
        {"pid": 7}, 55, Cause.GATE, 137,
    )  # fmt: skip
    assert ledger.fired()[0].evidence == [{"step": 50, "tokens_per_s": 3.0}]
    assert ledger.decisions()[0].evidence == {"share": 0.4}
    assert ledger.checkpoints()[0].manifest_sha256 == "abc"
    assert ledger.measurements("first")[0].value == 3.0
    run = ledger.run()
    assert run is not None
    assert (run.state, run.pool, run.settings) == (State.MOVE, "second", {"a": 1})
    assert ledger.events()[-1].kind == "state move"


def test_tokens_only_grow_and_belong_to_one_attempt(ledger: Ledger) -> None:
    first = ledger.new_attempt("a", "local", 0)
    with pytest.raises(AssertionError, match="still open"):
        ledger.new_attempt("a", "local", 0)
    ledger.attempt_ended(first.id, Cause.CRASH, "", 1)
    barrier = ledger.next_token()
    second = ledger.new_attempt("a", "local", 0)
    assert first.token < barrier < second.token


def test_evidence_may_hold_what_json_cannot(ledger: Ledger) -> None:
    ledger.event("nan", "loss", evidence=[{"loss": float("nan"), "norm": float("inf")}])
    assert ledger.events()[-1].evidence == [{"loss": "nan", "norm": "inf"}]


def test_a_reader_sees_whole_states_while_the_controller_writes(
    ledger: Ledger, tmp_path: Path
) -> None:
    with Reader(tmp_path) as reader:
        with ledger.writing():
            ledger.event("one", "half")
            assert reader.events("one") == []
        assert len(reader.events("one")) == 1
        with pytest.raises(sqlite3.OperationalError):
            reader._connection.execute("DELETE FROM events")


def test_a_failed_transaction_never_happened(ledger: Ledger) -> None:
    def fail() -> None:
        with ledger.writing():
            ledger.event("lost", "never")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert ledger.events("lost") == []
    ledger.event("kept", "after")
    assert len(ledger.events("kept")) == 1


def test_a_superseded_controller_cannot_write(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(tmp_path)
    other.begin("test", {}, "hash")
    with pytest.raises(SupersededError, match="controller 1 was superseded by controller 2"):
        ledger.event("late", "must not be kept")
    other.event("fine", "kept")
    assert [e.kind for e in other.events()] == ["fine"]
    other.close()


def test_stop_is_requested_by_anybody(ledger: Ledger, tmp_path: Path) -> None:
    other = Ledger(tmp_path)
    other.request_stop("save")
    other.close()
    run = ledger.run()
    assert run is not None
    assert run.stop_requested == "save"
    assert run.epoch == ledger.epoch


_KILLED = """
import os, signal, sys
from pathlib import Path
from krzem.run.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
ledger.begin("test", {}, "hash")
ledger.event("whole", "kept")
with ledger.writing():
    ledger.event("half", "lost")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_inside_a_transaction_loses_only_that_transaction(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    with Reader(tmp_path) as reader:
        assert [e.kind for e in reader.events()] == ["whole"]
    again = Ledger(tmp_path)
    assert again.begin("test", {}, "hash").epoch == 2
    again.close()


def test_a_folder_without_a_ledger_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the folder of a run"):
        Reader(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_bytes(os.urandom(4096))
    with pytest.raises(DataError, match="damaged"):
        Ledger(tmp_path)


def test_a_read_only_ledger_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / LEDGER).mkdir()
    with pytest.raises(StorageError, match="ledger"):
        Ledger(tmp_path)


def test_migrations_run_once_and_in_order() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    scripts = [*SCRIPTS, "CREATE TABLE extra (a TEXT) STRICT; INSERT INTO extra VALUES ('x')"]
    migrate(connection)
    migrate(connection, scripts)
    migrate(connection, scripts)
    assert connection.execute("SELECT * FROM extra").fetchall() == [("x",)]
    assert connection.execute("PRAGMA user_version").fetchone() == (3,)
    with pytest.raises(DataError, match="schema version 3; this krzem knows up to 2"):
        migrate(connection)
    connection.close()


def test_a_migration_that_fails_leaves_the_old_version() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, [*SCRIPTS, "CREATE TABLE extra (a TEXT); SELECT nonsense"])
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(-1e9, 1e9), st.booleans(), st.floats(0, 1e5))
def test_the_run_clock_never_goes_back(
    ran: float, boot: float, jump: float, rebooted: bool, gap: float
) -> None:
    last = Reading(run_seconds=ran, boot_id="one", boot_seconds=boot, wall=1e9)
    later = 5.0 if rebooted else boot + gap
    clock = RunClock(
        last,
        wall=lambda: 1e9 + jump,
        boot=lambda: later,
        boot_id="two" if rebooted else "one",
    )
    expected = max(0.0, jump) if rebooted else gap
    # a date of 1e9 s is rounded to about 1e-7 s
    assert clock.now() == pytest.approx(ran + expected, abs=1e-6)
    assert clock.read().run_seconds >= ran
