"""Two sites with a folder each and nothing in common but a login and a copying command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tests.run.run_helpers import assert_exact, final_state, run_it, write_run

from krzem.errors import CheckpointError, LaunchError, RunError
from krzem.run.command.common import ask_to_stop
from krzem.run.courier import Far
from krzem.run.far import carry, travel
from krzem.run.launch.job import SilentError
from krzem.run.ledger import Reader
from krzem.run.processes import held
from krzem.run.rows import Cause, State
from krzem.run.run_file import read_run
from krzem.run.site import ARRIVING, put_in_place
from krzem.run.status import read_status

COPY = """#!/bin/sh -e
# Copies a folder, and breaks off the first time, in the middle of it.
mkdir -p "$2"
if [ -e "{broken}" ]; then cp -r "$1/." "$2/"; exit; fi
touch "{broken}"
for file in "$1"/*; do
    [ -f "$file" ] && head -c 100 "$file" > "$2/$(basename "$file")"
done
echo "connection lost" >&2
exit 12
"""
LOGIN = """#!/bin/sh
# Stands for ssh: nothing of the caller's environment but the path of Python's modules goes along.
[ -e "{down}" ] && {{ echo "connection refused" >&2; exit 255; }}
exec env -i PATH="$PATH" PYTHONPATH="$PYTHONPATH" HOME="$HOME" "$@"
"""


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


class Sites:
    """Site A with a pool of its own and site B as its second pool."""

    def __init__(self, folder: Path, *, steps: int = 40, far: dict[str, Any] | None = None) -> None:
        self.a, self.b, self.down = folder / "a", folder / "b", folder / "down"
        self.there = write_run(self.b, steps=steps, pools=["far"], **(far or {}))
        login = script(folder / "login", LOGIN.format(down=self.down))
        copy = script(folder / "copy", COPY.format(broken=folder / "broken-off"))
        self.site = f"""
[pool.site]
login = ["{login}"]
python = "{sys.executable}"
run_file = "{self.there}"
send = ["{copy}", "{{source}}", "{{target}}"]
fetch = ["{copy}", "{{source}}", "{{target}}"]
look_every = "300 ms"
"""

    def here(self, *, steps: int = 40, gates: str = "", faults: Any = (), extra: str = "") -> Path:
        path = write_run(self.a, steps=steps, pools=["near", "b"], faults=faults, gates=gates,
                         extra=extra, pool_extra={"b": self.site})  # fmt: skip
        text = path.read_text()
        at = text.index('name = "b"')
        path.write_text(text[:at] + text[at:].replace('launcher = "local"', 'launcher = "site"', 1))
        return path


@pytest.fixture
def nan_here() -> list[dict[str, Any]]:
    """The first pool gives NaN twice after step 10, and is left."""
    return [{"id": i, "step": 13, "at": "compute", "do": "nan"} for i in "ab"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, which stays where it is."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_it(write_run(folder))
    return folder / "run"


def test_a_run_goes_on_at_another_site_and_ends_as_if_it_had_not_moved(
    tmp_path: Path, nan_here: list[dict[str, Any]], undisturbed: Path
) -> None:
    sites = Sites(tmp_path)
    path = sites.here(faults=nan_here)
    assert run_it(path) is State.DONE
    assert_exact(sites.a / "run", undisturbed)
    status, there = read_status(sites.a / "run"), read_status(sites.b / "run")
    assert {p.name: p.steps for p in status.pools} == {"near": 10, "b": 30}
    assert there.state == "done"
    assert there.samples_exact
    assert not held(sites.b / "run")
    log = (sites.a / "run" / "attempts" / "0003" / "output.log").read_text()
    assert "connection lost" in log, "the copy broke off and was begun again"
    assert "travels to b" in log
    checks = [w for w in status.witness if w["reason"].startswith("at the site of b")]
    assert [w["choice"] for w in checks] == ["not checked"], "the site asked, and told"


def test_a_stop_saves_there_and_brings_the_checkpoint_back(
    tmp_path: Path, nan_here: list[dict[str, Any]], undisturbed: Path
) -> None:
    waits = {"id": "held", "step": 20, "at": "compute", "do": "wait"}
    sites = Sites(tmp_path, far={"faults": [waits]})
    path = sites.here(faults=nan_here)

    def stop_at(seen: Any) -> None:
        if seen.step == 19:
            ask_to_stop(sites.a / "run", "save")
        if (sites.b / "run" / "attempts" / "0001" / "stop").exists():
            (sites.b / "run" / "go").touch()

    assert run_it(path, on_look=stop_at) is State.STOPPED
    step, _ = final_state(sites.a / "run")
    assert step == 20, "what was trained there is here"
    assert read_status(sites.b / "run").state == "stopped"
    assert run_it(path) is State.DONE
    assert_exact(sites.a / "run", undisturbed)


def test_a_site_that_gives_up_is_left_for_the_next_pool(
    tmp_path: Path, nan_here: list[dict[str, Any]]
) -> None:
    dies = [{"id": str(n), "step": 12, "at": "compute", "do": "kill"} for n in range(9)]
    sites = Sites(tmp_path, far={"faults": dies, "gates": "progress = { times = 2 }"})
    path = sites.here(faults=nan_here)
    assert run_it(path) is State.FAILED
    with Reader(sites.a / "run") as reader:
        last = reader.attempts()[-1]
    assert last.cause is Cause.SITE
    assert "ended without a new checkpoint" in (last.detail or "")
    assert "b was given up" in (read_status(sites.a / "run").reason or "")


def test_what_arrives_altered_is_not_taken(tmp_path: Path) -> None:
    run_it(write_run(tmp_path))
    run = tmp_path / "run"
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    (run / ARRIVING).mkdir()
    place = newest.rename(run / ARRIVING / newest.name)
    data = next(p for p in sorted(place.iterdir()) if p.name != "manifest.json")
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="do not use"):
        put_in_place(run, newest.name)
    assert place.exists()
    assert not newest.exists()


def test_an_answer_that_is_none_is_silence_and_another_run_is_refused(tmp_path: Path) -> None:
    sites = Sites(tmp_path)
    far = Far(read_run(sites.here()).pool("b"))
    sites.down.touch()
    with pytest.raises(SilentError, match="connection refused"):
        far.ask("look", offset=0)
    sites.down.unlink()
    assert far.ask("look", offset=0)["state"] == "new"
    with pytest.raises(LaunchError, match="another run"):
        far.ask("offer", name=None, tokens=1, sequence=16, batch=8)
    with pytest.raises(LaunchError, match="no name of a checkpoint"):
        far.ask("receive", name="../../x", **{"from": "a"})


def test_copies_are_tried_again_and_then_given_up(tmp_path: Path) -> None:
    site = read_run(Sites(tmp_path).here()).pool("b").site
    tries = tmp_path / "tries"
    fails = ["sh", "-c", f"echo x >> {tries}; echo no route >&2; exit 3"]
    with pytest.raises(LaunchError, match="no route"):
        carry(site, fails, lambda: None)
    assert len(tries.read_text().split()) == 5


def test_the_time_of_the_way_is_planned(tmp_path: Path) -> None:
    sites = Sites(tmp_path)
    settings = read_run(sites.here())
    seconds, told = travel(settings, settings.pool("b"))
    assert seconds is None
    assert "give site.bytes_per_s" in told
    stated = (
        sites.here()
        .read_text()
        .replace('look_every = "300 ms"', 'look_every = "300 ms"\nbytes_per_s = "1 GB/s"')
    )
    (sites.a / "run.toml").write_text(stated)
    settings = read_run(sites.a / "run.toml")
    seconds, told = travel(settings, settings.pool("b"))
    assert seconds == pytest.approx(6.738e9 * 12 / 1e9, rel=0.01), "weights and moments, 1 GB/s"
    assert "12 bytes a parameter" in told


def test_a_site_without_its_run_file_is_a_fault_of_the_run_file(tmp_path: Path) -> None:
    sites = Sites(tmp_path)
    path = sites.here()
    path.write_text(path.read_text().replace("run_file", "# run_file"))
    with pytest.raises(RunError, match="run_file, the run file there"):
        read_run(path)
