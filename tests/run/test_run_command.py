import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
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

from krzem.errors import RunError
from krzem.run.command import (
    logs_command,
    probe_command,
    run_command,
    status_command,
    stop_command,
    write_report,
)
from krzem.run.command.probing import probe_lines
from krzem.run.ledger import Reader
from krzem.run.profile import read_profile
from krzem.run.rows import Cause
from krzem.run.status import read_status
from krzem.run.view import count, duration, panel, progress_line, sparkline


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two pools, with a fault on each."""
    folder = tmp_path_factory.mktemp("moved")
    faults = [
        {"id": "a", "step": 13, "at": "compute", "do": "nan"},
        {"id": "b", "step": 15, "at": "compute", "do": "nan"},
        {"id": "c", "step": 27, "at": "compute", "do": "kill"},
    ]
    run_it(write_run(folder, pools=["bad", "good"], faults=faults))
    return folder / "run"


def test_the_story_adds_up(moved: Path) -> None:
    status = read_status(moved)
    assert (status.state, status.step, status.share) == ("done", 40, 1.0)
    assert {p.name: p.steps for p in status.pools} == {"bad": 10, "good": 30}
    assert sum(p.tokens for p in status.pools) == status.goal_tokens
    assert [i.cause for i in status.interruptions] == ["nonfinite", "nonfinite", "killed"]
    assert [i.next_pool for i in status.interruptions] == ["bad", "good", "good"]
    assert sum(i.lost_steps for i in status.interruptions) == 3 + 5 + 6
    assert all((i.recovery_seconds or 0) > 0 for i in status.interruptions)
    assert status.samples_exact
    assert status.goodput is not None
    assert 0 < status.goodput < 1
    assert [w["choice"] for w in status.witness][-1:] == ["not checked"]
    assert status.proof == "1 move not proved"


def test_the_report_is_one_page_that_says_what_happened(moved: Path) -> None:
    write_report(moved)
    text = (moved / "report.html").read_text()
    for expected in ("Every sample was trained exactly once", "nonfinite", "not checked", "<svg",
                     "killed", "first in order of preference"):  # fmt: skip
        assert expected in text
    assert 'src="http' not in text
    assert 'href="http' not in text


def test_status_logs_and_events(moved: Path) -> None:
    runner = CliRunner()
    told = json.loads(runner.invoke(status_command, [str(moved), "--json"]).output)
    assert told["tokens"] == told["goal_tokens"]
    shown = runner.invoke(status_command, [str(moved.parent / "run.toml")]).output
    assert "each trained once" in shown
    assert "pool     bad" in shown
    events = runner.invoke(logs_command, [str(moved), "--events", "--lines", "200"]).output
    assert "gate nonfinite [bad]" in events
    log = runner.invoke(logs_command, [str(moved), "--attempt", "2", "--json"])
    assert json.loads(log.output)["attempt"] == 2
    missing = runner.invoke(logs_command, [str(moved), "--attempt", "99"])
    assert isinstance(missing.exception, RunError)
    assert "there are 1, 2, 3, 4" in str(missing.exception)


def test_every_rank_is_told_and_the_slow_one_marked(tmp_path: Path) -> None:
    fault = {"id": "a", "step": 10, "at": "compute", "do": "slow", "rank": 1, "for": 20}
    run_it(write_run(tmp_path, steps=30, ranks=2, faults=[fault], gates="straggler = false"))
    runner, folder = CliRunner(), str(tmp_path / "run")
    told = json.loads(runner.invoke(status_command, [folder, "--ranks", "--json"]).output)
    assert [(r["rank"], r["step"]) for r in told["ranks"]] == [(0, 30), (1, 30)]
    assert told["ranks"][1]["against_others"] > 1.5 > told["ranks"][0]["against_others"]
    shown = runner.invoke(status_command, [folder, "--ranks"]).output.splitlines()
    marked = [line.split()[0] for line in shown if line.endswith("slow")]
    assert marked == ["1"]


def test_all_runs_below_a_folder_are_a_list_and_a_page(moved: Path, tmp_path: Path) -> None:
    team = tmp_path / "team"
    (team / "a").mkdir(parents=True)
    shutil.copytree(moved, team / "a" / "moved")
    (team / "broken").mkdir()
    (team / "broken" / "ledger.sqlite").write_bytes(b"no database <b>at all</b>" * 99)
    write_report(team / "a" / "moved")
    page, runner = tmp_path / "runs.html", CliRunner()
    told = runner.invoke(status_command, [str(team), "--html", str(page), "--json"])
    assert told.exit_code == 0, told.output
    rows = {Path(row["folder"]).name: row for row in json.loads(told.output)["runs"]}
    assert rows["moved"]["state"] == "done"
    assert rows["broken"]["state"] == "unreadable"
    text = page.read_text()
    assert 'href="team/a/moved/report.html"' in text
    assert "2 runs" in text
    assert "<b>at all" not in text
    shown = runner.invoke(status_command, [str(team)]).output
    assert "done, 100% of" in shown


def test_stop_leaves_a_run_that_is_done_as_it_is(moved: Path) -> None:
    result = CliRunner().invoke(stop_command, [str(moved)])
    assert result.exit_code == 0, result.output
    assert "already done" in result.output
    with Reader(moved) as reader:
        assert reader.run().stop_requested is None
    assert read_status(moved).state == "done"


def test_a_folder_that_holds_no_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(status_command, [str(tmp_path)])
    assert isinstance(result.exception, RunError)
    assert "begin it with `krzem run`" in str(result.exception)


def test_dry_run_says_what_would_be_done(tmp_path: Path) -> None:
    path = write_run(tmp_path, pools=["first"])
    result = CliRunner().invoke(run_command, [str(path), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "would begin on first" in result.output
    assert not (tmp_path / "run" / "ledger.sqlite").exists()
    plans = json.loads(CliRunner().invoke(run_command, [str(path), "--dry-run", "--json"]).output)
    assert plans[0]["tokens_per_s"]["mid"] == 1000


_RUN = [
    sys.executable,
    "-c",
    "import sys; from krzem.run.command import run_command; run_command(sys.argv[1:])",
]


@contextlib.contextmanager
def begun(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A controller whose trainer waits in a step."""
    with subprocess.Popen([*_RUN, str(path), "--quiet"], stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: held(path.parent))
            yield process
        finally:
            process.kill()


