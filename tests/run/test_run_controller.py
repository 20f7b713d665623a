from pathlib import Path

import pytest
from tests.run.run_helpers import HELD, assert_exact, final_state, run_it, stopping, write_run

from krzem.errors import RunError
from krzem.run.contract import read_heartbeats
from krzem.run.ledger import Ledger, Reader
from krzem.run.rows import Cause, State


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_it(write_run(folder)) is State.DONE
    return folder / "run"


def test_a_run_trains_every_token(undisturbed: Path) -> None:
    assert final_state(undisturbed)[0] == 40
    with Reader(undisturbed) as reader:
        (attempt,) = reader.attempts()
        assert (attempt.cause, attempt.last_step, attempt.exit_code) == (Cause.DONE, 40, 0)
        assert attempt.first_step_at is not None
        run = reader.run()
        assert run is not None
        assert run.state is State.DONE
        assert [d.subject for d in reader.decisions()] == [
            "plan of first", "gates", "pool", "qualify first", "plan of first",
        ]  # fmt: skip
        assert [c.step for c in reader.checkpoints() if c.state == "good"] == [20, 30, 40]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_change_nothing(tmp_path: Path, undisturbed: Path, ranks: int) -> None:
    assert run_it(write_run(tmp_path, ranks=ranks)) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("at", ["compute", "save.begin", "save.data", "save.manifest", "save.done"])
def test_a_killed_trainer_is_restarted_in_place(tmp_path: Path, undisturbed: Path, at: str) -> None:
    path = write_run(tmp_path, faults=[{"id": "a", "step": 20, "at": at, "do": "kill"}])
    assert run_it(path) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        first, second = reader.attempts()
        assert first.cause is Cause.KILLED
        assert second.from_step == (20 if at == "save.done" else 10)
        (fault,) = reader.events("fault")
        assert fault.attempt == first.id


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ({"do": "kill", "rank": 1}, Cause.CRASH),
        ({"do": "kill-all"}, Cause.LOST),
        ({"do": "exit"}, Cause.CRASH),
        ({"do": "nan"}, Cause.NONFINITE),
    ],
)
def test_faults_end_where_an_undisturbed_run_ends(
    tmp_path: Path, undisturbed: Path, fault: dict[str, object], cause: Cause
) -> None:
    planted = {"id": "a", "step": 17, "at": "compute", **fault}
    path = write_run(tmp_path, ranks=2, faults=[planted])
    assert run_it(path) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert [a.cause for a in reader.attempts()] == [cause, Cause.DONE]
        assert reader.attempts()[1].from_step == 10


class HangClock:
    """Goes on only while one rank of the first attempt hangs and the other waits for it."""

    def __init__(self, run_dir: Path, waiting: int) -> None:
        self.run_dir, self.waiting, self.now = run_dir, waiting, 0.0

    def __call__(self) -> float:
        beat = read_heartbeats(self.run_dir, 1).get(self.waiting)
        hangs = (self.run_dir / "faults.done" / "a").exists()
        over = (self.run_dir / "attempts" / "0002").exists()
        if hangs and not over and beat is not None and (beat.step, beat.phase) == (17, "reduce"):
            self.now += 60.0
        return self.now


@pytest.mark.parametrize("rank", [0, 1])
def test_a_hanging_rank_is_found_by_its_heartbeat(
    tmp_path: Path, undisturbed: Path, rank: int
) -> None:
    fault = {"id": "a", "step": 17, "at": "compute", "do": "hang", "rank": rank}
    path = write_run(tmp_path, ranks=2, faults=[fault])
    assert run_it(path, clock=HangClock(tmp_path / "run", 1 - rank)) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        (fired,) = reader.fired()
        assert fired.gate == "stall"
        assert f"(limit 120 s); furthest behind: rank {rank} on" in fired.message
        assert {row["rank"] for row in fired.evidence} == {0, 1}


def test_a_slow_pool_is_left_for_the_next(tmp_path: Path, undisturbed: Path) -> None:
    path = write_run(
        tmp_path,
        pools=["slow", "fast"],
        pool_trainer={"slow": {"step_seconds": 0.3}},
        pool_extra={"slow": "[pool.limits]\nthreads = 1\n"},
        gates="throughput = { below = 0.6, steps = 4, skip = 2 }",
    )
    text = path.read_text().replace("throughput = false\n", "")
    path.write_text(text)
    assert run_it(path) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        slow, fast = reader.attempts()
        assert (slow.pool, slow.cause, fast.pool) == ("slow", Cause.STOPPED, "fast")
        assert fast.from_step == slow.last_step, "it saved before it stopped: nothing is lost"
        (fired,) = reader.fired()
        assert (fired.gate, fired.action, len(fired.evidence)) == ("throughput", "move", 4)
        assert "witness not checked" in [e.kind for e in reader.events()]


def test_nan_twice_moves_the_run(tmp_path: Path, undisturbed: Path) -> None:
    faults = [{"id": i, "step": 17, "at": "compute", "do": "nan"} for i in "ab"]
    path = write_run(tmp_path, pools=["bad", "good"], faults=faults)
    assert run_it(path) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert [a.pool for a in reader.attempts()] == ["bad", "bad", "good"]
        assert [f.gate for f in reader.fired()] == ["nonfinite"]


def test_too_many_restarts_move_the_run_and_the_last_pool_can_fail(tmp_path: Path) -> None:
    faults = [{"id": str(i), "step": 5, "at": "compute", "do": "exit"} for i in range(5)]
    path = write_run(tmp_path, pools=["a", "b"], faults=faults, gates="restarts = { per_day = 1 }")
    assert run_it(path) is State.DONE
    with Reader(tmp_path / "run") as reader:
        pools = [a.pool for a in reader.attempts()]
        assert pools[:2] == ["a"] * 2
        assert set(pools[2:]) == {"b"}, "no pool is left: it goes on where it is"
        assert len(pools) == 6


def test_a_stop_request_saves_and_the_run_goes_on_later(tmp_path: Path, undisturbed: Path) -> None:
    path = write_run(tmp_path, faults=HELD)

    def ask() -> None:
        other = Ledger(tmp_path / "run")
        other.request_stop("save")
        other.close()

    assert run_it(path, on_look=stopping(tmp_path, ask)) is State.STOPPED
    with Reader(tmp_path / "run") as reader:
        (attempt,) = reader.attempts()
        assert (attempt.cause, attempt.last_step) == (Cause.STOPPED, 6)
    assert run_it(path) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, steps=5)
    run_it(path)
    path.write_text(path.read_text().replace("global_batch = 8", "global_batch = 4"))
    with pytest.raises(RunError, match=r"holds another run.*global_batch: 8 there, 4 here"):
        run_it(path)


def test_a_report_that_fails_does_not_undo_the_run(tmp_path: Path) -> None:
    def report(folder: Path) -> None:
        raise ZeroDivisionError("planted")

    assert run_it(write_run(tmp_path, steps=5), report=report) is State.DONE
    with Reader(tmp_path / "run") as reader:
        (event,) = reader.events("report failed")
    assert event.message == "ZeroDivisionError: planted"
