import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.run.run_helpers import (
    HELD,
    asked_to_stop,
    assert_exact,
    go,
    held,
    run_it,
    wait_for,
    write_run,
)

from krzem.errors import LaunchError
from krzem.run.launch.job import Job
from krzem.run.launch.slurm import (
    AllocationLauncher,
    SlurmLauncher,
    allocation_of,
    batch_options,
    batch_script,
    slurm_launcher,
)
from krzem.run.ledger import Reader
from krzem.run.pool_settings import Slurm
from krzem.run.qualify import qualify_pool
from krzem.run.rows import Cause, State

CONTROLLER = Path(__file__).parent / "controller_main.py"
LONGEST = 300.0
"""Seconds after which a test is lost; nothing is judged by time."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_it(write_run(folder))
    return folder / "run"


def steps_done(folder: Path) -> int:
    return len((folder / "run" / "metrics.jsonl").read_text().splitlines())


def job_of(folder: Path) -> str:
    with Reader(folder / "run") as reader:
        handle = reader.attempts()[0].handle
    assert handle is not None
    return str(handle["job_id"])


@contextlib.contextmanager
def controller(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A controller in a process of its own; it does not outlive the test."""
    log = (path.parent / "controller.log").open("wb")
    with log, subprocess.Popen([sys.executable, CONTROLLER, path], stdout=log, stderr=log) as made:
        try:
            yield made
        finally:
            made.kill()


def test_two_pools_on_two_nodes_finish_through_a_failure_of_the_first(
    slurm: Path, tmp_path: Path, undisturbed: Path
) -> None:
    faults = [
        {"id": str(i), "step": 15, "at": "compute", "do": "kill", "rank": 1} for i in range(2)
    ]
    path = write_run(
        tmp_path,
        launcher="slurm",
        nodes=2,
        ranks=2,
        pools=["first", "second"],
        faults=faults,
        gates="restarts = { per_day = 1 }",
    )
    assert run_it(path) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert [a.pool for a in reader.attempts()] == ["first", "first", "second"]
        assert [f.gate for f in reader.fired()] == ["restarts"]
        assert all(a.handle and a.handle["job_id"].isdigit() for a in reader.attempts())


def test_a_killed_controller_is_replaced_and_finds_the_job(
    slurm: Path, tmp_path: Path, undisturbed: Path
) -> None:
    path = write_run(tmp_path, launcher="slurm", faults=HELD)
    with controller(path) as first:
        wait_for(lambda: held(tmp_path))
        first.kill()
    go(tmp_path)
    assert run_it(path) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert [a.cause for a in reader.attempts()] == [Cause.DONE], "the same job went on"
        assert len(reader.events("adopted")) == 1


def test_a_preempted_job_is_queued_again_and_finishes(
    slurm: Path, tmp_path: Path, undisturbed: Path
) -> None:
    path = write_run(tmp_path, launcher="slurm", nodes=2, ranks=2, faults=HELD)
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null",
              "--wrap=true"]  # fmt: skip
    with controller(path) as process:
        wait_for(lambda: held(tmp_path))
        subprocess.run(urgent, check=True, stdout=subprocess.DEVNULL)
        wait_for(lambda: asked_to_stop(tmp_path))
        go(tmp_path)
        assert process.wait(timeout=LONGEST) == 0
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert reader.attempts()[-1].cause is Cause.DONE
        assert reader.attempts()[0].cause is Cause.PREEMPTED or reader.events("requeued")


def test_a_cancelled_job_saves_and_is_submitted_again(
    slurm: Path, tmp_path: Path, undisturbed: Path
) -> None:
    path = write_run(tmp_path, launcher="slurm", faults=HELD)
    with controller(path) as process:
        wait_for(lambda: held(tmp_path))
        subprocess.run(["scancel", job_of(tmp_path)], check=True)
        wait_for(lambda: asked_to_stop(tmp_path))
        go(tmp_path)
        assert process.wait(timeout=LONGEST) == 0
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert len(reader.attempts()) == 2
        assert reader.attempts()[0].cause in (Cause.PREEMPTED, Cause.LOST, Cause.KILLED)