def test_ctrl_c_saves_and_stops_and_the_same_command_goes_on(tmp_path: Path) -> None:
    reference = write_run(tmp_path / "reference")
    run_it(reference)
    path = write_run(tmp_path, faults=HELD)
    with begun(path) as process:
        process.send_signal(signal.SIGINT)
        wait_for(lambda: asked_to_stop(tmp_path))
        go(tmp_path)
        assert process.wait(timeout=300) == 0
    with Reader(tmp_path / "run") as reader:
        assert reader.attempts()[0].cause is Cause.STOPPED
    assert subprocess.run([*_RUN, str(path), "--quiet"], check=False,
                          stdout=subprocess.DEVNULL).returncode == 0  # fmt: skip
    assert_exact(tmp_path / "run", tmp_path / "reference" / "run")
    assert (tmp_path / "run" / "report.html").exists()


def test_stop_ends_a_trainer_whose_controller_is_dead(tmp_path: Path) -> None:
    path = write_run(tmp_path, steps=100_000, faults=HELD)
    with begun(path) as process:
        process.kill()
    go(tmp_path)
    refused = CliRunner().invoke(stop_command, [str(tmp_path / "run")])
    assert "give the run file" in str(refused.exception)
    result = CliRunner().invoke(stop_command, [str(path), "--json"])
    assert json.loads(result.output)["state"] == "stopped"
    with Reader(tmp_path / "run") as reader:
        (attempt,) = reader.attempts()
        assert attempt.cause is Cause.STOPPED


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_probe_writes_a_profile_that_a_plan_can_read(tmp_path: Path) -> None:
    out = tmp_path / "profile.toml"
    arguments = ["--seconds", "1", "--device", "numpy", "--processes", "1", "--out", str(out)]
    result = CliRunner().invoke(probe_command, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told["passed"]
    shown = dict(probe_lines(told["ranks"][0]))
    assert "all with the same bits" in shown["soak"]
    assert shown["products"].startswith("fp32 ")
    assert "operators as float64 gives them" in shown["numerics"]
    assert "links" not in shown, "one process has nobody to talk to"
    read = read_profile(out)
    assert read.measured["tf32_flops"] == pytest.approx(told["measured"]["tf32_flops"], rel=1e-4)
    assert read.measured["memory_bytes_per_s"] > 1e8
    assert "# Verdict: 1 device passed" in out.read_text()


def test_the_live_view_shows_every_line_of_a_status(moved: Path) -> None:
    status = read_status(moved)
    console = Console(width=100, file=io.StringIO())
    console.print(panel(status, ["something happened"]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for what in ("state", "tokens", "speed", "loss", "goodput", "samples", "something happened"):
        assert what in shown
    assert progress_line(status).startswith("good: step 40, 100% of ")


def test_small_formats() -> None:
    assert duration(3700) == "1 h 1 min"
    assert duration(12.3) == "12.3 s"
    assert duration(None) == "unknown"
    assert count(14.8e12) == "14.8 T"
    assert sparkline([1, 2, 3, float("nan")]) == "▁▅█ "
