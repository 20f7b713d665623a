"""What operators ask of a run, and who is told of it."""

import json
import sys
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.run.run_helpers import HELD, assert_exact, go, held, run_it, stopping, write_run

from krzem.cli.main import VERBS
from krzem.errors import RunError
from krzem.run.command import operating
from krzem.run.command.running import exit_code
from krzem.run.gate_settings import Budget
from krzem.run.ledger import Ledger, Reader
from krzem.run.limits import judge, over_budget, spent
from krzem.run.notify import Notifier, call, families
from krzem.run.rows import Cause, RequestKind, State
from krzem.run.run_file import read_run
from krzem.run.services import Qualified
from krzem.run.status import read_status
from krzem.run.view import last_word


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_it(write_run(folder))
    return folder / "run"


def asking(folder: Path, kind: RequestKind, pool: str | None = None):  # type: ignore[no-untyped-def]
    def ask() -> None:
        ledger = Ledger(folder / "run")
        ledger.ask(kind, pool)
        ledger.close()

    return ask


def requests(folder: Path) -> list[tuple[str, str]]:
    with Reader(folder / "run") as reader:
        return [(str(r.kind), r.state) for r in reader.requests()]


def test_a_run_moves_where_an_operator_says(tmp_path: Path, undisturbed: Path) -> None:
    path = write_run(tmp_path, pools=["a", "b", "c"], faults=HELD)
    look = stopping(tmp_path, asking(tmp_path, RequestKind.MOVE, "c"))
    assert run_it(path, on_look=look) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        first, second = reader.attempts()
        assert [first.pool, second.pool] == ["a", "c"]
        assert second.from_step == first.last_step, "it saved: nothing is done again"
    assert requests(tmp_path) == [("move", "done")]


def test_a_repaired_pool_is_tried_again(tmp_path: Path, undisturbed: Path) -> None:
    """A → B → A: its faults count no more, and it is measured anew."""
    faults = [{"id": i, "step": 3, "at": "compute", "do": "nan"} for i in "ab"]
    path = write_run(tmp_path, pools=["a", "b"], faults=[*faults, *HELD])
    look = stopping(tmp_path, asking(tmp_path, RequestKind.RETRY, "a"))

    def looked(snapshot: object) -> None:
        if held_on(tmp_path, "b"):
            look(snapshot)
        if (tmp_path / "run" / "attempts" / "0003" / "stop").exists():
            go(tmp_path)

    assert run_it(path, on_look=looked) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert [a.pool for a in reader.attempts()] == ["a", "a", "b", "a"]


def held_on(folder: Path, pool: str) -> bool:
    with Reader(folder / "run") as reader:
        attempt = reader.open_attempt()
    return attempt is not None and attempt.pool == pool


def test_a_move_to_a_pool_that_cannot_leaves_the_run_where_it_is(
    tmp_path: Path, undisturbed: Path
) -> None:
    path = write_run(tmp_path, pools=["a", "b"], faults=HELD)
    look = stopping(tmp_path, asking(tmp_path, RequestKind.MOVE, "b"))

    def qualify(settings: object, pool: object, launcher: object, token: int) -> Qualified:
        bad = pool.name == "b"  # type: ignore[attr-defined]
        return Qualified(passed=not bad, message="as told", faults=("broken",) if bad else ())

    path.write_text(path.read_text().replace("enabled = false", "enabled = true"))
    assert run_it(path, on_look=look, qualify=qualify) is State.DONE
    assert_exact(tmp_path / "run", undisturbed)
    with Reader(tmp_path / "run") as reader:
        assert {a.pool for a in reader.attempts()} == {"a"}


def test_a_pool_that_there_is_not_is_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, faults=HELD)
    ask = asking(tmp_path, RequestKind.MOVE, "nowhere")

    def looked(snapshot: object) -> None:
        if held(tmp_path) and not requests(tmp_path):
            ask()
        elif requests(tmp_path) == [("move", "refused")]:
            go(tmp_path)

    assert run_it(path, on_look=looked) is State.DONE
    with Reader(tmp_path / "run") as reader:
        assert len(reader.attempts()) == 1