def test_a_job_near_its_time_limit_saves_and_queues_itself_again(
    slurm: Path, tmp_path: Path, undisturbed: Path
) -> None:
    path = write_run(tmp_path, launcher="slurm", faults=HELD)
    with controller(path) as process:
        wait_for(lambda: held(tmp_path))
        notice = ["scancel", "--batch", "--signal=USR1", job_of(tmp_path)]
        subprocess.run(notice, check=True)
        wait_for(lambda: asked_to_stop(tmp_path))
        go(tmp_path)
        assert process.wait(timeout=LONGEST) == 0
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert len(reader.attempts()) == 1, "the same job, queued again"
        assert "requeued" in [e.kind for e in reader.events()]


def test_a_dead_slurm_controller_is_waited_for(
    own_slurm: Path, tmp_path: Path, undisturbed: Path
) -> None:
    path = write_run(tmp_path, launcher="slurm", faults=HELD)
    with controller(path) as process:
        wait_for(lambda: held(tmp_path))
        os.kill(int((own_slurm / "slurmctld.pid").read_text()), signal.SIGKILL)
        go(tmp_path)
        wait_for(lambda: steps_done(tmp_path) >= 30)
        subprocess.run(["slurmctld"], check=True)
        assert process.wait(timeout=LONGEST) == 0
    assert_exact(tmp_path / "run", undisturbed)


def test_a_pool_is_measured_on_all_its_nodes(slurm: Path, tmp_path: Path) -> None:
    path = write_run(tmp_path, launcher="slurm", nodes=2, ranks=2, steps=5)
    text = path.read_text().replace("enabled = false", 'enabled = true\nseconds = "2s"')
    path.write_text(text)
    assert run_it(path, qualify=qualify_pool) is State.DONE
    with Reader(tmp_path / "run") as reader:
        (decision,) = [d for d in reader.decisions() if d.subject == "qualify first"]
    assert decision.choice == "passed"
    assert [rank["host"] for rank in decision.evidence["ranks"]] == ["n1", "n2"]


def test_a_folder_of_any_name_is_one_option(slurm: Path, tmp_path: Path, undisturbed: Path) -> None:
    place = tmp_path / "a folder, 50% 'odd' %j"
    assert run_it(write_run(place, launcher="slurm")) is State.DONE
    assert_exact(place / "run", undisturbed)
    assert (place / "run" / "attempts" / "0001" / "output.log").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [('["--hold"]', "JobHeldUser"), ('["--nodes=4"]', "first")],
)
def test_a_job_that_never_starts_moves_on_and_says_why(
    slurm: Path, tmp_path: Path, options: str, word: str
) -> None:
    path = write_run(
        tmp_path, launcher="slurm", steps=12, pools=["first", "second"],
        gates="progress = { times = 2 }",
        pool_extra={"first": '[pool.limits]\nqueue = "1 s"\n'},
    )  # fmt: skip
    path.write_text(path.read_text().replace("nodes = 1", f"nodes = 1\noptions = {options}", 1))
    said: list[str] = []
    assert run_it(path, say=said.append) is State.DONE
    with Reader(tmp_path / "run") as reader:
        *refused, last = reader.attempts()
    assert last.pool == "second"
    assert {a.cause for a in refused} <= {Cause.QUEUED, Cause.NOT_STARTED, Cause.LOST}
    told = [text for text in said if "waits in the queue" in text or "not started" in text]
    assert any(word in text for text in told), said


def in_allocation(path: Path, nodes: int) -> str:
    """Run to the end below salloc; what the controller said."""
    asked = ["salloc", f"--nodes={nodes}", "--ntasks=4", sys.executable, str(CONTROLLER), str(path)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=LONGEST)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_run_in_an_allocation_starts_steps_there_and_no_job(
    slurm: Path, tmp_path: Path, undisturbed: Path
) -> None:
    crash = {"id": "once", "step": 15, "at": "compute", "do": "kill", "rank": 1}
    path = write_run(tmp_path, launcher="slurm", nodes=2, ranks=2, faults=[crash])
    in_allocation(path, 2)
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        first, second = reader.attempts()
    assert (first.is_fault, second.cause) == (True, Cause.DONE)
    assert first.handle is not None
    assert "job_id" not in first.handle, "a process here, not a job"
    assert "--nodes=2" in (tmp_path / "run" / "attempts" / "0001" / "job.json").read_text()


