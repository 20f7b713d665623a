"""A ledger that is lost, cut short or put back from a copy; loops that end; reasons that stay."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.run.run_helpers import (
    HELD,
    assert_exact,
    go,
    held,
    run_it,
    services,
    wait_for,
    write_run,
)

from krzem.errors import StorageError, SupersededError
from krzem.run.command import logs_command, run_command, status_command
from krzem.run.contract import FENCE
from krzem.run.controller import run
from krzem.run.launch.job import Job, Look, Phase
from krzem.run.ledger import LEDGER, Ledger, Reader
from krzem.run.processes import LOCK, of_run
from krzem.run.qualify import qualify_pool
from krzem.run.recovery import look, open_ledger
from krzem.run.rows import Cause, State
from krzem.run.run_file import read_run
from krzem.run.status import read_status

CONTROLLER = Path(__file__).parent / "controller_main.py"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_it(write_run(folder))
    return folder / "run"


def left_alone(folder: Path) -> Path:
    """A run whose trainer waits in step 6 while its controller was killed."""
    path = write_run(folder, faults=HELD)
    process = subprocess.Popen([sys.executable, CONTROLLER, path], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: held(folder))
    finally:
        process.kill()
        process.wait()
    return path


def remove_all(folder: Path) -> None:
    for path in folder.glob(f"{LEDGER}*"):
        path.unlink()


def remove_log(folder: Path) -> None:
    for ending in ("-wal", "-shm"):
        (folder / f"{LEDGER}{ending}").unlink()


def overwrite(folder: Path) -> None:
    remove_all(folder)
    (folder / LEDGER).write_bytes(b"no database at all " * 500)


@pytest.mark.parametrize("lose", [remove_all, remove_log, overwrite])
def test_a_ledger_that_is_lost_starts_no_second_trainer(
    tmp_path: Path, undisturbed: Path, lose: Callable[[Path], None]
) -> None:
    path = left_alone(tmp_path)
    run_dir = tmp_path / "run"
    alive = of_run(run_dir)
    assert alive
    token = json.loads((run_dir / FENCE).read_text())["token"]
    lose(run_dir)
    go(tmp_path)
    seen: list[int] = []

    def looked(snapshot: object) -> None:
        seen.append(len(set(of_run(run_dir)) & set(alive)))

    assert run_it(path, on_look=looked) is State.DONE
    assert set(seen) == {0}, "nothing of the first trainer lives beside the second"
    assert_exact(run_dir, undisturbed)
    with Reader(run_dir) as reader:
        newest = reader.attempts()[-1]
        assert newest.token > token
        assert newest.id == 2, "an attempt's folder is never used twice"
    status = read_status(run_dir)
    assert status.unknown, "the report says what is not known"
    shown = CliRunner().invoke(status_command, [str(run_dir)]).output
    assert "fencing tokens go on above" in shown


def test_a_ledger_put_back_from_a_copy_is_behind(tmp_path: Path, undisturbed: Path) -> None:
    faults = [{"id": "a", "step": 13, "at": "compute", "do": "kill"}]
    path = write_run(tmp_path, faults=faults)
    copy = tmp_path / "copy"
    run_dir = tmp_path / "run"

    def report(folder: Path) -> None:
        raise SystemExit  # as if the machine went down before the end was written

    def looked(snapshot: object) -> None:
        if not copy.exists():
            copy.mkdir()
            for file in run_dir.glob(f"{LEDGER}*"):
                shutil.copy(file, copy)

    with pytest.raises(SystemExit):
        run_it(path, on_look=looked, report=report)
    remove_all(run_dir)
    for file in copy.iterdir():
        shutil.copy(file, run_dir)
    assert run_it(path) is State.DONE
    assert_exact(run_dir, undisturbed)
    status = read_status(run_dir)
    assert any("is older than the run" in text for text in status.unknown)
    with Reader(run_dir) as reader:
        assert len({a.token for a in reader.attempts()}) == len(reader.attempts())


def test_a_controller_whose_ledger_was_removed_ends(tmp_path: Path) -> None:
    """Else two of them would tend two trainers."""
    path = write_run(tmp_path, faults=HELD)

    def looked(snapshot: object) -> None:
        if held(tmp_path):
            remove_all(tmp_path / "run")
            (tmp_path / "run" / LOCK).unlink()
            go(tmp_path)

    with pytest.raises(SupersededError, match="removed or replaced"):
        run(read_run(path), services(on_look=looked))
    assert run_it(path) is State.DONE


def test_what_the_folder_shows_counts_whatever_the_ledger_says(tmp_path: Path) -> None:
    (tmp_path / "attempts" / "0007").mkdir(parents=True)
    (tmp_path / "attempts" / "0007" / "job.json").write_text('{"token": 41, "pool": "p"}')
    (tmp_path / "attempts" / "nonsense").mkdir()
    (tmp_path / "attempts" / "0009").mkdir()
    (tmp_path / FENCE).write_text('{"token": "many"}')
    seen = look(tmp_path)
    assert (seen.token, seen.last_attempt) == (41, 9)
    assert seen.attempts[7].pool == "p"


def test_a_damaged_ledger_is_kept(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_bytes(b"x" * 8192)
    ledger, told = open_ledger(tmp_path)
    ledger.close()
    assert "damaged" in told
    assert (tmp_path / f"{LEDGER}.damaged-1").read_bytes() == b"x" * 8192


# Loops that end ---------------------------------------------------------------------------------


def dying(folder: Path, pools: list[str]) -> Path:
    path = write_run(folder, pools=pools, gates="progress = { times = 3 }")
    text = path.read_text().splitlines()
    at = next(n for n, line in enumerate(text) if line.startswith("command = "))
    text[at] = 'command = ["{python}", "-c", "import nosuchmodule"]'
    path.write_text("\n".join(text))
    return path


def test_a_trainer_that_dies_at_once_fails_the_run_with_its_last_words(tmp_path: Path) -> None:
    path = dying(tmp_path, ["a", "b"])
    said: list[str] = []
    assert run_it(path, say=said.append) is State.FAILED
    with Reader(tmp_path / "run") as reader:
        assert [a.pool for a in reader.attempts()] == ["a"] * 3 + ["b"] * 3
    runner = CliRunner()
    for command, arguments in (
        (status_command, []), (status_command, ["--json"]), (logs_command, []),
        (logs_command, ["--json"]),
    ):  # fmt: skip
        shown = runner.invoke(command, [str(tmp_path / "run"), *arguments])
        assert "No module named 'nosuchmodule'" in shown.output, arguments
    assert any("the run failed" in text for text in said)


def test_quiet_and_json_say_why_and_the_exit_code_too(tmp_path: Path) -> None:
    path = dying(tmp_path, ["a"])
    for arguments in (["--quiet"], ["--json"]):
        result = CliRunner().invoke(run_command, [str(path), *arguments])
        assert result.exit_code == 1
        assert "No module named 'nosuchmodule'" in result.output


@pytest.mark.parametrize(
    ("error", "tries"), [(PermissionError(13, "Permission denied"), 4), (OSError(28, "full"), 9)]
)
def test_waiting_for_a_disk_ends(tmp_path: Path, error: OSError, tries: int) -> None:
    """What no waiting mends after a few tries, a full disk after the time that was stated."""
    asked: list[int] = []
    now = [0.0]

    def plan(*given: object, **more: object) -> object:
        asked.append(1)
        raise StorageError("cannot write there") from error

    def sleep(seconds: float) -> None:
        now[0] += 100.0

    path = write_run(tmp_path)
    path.write_text(path.read_text().replace("[recovery]", '[recovery]\nwait_limit = "750 s"'))
    state = run_it(path, plan=plan, sleep=sleep, clock=lambda: now[0])
    assert (state, len(asked)) == (State.FAILED, tries)
    assert "cannot write there" in (read_status(tmp_path / "run").reason or "")


def test_a_profile_that_cannot_be_kept_stops_nothing(tmp_path: Path) -> None:
    path = write_run(tmp_path, steps=5)
    (tmp_path / "run" / "profiles").write_text("a file in the way")
    text = path.read_text().replace("enabled = false", 'enabled = true\nseconds = "1s"')
    path.write_text(text)
    from krzem.run.qualify import qualify_pool

    assert run_it(path, qualify=qualify_pool) is State.DONE
    with Reader(tmp_path / "run") as reader:
        (found,) = [d for d in reader.decisions() if d.subject == "qualify first"]
        assert reader.attempts()[-1].cause is Cause.DONE
    assert any("profile was not kept" in text for text in found.evidence["warnings"])


def test_a_request_needs_no_controller(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.request_stop("save")
    ledger.close()


class Waiting:
    """A launcher whose jobs wait in a queue for ever."""

    name, can_exclude = "waiting", False
    killed = 0

    def start(self, job: Job) -> Mapping[str, Any]:
        return {}

    def look(self, job: Job, handle: Mapping[str, Any]) -> Look:
        return Look(phase=Phase.PENDING, detail="(Resources)")

    def kill(self, job: Job, handle: Mapping[str, Any] | None) -> None:
        self.killed += 1


def test_a_probe_or_a_check_that_waits_in_a_queue_does_not_wait_for_ever(tmp_path: Path) -> None:
    """Time in a queue is none of the probe's own: the pool's limit of it counts here too."""
    path = write_run(tmp_path, pool_extra={"first": '[pool.limits]\nqueue = "100 ms"\n'})
    settings = read_run(path)
    settings = replace(settings, recovery=replace(settings.recovery, look_every=0.01))
    launcher: Any = Waiting()
    found = qualify_pool(settings, settings.pool("first"), launcher, 1)
    assert not found.passed
    (fault,) = found.faults
    assert "waited in the queue of first for longer than limits.queue allows: (Resources)" in fault
    assert launcher.killed == 1
