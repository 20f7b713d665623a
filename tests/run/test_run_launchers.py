"""Launchers made of commands: against stand-ins for every scheduler, and on a real Grid Engine."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.run.run_helpers import (
    HELD,
    assert_exact,
    go,
    held,
    run_it,
    stopping,
    wait_for,
    write_run,
)

from krzem.errors import LaunchError, RunError
from krzem.run.launch.commands import CommandLauncher, batch_script, commands_of, ready
from krzem.run.launch.job import HOSTS, Job, Phase, SilentError
from krzem.run.launch.known import GROUP, known
from krzem.run.launch.words import shell_words
from krzem.run.ledger import Reader
from krzem.run.pool_settings import Pool, Scheduler
from krzem.run.rows import Cause, State
from krzem.run.run_file import read_run

FAKE = """#!{python}
import json, os, sys
from pathlib import Path
place, name = Path({place!r}), Path(sys.argv[0]).name
with (place / "calls").open("a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + chr(10))
key = f"{{name}}-{{sys.argv[1]}}" if len(sys.argv) > 1 else name
answer = place / (key if (place / key).exists() else name)
told = json.loads(answer.read_text()) if answer.exists() else {{}}
sys.stdout.write(told.get("out", ""))
sys.stderr.write(told.get("err", ""))
sys.exit(told.get("rc", 0))
"""
NAME = "krzem-00000000-0001"
ID = {"grid-engine": "12", "pbs": "12.aurora-pbs", "lsf": "12", "flux": "ƒ2mCk", "kubernetes": NAME,
      "skypilot": "7"}  # fmt: skip
SUBMITTED = {
    "grid-engine": ("qsub", "12\n"),
    "pbs": ("qsub", "12.aurora-pbs\n"),
    "lsf": ("bsub", "Job <12> is submitted to queue <train>.\n"),
    "flux": ("flux-batch", "ƒ2mCk\n"),
    "kubernetes": ("kubectl-create", f"job.batch/{NAME}\n"),
    "skypilot": ("sky-jobs", "Job ID: 7\nTo stream logs: sky jobs logs 7\n"),
}
"""Command, and what it says to a submission."""
SGE = "job-ID  prior   name       user         state submit/start at     queue\n{line}"
SGE_LINE = (
    "     12 0.55500 krzem-0000 root         {state}    11/30/2026 12:00:00\n"
    "       Full jobname:     " + NAME + "\n       Master Queue: main.q@n1\n"
)
SEEN = {
    "grid-engine": ("qstat", lambda state: SGE.format(line=SGE_LINE.format(state=state)),
                    {"qw": Phase.PENDING, "r": Phase.RUNNING, "Eqw": Phase.GONE}),
    "pbs": ("qstat", lambda state: f"Job Id: 12.aurora-pbs\n    Job_Name = {NAME}\n"
            f"    job_state = {state}\n    comment = Not Running: no nodes\n",
            {"Q": Phase.PENDING, "H": Phase.PENDING, "R": Phase.RUNNING, "F": Phase.GONE}),
    "lsf": ("bjobs", lambda state: f"{state}|New job is waiting\n",
            {"PEND": Phase.PENDING, "RUN": Phase.RUNNING, "EXIT": Phase.GONE}),
    "flux": ("flux-jobs", lambda state: f"{state} \n",
             {"SCHED": Phase.PENDING, "RUN": Phase.RUNNING, "INACTIVE": Phase.GONE}),
    "kubernetes": ("kubectl-get", lambda state: f"{state}|Suspended by Kueue\n",
                   {"||||true": Phase.PENDING, "1|0|||false": Phase.PENDING,
                    "1|1|||": Phase.RUNNING, "|||1|": Phase.GONE}),
    "skypilot": ("sky-jobs", lambda state: f"ID  TASK  NAME  RESOURCES  STATUS\n7   -     {NAME}  "
                 f"1x[H100:8]  1h ago  10m  5m  0  {state}\n",
                 {"PENDING": Phase.PENDING, "RUNNING": Phase.RUNNING, "FAILED": Phase.GONE,
                  "SUCCEEDED": Phase.GONE}),
}  # fmt: skip
TOOLS = ("qsub", "qstat", "qdel", "bsub", "bjobs", "bkill", "flux", "kubectl", "sky")


class Stand:
    """Stand-ins for the schedulers' commands."""

    def __init__(self, place: Path) -> None:
        self.place = place
        for tool in TOOLS:
            (place / tool).write_text(FAKE.format(python=sys.executable, place=str(place / "said")))
            (place / tool).chmod(0o755)
        (place / "said").mkdir()

    def say(self, command: str, out: str = "", err: str = "", rc: int = 0) -> None:
        told = {"out": out, "err": err, "rc": rc}
        (self.place / "said" / command).write_text(json.dumps(told))

    def calls(self) -> list[list[str]]:
        lines = (self.place / "said" / "calls").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    return Stand(place)


def job_in(folder: Path, nodes: int = 2) -> Job:
    return Job(
        name=NAME, folder=folder, run_dir=folder.parent, token=3, command=["true"],
        variables={"A": "two words"}, time_seconds=7260, launcher="x", pool="p",
        scheduler=Scheduler(nodes=nodes, queue="train q", account="it's mine", gpus="8", cpus=64,
                            options=("-x", "a b"), image="registry/image", volume="claim"),
    )  # fmt: skip


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return job_in(tmp_path / "a folder, 100% 'odd'" / "job")


@pytest.mark.parametrize("name", sorted(ID))
def test_a_job_is_submitted_watched_and_stopped(name: str, stand: Stand, job: Job) -> None:
    launcher = CommandLauncher(name, ready()[name])
    command, answer = SUBMITTED[name]
    stand.say(command, answer)
    handle = launcher.start(job)
    assert handle == {"job_id": ID[name]}
    (submitted,) = stand.calls()
    assert not [word for word in submitted if "{" in word], "every placeholder is filled in"
    file = ready()[name].file
    if file:
        written = Path(next(w for w in submitted if w.endswith(".submitted"))).read_text()
        json.loads(written)
        assert str(job.folder.parent) in json.dumps(json.loads(written), ensure_ascii=False)
    else:
        assert str(job.folder / "batch.sh") in submitted, "a path with spaces is one word"
        assert {"train q", "it's mine"} <= {w.rpartition("=")[2] for w in submitted}
        assert submitted[-3:] != ["-x", "a", "b"]
        assert "a b" in submitted
    command, shown, states = SEEN[name]
    for state, phase in states.items():
        stand.say(command, shown(state))
        look = launcher.look(job, handle)
        assert look.phase is phase, (state, look)
        if phase is not Phase.RUNNING:
            assert look.detail, "state and reason are told"


@pytest.mark.parametrize("name", sorted(ID))
def test_an_exit_code_in_the_folder_is_asked_first(name: str, stand: Stand, job: Job) -> None:
    job.write()
    (job.folder / "exit.json").write_text('{"code": 75, "detail": "preempted"}')
    look = CommandLauncher(name, ready()[name]).look(job, {"job_id": ID[name]})
    assert (look.phase, look.exit_code) == (Phase.ENDED, 75)
    assert not (stand.place / "said" / "calls").exists()


@pytest.mark.parametrize("name", sorted(ID))
def test_refusals_and_silence_are_told_apart(name: str, stand: Stand, job: Job) -> None:
    launcher = CommandLauncher(name, ready()[name])
    command = SUBMITTED[name][0]
    stand.say(command, err="error: queue is unknown\x1b[2J", rc=1)
    with pytest.raises(LaunchError, match="was refused: error: queue is unknown") as refused:
        launcher.start(job)
    assert "\x1b" not in str(refused.value)
    stand.say(command, err="error: Connection refused by server", rc=1)
    with pytest.raises(SilentError, match="does not answer"):
        launcher.start(job)
    stand.say(command, out="\n")
    with pytest.raises(LaunchError, match="named no job"):
        launcher.start(job)
    stand.say(SEEN[name][0], err="cannot connect to server", rc=255)
    assert launcher.look(job, {"job_id": ID[name]}).phase is Phase.UNKNOWN
    stand.say(SEEN[name][0])
    assert launcher.look(job, {"job_id": ID[name]}).phase is Phase.GONE


LISTED = {
    "grid-engine": SGE.format(line=SGE_LINE.format(state="r")),
    "pbs": f"Job Id: 12.aurora-pbs\n    Job_Name = {NAME}\n    job_state = R\n",
    "lsf": f"12|{NAME}\n",
    "flux": f"ƒ2mCk {NAME}\n",
    "kubernetes": f"{NAME}   {NAME}\n",
    "skypilot": f"7   -     {NAME}  1x[H100:8]  RUNNING\n",
}


@pytest.mark.parametrize("name", sorted(ID))
def test_every_job_of_a_run_is_found_and_stopped(
    name: str, stand: Stand, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = CommandLauncher(name, ready()[name])
    find = shlex.split(ready()[name].find)
    command = (
        f"{find[0]}-{find[1]}" if find[1:] and find[0] in ("flux", "kubectl", "sky") else find[0]
    )
    other = LISTED[name].replace(NAME, "krzem-11111111-0001").replace("12", "13")
    stand.say(command, LISTED[name] + other)
    assert launcher.find(job) == {"job_id": ID[name]}
    assert launcher.find(job_in(job.folder.parent / "other")) is not None
    monkeypatch.setattr("time.sleep", lambda seconds: stand.say(command, ""))
    launcher.end_run(job.run_dir, "krzem-00000000-")
    stops = [c for c in stand.calls() if ID[name] in c]
    assert len(stops) == 1, "the run's own job, and no other"


def test_the_batch_script_spreads_and_names_the_head(job: Job) -> None:
    launcher = CommandLauncher("pbs", ready()["pbs"])
    job.write(spread=["mpiexec"])
    script = batch_script(job, launcher.commands)
    assert f"export A={shlex.quote('two words')}" in script
    assert 'sort -u "$PBS_NODEFILE"' in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    (job.folder / HOSTS).write_text("n1\nn2\n")
    inner = (
        (job.folder / "job.sh").read_text().replace("exec true", 'echo "$KRZEM_HEAD $KRZEM_NODES"')
    )
    told = subprocess.run(["bash"], input=inner, text=True, check=True, capture_output=True)
    assert told.stdout == "n1 2\n"
    pool = Pool(name="p", accelerator="cpu", count=16, launcher="pbs", scheduler=Scheduler(nodes=2))
    words = " ".join(shell_words(["{torchrun}", "-m", "x"], pool, {"token": 5}))
    assert '--nnodes="$KRZEM_NODES" --nproc-per-node=8' in words
    assert '--rdzv-endpoint="$KRZEM_HEAD:' in words


def test_commands_of_the_run_files_own() -> None:
    own = {
        "submit": "put {script}",
        "find": "all",
        "look": "see {job}",
        "stop": "end {job}",
        "logs": "l",
    }
    assert commands_of(own).submit == "put {script}"
    assert commands_of({"submit": "qsub2 {script}"}, ready()["pbs"]).stop == ready()["pbs"].stop
    with pytest.raises(RunError, match=r"commands\.look is missing"):
        commands_of({k: v for k, v in own.items() if k != "look"})
    with pytest.raises(RunError, match=r"commands\.sumbit is unknown"):
        commands_of({"sumbit": "x"}, ready()["pbs"])
    assert all(c.tested and c.source for c in ready().values()), "how far each was tested is said"


PLUG_IN = """
from krzem.run.launch.local import LocalLauncher
class Mine(LocalLauncher):
    name = "house"
def make(pool):
    return Mine()
"""


def test_another_package_brings_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "house_launcher.py").write_text(PLUG_IN)
    info = tmp_path / "house_launcher-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: house-launcher\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nhouse = house_launcher:make\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "house" in known()
    path = write_run(tmp_path / "run", steps=12, launcher="house")
    assert run_it(path) is State.DONE
    with Reader(tmp_path / "run" / "run") as reader:
        assert [a.launcher for a in reader.attempts()] == ["house"]


def test_tables_of_another_launcher_are_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, pool_extra={"first": '[pool.scheduler]\nqueue = "q"\n'})
    with pytest.raises(RunError, match=r"\[pool\.scheduler\] is not for launcher = 'local'"):
        read_run(path)