def test_a_paused_run_holds_nothing_and_goes_on(tmp_path: Path, undisturbed: Path) -> None:
    path = write_run(tmp_path, faults=HELD)
    look = stopping(tmp_path, asking(tmp_path, RequestKind.PAUSE))
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        with Reader(tmp_path / "run") as reader:
            run = reader.run()
            assert run is not None
            if run.state is State.PAUSED:
                assert reader.open_attempt() is None
                paused.append(run.state)
        if len(paused) == 3:
            asking(tmp_path, RequestKind.RESUME)()

    paused: list[State] = []
    assert run_it(path, on_look=look, sleep=sleep) is State.DONE
    assert len(paused) >= 3
    assert_exact(tmp_path / "run", undisturbed)


def test_a_reload_takes_new_tokens_pools_and_limits(tmp_path: Path) -> None:
    path = write_run(tmp_path, steps=20, faults=HELD)
    longer = write_run(tmp_path / "longer", steps=30, pools=["first", "second"])

    def change() -> None:
        text = longer.read_text().replace("[goal]", '[goal]\ndeadline = "9d"')
        path.write_text(text)
        (tmp_path / "first.json").write_text((tmp_path / "longer" / "first.json").read_text())
        asking(tmp_path, RequestKind.RELOAD)()

    assert run_it(path, on_look=stopping(tmp_path, change)) is State.DONE
    status = read_status(tmp_path / "run")
    assert (status.step, status.goal_tokens) == (30, 30 * 128)
    assert status.samples_exact
    assert requests(tmp_path) == [("reload", "done")]
    assert [limit["what"] for limit in status.limits] == ["deadline"]


@pytest.mark.parametrize("edit", [("global_batch = 8", "global_batch = 4"), ("[goal]", "[goal")])
def test_a_reload_that_cannot_be_is_refused(tmp_path: Path, edit: tuple[str, str]) -> None:
    path = write_run(tmp_path, faults=HELD)

    def looked(snapshot: object) -> None:
        if held(tmp_path) and not requests(tmp_path):
            path.write_text(path.read_text().replace(*edit))
            asking(tmp_path, RequestKind.RELOAD)()
        elif requests(tmp_path) == [("reload", "refused")]:
            go(tmp_path)

    assert run_it(path, on_look=looked) is State.DONE
    with Reader(tmp_path / "run") as reader:
        assert [a.cause for a in reader.attempts()] == [Cause.DONE]


def test_the_verbs_ask(tmp_path: Path) -> None:
    run_it(write_run(tmp_path, steps=5, pools=["a", "b"]))
    folder = str(tmp_path / "run")
    runner = CliRunner()
    for verb, arguments in (
        ("move", [folder, "b"]), ("retry", [folder, "a"]), ("pause", [folder]),
        ("pause", [folder, "--resume"]), ("reload", [folder]),
    ):  # fmt: skip
        assert verb in VERBS
        command = getattr(operating, f"{verb}_command")
        result = runner.invoke(command, [*arguments, "--json"])
        assert isinstance(result.exception, RunError)
        assert "is done: there is nothing to" in str(result.exception)


PRICED = {"first": 'price = "$3600/h"\n'}


def test_money_is_counted_and_the_budget_stops_the_run(tmp_path: Path) -> None:
    gates = 'budget = { action = "stop" }'
    path = write_run(tmp_path, steps=400, gates=gates, pool_extra=PRICED,
                     trainer={"step_seconds": 0.01})  # fmt: skip
    path.write_text(path.read_text().replace("[goal]", '[goal]\nbudget = "$1"'))
    assert run_it(path) is State.STOPPED
    status = read_status(tmp_path / "run")
    assert status.stopped_by_gate
    assert exit_code(status) == 5
    assert "gate budget says stop: $" in (status.reason or "")
    settings = read_run(path)
    with Reader(tmp_path / "run") as reader:
        (part,) = spent(settings, reader, status.run_seconds)
        assert part.usd == pytest.approx(part.device_hours * 3600)
        assert over_budget(Budget(), settings, reader, status.run_seconds) is not None
        (judged,) = judge(settings, reader, status.run_seconds, done=False)
        assert judged.kept is False