def test_an_allocation_with_too_few_nodes_is_refused_with_what_would_do(
    slurm: Path, tmp_path: Path
) -> None:
    path = write_run(tmp_path, launcher="slurm", nodes=2, ranks=2, steps=8,
                     gates="progress = { times = 2 }")  # fmt: skip
    in_allocation(path, 1)
    with Reader(tmp_path / "run") as reader:
        assert not any(a.handle for a in reader.attempts())
        told = " ".join(e.message for e in reader.events())
    assert "has 1 nodes, pool first asks for 2: give nodes = 1" in told


def test_an_allocation_near_its_end_saves_and_stops(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is asked to save before the allocation ends; afterwards nothing starts in it."""
    held_one = ["sbatch", "--parsable", "--nodes=1", "--time=10", "--output=/dev/null",
                "--wrap=sleep 600"]  # fmt: skip
    number = subprocess.run(held_one, capture_output=True, text=True, check=True).stdout.strip()
    wait_for(lambda: allocation_runs(number))
    found = allocation_of(number)
    assert found.nodes == 1
    assert found.seconds_left is not None
    assert 500 < found.seconds_left <= 600
    notice = round(found.seconds_left) - 40
    path = write_run(tmp_path, launcher="slurm", faults=HELD, gates="progress = { times = 2 }")
    text = path.read_text().replace('notice = "1s"', f'notice = "{notice}s"\nallocation = {number}')
    path.write_text(text)
    with controller(path) as process:
        wait_for(lambda: held(tmp_path))
        wait_for(lambda: asked_to_stop(tmp_path))
        go(tmp_path)
        process.wait(timeout=LONGEST)
    with Reader(tmp_path / "run") as reader:
        first, *later = reader.attempts()
        told = " ".join(e.message for e in reader.events())
    assert first.cause is Cause.PREEMPTED
    assert all(not a.handle for a in later)
    assert f"allocation {number} ends in" in told
    subprocess.run(["scancel", number], check=True)
    with pytest.raises(LaunchError, match=number):
        wait_for(lambda: not allocation_of(number))


def allocation_runs(number: str) -> bool:
    try:
        return allocation_of(number).nodes > 0
    except LaunchError:
        return False


def test_where_steps_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert type(slurm_launcher(Slurm())) is SlurmLauncher
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_PARTITION", "main")
    here = slurm_launcher(Slurm())
    assert isinstance(here, AllocationLauncher)
    assert here.number == "17"
    assert type(slurm_launcher(Slurm(partition="other"))) is SlurmLauncher
    assert type(slurm_launcher(Slurm(allocation="new"))) is SlurmLauncher
    stated = slurm_launcher(Slurm(allocation="99"))
    assert isinstance(stated, AllocationLauncher)
    assert stated.number == "99"


def test_batch_script_has_every_option(tmp_path: Path) -> None:
    job = Job(
        name="krzem-x-0001",
        folder=tmp_path,
        run_dir=tmp_path,
        token=1,
        command=["true"],
        variables={"A": "two words"},
        slurm=Slurm(partition="p", account="a", qos="q", nodes=3, cpus=8, gpus="4",
                    notice_seconds=60, requeue=False, options=("--constraint=ib",)),
        time_seconds=7200,
        exclude=("bad1", "bad2"),
    )  # fmt: skip
    assert set(batch_options(job)) >= {
        "--nodes=3", "--partition=p", "--account=a", "--qos=q", "--cpus-per-task=8",
        "--gpus-per-node=4", "--signal=B:USR1@60", "--no-requeue", "--constraint=ib",
        "--time=120", "--exclude=bad1,bad2",
    }  # fmt: skip
    assert "export A='two words'" in batch_script(job)