# A real Grid Engine --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_it(write_run(folder))
    return folder / "run"


@pytest.mark.usefixtures("grid_engine")
def test_grid_engine_runs_in_a_folder_with_a_space(tmp_path: Path, undisturbed: Path) -> None:
    path = write_run(tmp_path / "a b", launcher="grid-engine", ranks=2)
    assert run_it(path) is State.DONE
    assert_exact(tmp_path / "a b" / "run", undisturbed)


@pytest.mark.usefixtures("grid_engine")
def test_a_job_that_somebody_deletes_saves_and_is_submitted_again(
    tmp_path: Path, undisturbed: Path
) -> None:
    path = write_run(tmp_path, launcher="grid-engine", faults=HELD)

    def delete() -> None:
        with Reader(tmp_path / "run") as reader:
            handle = reader.attempts()[0].handle
        assert handle is not None
        subprocess.run(["qdel", str(handle["job_id"])], check=True, stdout=subprocess.DEVNULL)

    assert run_it(path, on_look=stopping(tmp_path, delete)) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert len(reader.attempts()) == 2


@pytest.mark.usefixtures("grid_engine")
def test_a_job_that_never_starts_moves_on_with_its_reason(tmp_path: Path) -> None:
    path = write_run(
        tmp_path, launcher="grid-engine", steps=12, pools=["full", "free"],
        pool_extra={"full": '[pool.limits]\nqueue = "1 s"\n'},
    )  # fmt: skip
    text = path.read_text()
    table = '\n[pool.scheduler]\noptions = ["-h"]\n'
    path.write_text(text.replace('queue = "1 s"\n', f'queue = "1 s"\n{table}'))
    said: list[str] = []
    assert run_it(path, say=said.append) is State.DONE
    with Reader(tmp_path / "run") as reader:
        assert [a.pool for a in reader.attempts()] == ["full", "free"]
        assert reader.attempts()[0].cause is Cause.QUEUED
    assert any("waits in the queue: hqw" in text for text in said)


@pytest.mark.usefixtures("grid_engine")
def test_after_a_lost_ledger_no_job_runs_beside_another(tmp_path: Path, undisturbed: Path) -> None:
    path = write_run(tmp_path, launcher="grid-engine", faults=HELD)

    def lose() -> None:
        for name in tmp_path.glob("run/ledger.sqlite*"):
            name.unlink()

    process = subprocess.Popen([sys.executable, Path(__file__).parent / "controller_main.py", path],
                               stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        wait_for(lambda: held(tmp_path))
    finally:
        process.kill()
        process.wait()
    lose()
    go(tmp_path)
    assert run_it(path) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert [a.cause for a in reader.attempts()] == [Cause.UNKNOWN, Cause.DONE]