@pytest.mark.parametrize(("deadline", "code"), [("1 s", 4), ("9 d", 0)])
def test_the_end_says_whether_the_deadline_was_kept(
    tmp_path: Path, deadline: str, code: int
) -> None:
    path = write_run(tmp_path, steps=12, trainer={"step_seconds": 0.15})
    path.write_text(path.read_text().replace("[goal]", f'[goal]\ndeadline = "{deadline}"'))
    assert run_it(path) is State.DONE
    status = read_status(tmp_path / "run")
    assert exit_code(status) == code
    word = "deadline missed: done" if code else "deadline kept"
    assert word in last_word(status)
    with Reader(tmp_path / "run") as reader:
        assert [f.gate for f in reader.fired()] == (["deadline"] if code else [])


HOOK = """
import json, os, sys
told = json.load(sys.stdin)
open(sys.argv[1], "a").write(json.dumps([told["kind"], os.environ["KRZEM_EVENT"]]) + chr(10))
"""


def test_hooks_are_told_and_cannot_harm(tmp_path: Path) -> None:
    (tmp_path / "hook.py").write_text(HOOK)
    words = json.dumps([sys.executable, str(tmp_path / "hook.py"), str(tmp_path / "told")])
    extra = f'[[hook]]\non = ["state *"]\ncommand = {words}\n[[hook]]\ncommand = ["false"]\n'
    path = write_run(tmp_path, steps=5, extra=extra)
    settings = read_run(path)
    with Notifier(settings) as notifier:
        assert run_it(path) is State.DONE
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert [kind for kind, _ in told][-1] == "state done"
    assert all(kind == variable and kind.startswith("state ") for kind, variable in told)
    assert notifier.failed
    path.write_text(path.read_text() + '\n[[hook]]\non = ["*"]\n')
    with pytest.raises(RunError, match="either command or url"):
        read_run(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_webhook_goes_through_apprise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apprise = pytest.importorskip("apprise")
    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(
        apprise.Apprise, "notify",
        lambda self, body, title, **more: sent.append((title, body)) or True,
    )  # fmt: skip
    path = write_run(tmp_path, steps=5, extra='[[hook]]\nurl = "json://127.0.0.1:1/x"\n')
    settings = read_run(path)
    run_it(path)
    with Reader(tmp_path / "run") as reader:
        event = reader.events()[-1]
    call(settings.hooks[0], event, settings)
    assert sent == [("run: state done", "done")]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_metrics_are_written_and_served(tmp_path: Path) -> None:
    prometheus_client = pytest.importorskip("prometheus_client")
    path = write_run(tmp_path, steps=5, extra='[monitor]\ntextfile = "run.prom"\n',
                     pool_extra=PRICED)  # fmt: skip
    with Notifier(read_run(path)):
        assert run_it(path) is State.DONE
    text = (tmp_path / "run.prom").read_text()
    assert 'krzem_step{run="run"} 5.0' in text
    assert 'krzem_state{pool="first",run="run",state="done"} 1.0' in text
    assert 'krzem_cost_usd_total{pool="first",run="run"}' in text
    registry = prometheus_client.CollectorRegistry()

    class Once:
        def collect(self):  # type: ignore[no-untyped-def]
            return families(read_status(tmp_path / "run"), {})

    registry.register(Once())
    server, thread = prometheus_client.start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
            assert b'krzem_tokens{run="run"} 640.0' in answer.read()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
