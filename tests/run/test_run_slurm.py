import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.run.run_helpers import assert_exact, run_it, write_run

from krzem.errors import DataError
from krzem.run.launch.job import Job
from krzem.run.launch.slurm import batch_options, batch_script
from krzem.run.ledger import Reader
from krzem.run.qualify import qualify_pool
from krzem.run.rows import Cause, State
from krzem.run.settings import Slurm

CONTROLLER = Path(__file__).parent / "controller_main.py"
SLOW = {"step_seconds": 0.05}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_it(write_run(folder))
    return folder / "run"


def wait_for(what: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def last_step(folder: Path) -> int:
    with contextlib.suppress(DataError), Reader(folder / "run") as reader:
        return max((a.last_step or 0 for a in reader.attempts()), default=-1)
    return -1


def controller(path: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, CONTROLLER, path], stdout=subprocess.DEVNULL)


def test_two_pools_on_two_nodes_finish_through_a_failure_of_the_first(
    slurm: Path, tmp_path: Path, undisturbed: Path
) -> None:
    faults = [
        {"id": str(i), "step": 15, "at": "compute", "do": "kill", "rank": 1} for i in range(9)
    ]
    path = write_run(
        tmp_path,
        launcher="slurm",
        nodes=2,
        ranks=2,
        pools=["first", "second"],
        faults=faults[:3],
        gates="restarts = { per_day = 2 }",
    )
    assert run_it(path) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert [a.pool for a in reader.attempts()] == ["first"] * 3 + ["second"]
        assert [f.gate for f in reader.fired()] == ["restarts"]
        assert all(a.handle and a.handle["job_id"].isdigit() for a in reader.attempts())


def test_a_killed_controller_is_replaced_and_finds_the_job(
    slurm: Path, tmp_path: Path, undisturbed: Path
) -> None:
    path = write_run(tmp_path, launcher="slurm", trainer=SLOW)
    with controller(path) as first:
        wait_for(lambda: last_step(tmp_path) >= 5)
        first.kill()
    assert run_it(path) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert [a.cause for a in reader.attempts()] == [Cause.DONE], "the same job went on"
        assert len(reader.events("adopted")) == 1


def test_a_preempted_job_is_queued_again_and_finishes(
    slurm: Path, tmp_path: Path, undisturbed: Path
) -> None:
    path = write_run(tmp_path, launcher="slurm", trainer=SLOW, nodes=2, ranks=2)
    urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null",
              "--wrap=sleep 1"]  # fmt: skip
    with controller(path) as process:
        wait_for(lambda: last_step(tmp_path) >= 5)
        subprocess.run(urgent, check=True, stdout=subprocess.DEVNULL)
        assert process.wait(timeout=90) == 0
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert reader.attempts()[-1].cause is Cause.DONE
        assert reader.attempts()[0].cause is Cause.PREEMPTED or reader.events("requeued")


def test_a_cancelled_job_saves_and_is_submitted_again(
    slurm: Path, tmp_path: Path, undisturbed: Path
) -> None:
    path = write_run(tmp_path, launcher="slurm", trainer=SLOW)
    with controller(path) as process:
        wait_for(lambda: last_step(tmp_path) >= 5)
        with Reader(tmp_path / "run") as reader:
            handle = reader.attempts()[0].handle
        assert handle is not None
        subprocess.run(["scancel", handle["job_id"]], check=True)
        assert process.wait(timeout=60) == 0
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert len(reader.attempts()) == 2
        assert reader.attempts()[0].cause in (Cause.PREEMPTED, Cause.LOST, Cause.KILLED)


def test_a_job_near_its_time_limit_saves_and_queues_itself_again(
    slurm: Path, tmp_path: Path, undisturbed: Path
) -> None:
    path = write_run(tmp_path, launcher="slurm", trainer=SLOW)
    with controller(path) as process:
        wait_for(lambda: last_step(tmp_path) >= 5)
        with Reader(tmp_path / "run") as reader:
            handle = reader.attempts()[0].handle
        assert handle is not None
        subprocess.run(["scancel", "--batch", "--signal=USR1", handle["job_id"]], check=True)
        assert process.wait(timeout=60) == 0
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert len(reader.attempts()) == 1, "the same job, queued again"
        assert "requeued" in [e.kind for e in reader.events()]


def test_a_dead_slurm_controller_is_waited_for(
    slurm: Path, tmp_path: Path, undisturbed: Path
) -> None:
    path = write_run(tmp_path, launcher="slurm", trainer=SLOW)
    with controller(path) as process:
        wait_for(lambda: last_step(tmp_path) >= 5)
        pid = int((slurm / "slurmctld.pid").read_text())
        subprocess.run(["kill", "-KILL", str(pid)], check=True)
        wait_for(lambda: last_step(tmp_path) >= 30)
        subprocess.run(["slurmctld"], check=True)
        assert process.wait(timeout=90) == 0
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
