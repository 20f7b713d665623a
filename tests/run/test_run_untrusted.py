"""What comes from outside is parsed at the door: nothing in it ends a controller or a view."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tests.run.run_helpers import run_it, write_run

from krzem.errors import CheckpointError, RunError
from krzem.run.attempts import raise_fence
from krzem.run.command import logs_command, status_command, stop_command
from krzem.run.contract import (
    FENCE,
    HEARTBEATS,
    METRICS,
    FencedError,
    TrainerContract,
    attempt_folder,
    parse_record,
    read_heartbeats,
)
from krzem.run.history import History, Metrics
from krzem.run.launch.job import EXIT, OUTPUT, Job, Phase, ended
from krzem.run.ledger import Ledger
from krzem.run.page import report_page
from krzem.run.rows import State
from krzem.run.run_file import read_run
from krzem.run.status import StatusReader, read_status
from krzem.run.untrusted import BadInputError, as_name, is_name, printable, read_regular
from krzem.train.checkpoint.manifest import Manifest, StoredFile, write_manifest
from krzem.train.checkpoint.store import quick_check, verify

GOOD: dict[str, Any] = {
    "step": 1, "tokens": 128, "loss": 5.0, "grad_norm": 1.0, "seconds": 0.05,
    "tokens_per_s": 2560.0, "first_sample": 0, "last_sample": 7, "attempt": 1, "time": 1e9,
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def record(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode() + b"\n"


@given(st.sampled_from(sorted(GOOD)), JSON)
def test_any_value_in_any_field_is_read_or_refused_in_words(name: str, value: Any) -> None:
    line = json.dumps({**GOOD, name: value})
    with contextlib.suppress(BadInputError):
        read = parse_record(line)
        assert 1 <= read.step <= 1 << 53
        assert read.seconds >= 0
        assert read.tokens_per_s >= 0


@given(st.binary(max_size=200))
def test_any_bytes_are_counted_and_quoted(raw: bytes) -> None:
    folder = Path(os.environ["PYTEST_SCRATCH"])
    (folder / METRICS).write_bytes(record() + raw + b"\n" + record(step=2, tokens=256))
    metrics = Metrics(folder)
    metrics.read()
    assert metrics.history.step in (1, 2), "what is good is taken"
    assert all(quote.isprintable() for quote in metrics.quotes)


@pytest.fixture(autouse=True, scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["PYTEST_SCRATCH"] = str(tmp_path_factory.mktemp("scratch"))


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b"[" * 200_000 + b"\n", "nested too deeply"),
        (b'{"step": ' + b"9" * 5000 + b"}\n", "line 2"),
        (record(loss="5.0"), "loss is '5.0'"),
        (record(step=-3), "step is -3"),
        (record(step=10**400), "beyond 2^53"),
        (record(tokens=True), "tokens is True"),
        (record(seconds=float("inf")), "seconds is inf"),
        (record(attempt=77), "attempt 77 was never started"),
        (b"x" * (3 << 20) + b"\n", "longer than"),
        (b"\x1b]0;evil\x07\n", "\\x1b]0;evil\\x07"),
        (b"\xff\xfe\x00\n", "line 2"),
        (b"null\n", "NoneType where an object is needed"),
    ],
)
def test_a_bad_line_costs_that_line(tmp_path: Path, line: bytes, word: str) -> None:
    (tmp_path / METRICS).write_bytes(record() + line + record(step=2, tokens=256))
    metrics = Metrics(tmp_path)
    metrics.newest_attempt = 1
    metrics.read()
    assert (metrics.history.step, metrics.bad) == (2, 1)
    assert word in metrics.quotes[-1]
    assert len(metrics.quotes[-1]) < 400


def test_null_is_a_number_that_is_not_finite_and_a_norm_may_be_unknown() -> None:
    assert not parse_record(record(loss=None)).finite
    assert not parse_record(record(grad_norm=None)).finite
    without = {k: v for k, v in GOOD.items() if k != "grad_norm"}
    read = parse_record(json.dumps(without))
    assert (read.grad_norm, read.finite) == (None, True)
    assert parse_record(record(step=3.0)).step == 3


def test_metrics_are_followed_by_what_was_added(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    metrics = Metrics(tmp_path)
    assert metrics.read() == []
    path.write_bytes(record()[:-5])
    assert metrics.read() == []
    path.write_bytes(record() + record(step=2, tokens=256))
    assert [r.step for r in metrics.read()] == [1, 2]
    assert metrics.read() == []
    with path.open("ab") as file:
        file.write(record(step=2, tokens=256, attempt=2) + record(step=3, tokens=384, attempt=1))
    metrics.read()
    assert [(r.step, r.attempt) for r in metrics.history.kept] == [(1, 1), (2, 2)]
    assert [(r.step, r.attempt) for r in metrics.history.lost] == [(2, 1), (3, 1)], (
        "a replaced trainer's late line is lost work"
    )
    path.write_bytes(record())
    metrics.read()
    assert metrics.history.step == 1, "a file that became shorter was replaced"


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), max_size=30))
def test_columns_say_what_the_kept_records_say(steps: list[tuple[int, int]]) -> None:
    history = History()
    for step, attempt in steps:
        line = record(step=step, attempt=attempt, tokens=128 * step)
        history.add([parse_record(line)])
    assert list(history.columns.whole("step")) == [r.step for r in history.kept]
    assert list(history.columns.real("loss")) == [r.loss for r in history.kept]
    assert history.columns.count == len(history.kept)


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "deep", "huge"])
@pytest.mark.parametrize("where", ["metrics", "heartbeat", "fence", "exit", "output"])
def test_files_that_are_none_are_no_answer(tmp_path: Path, where: str, kind: str) -> None:
    """A pipe, a link to a device, a folder: nobody waits for it, reads on, or follows it."""
    folder = attempt_folder(tmp_path, 1)
    path = {
        "metrics": tmp_path / METRICS, "heartbeat": tmp_path / HEARTBEATS / "rank-0",
        "fence": tmp_path / FENCE, "exit": folder / EXIT, "output": folder / OUTPUT,
    }[where]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"[" * 100_000 if kind == "deep" else b"9" * (2 << 20))
    metrics = Metrics(tmp_path)
    metrics.read()
    metrics.read()
    assert metrics.history.kept == []
    assert read_heartbeats(tmp_path, 1) == {}
    assert ended(Job(name="a", folder=folder, run_dir=tmp_path, token=1, command=[])) is None
    if where == "fence":
        contract = TrainerContract(run_dir=tmp_path, attempt=1, token=1)
        with pytest.raises(FencedError, match="is unknown"):
            contract.commit_guard()
    if where == "fence" and kind != "folder":
        ledger = Ledger(tmp_path)
        raise_fence(ledger, 5)
        ledger.close()
        assert json.loads((tmp_path / FENCE).read_text()) == {"token": 5}


@pytest.mark.parametrize("value", [{"code": "0"}, {"code": 1e9}, {}, {"code": None}, []])
def test_an_exit_code_that_is_none_is_a_fault(tmp_path: Path, value: object) -> None:
    (tmp_path / EXIT).write_text(json.dumps(value))
    look = ended(Job(name="a", folder=tmp_path, run_dir=tmp_path, token=1, command=[]))
    if value == []:
        assert look is None
    else:
        assert look is not None
        assert (look.phase, look.exit_code) == (Phase.ENDED, 1)
        assert "cannot be read" in look.detail


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "..", ".", "-rf", "a\nb", "a\x1b[2J", "", "a" * 65, "a$b", "~"]
)
def test_a_name_is_one_part_of_a_path(tmp_path: Path, name: str) -> None:
    assert not is_name(name)
    assert is_name(as_name(name))
    path = write_run(tmp_path)
    text = path.read_text()
    path.write_text(text.replace('name = "first"', f"name = {json.dumps(name)}"))
    with pytest.raises(RunError, match=r"pool 1\.name"):
        read_run(path)
    path.write_text(text.replace("[run]", f"[run]\nname = {json.dumps(name)}"))
    with pytest.raises(RunError, match=r"run\.name"):
        read_run(path)


@given(st.text(max_size=80))
def test_what_is_a_name_stays_where_it_is_put(text: str) -> None:
    if is_name(text):
        assert Path("/a", text).resolve().parent == Path("/a")
        assert text.isprintable()
        assert "\n" not in text
    assert is_name(as_name(text))


@given(st.text())
def test_nothing_printable_steers_a_terminal(text: str) -> None:
    shown = printable(text, keep="\n")
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert "\u202e" not in shown
    assert all(c.isprintable() or c == "\n" or c in text for c in shown)


def _checkpoint(folder: Path, name: str, files: dict[str, StoredFile], **changes: Any) -> Path:
    place = folder / name
    place.mkdir(parents=True)
    values: dict[str, Any] = {"step": 1, "tensors": {}, "meta": {}, "config": None, **changes}
    write_manifest(place, Manifest(files=files, **values))
    return place


EMPTY = StoredFile(
    bytes=0, sha256="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
)


@pytest.mark.parametrize(
    "name", ["../../secret", "/dev/zero", "a/../../b", "", ".", "a//b", "a\nb"]
)
def test_a_manifest_names_only_files_of_its_own(tmp_path: Path, name: str) -> None:
    place = _checkpoint(tmp_path, "step-000000001", {name: EMPTY})
    with pytest.raises(CheckpointError, match="not inside the checkpoint's folder"):
        verify(place)


@pytest.mark.parametrize("kind", ["fifo", "link", "folder-link"])
def test_a_file_of_a_checkpoint_is_a_regular_file_in_it(tmp_path: Path, kind: str) -> None:
    place = _checkpoint(tmp_path, "step-000000001", {"in/data": EMPTY})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data").write_bytes(b"")
    if kind == "folder-link":
        (place / "in").symlink_to(tmp_path / "elsewhere")
    else:
        (place / "in").mkdir()
        if kind == "fifo":
            os.mkfifo(place / "in" / "data")
        else:
            (place / "in" / "data").symlink_to(tmp_path / "elsewhere" / "data")
    for check in (verify, quick_check):
        with pytest.raises(CheckpointError, match="regular file inside the checkpoint"):
            check(place)


@pytest.mark.parametrize("step", ["1", 1.5, -1, None, True])
def test_a_manifest_of_a_wrong_type_is_none(tmp_path: Path, step: Any) -> None:
    place = _checkpoint(tmp_path, "step-000000001", {}, step=step)
    with pytest.raises(CheckpointError):
        quick_check(place)


def test_a_fifo_in_place_of_a_manifest_does_not_hang(tmp_path: Path) -> None:
    place = tmp_path / "step-000000001"
    place.mkdir()
    os.mkfifo(place / "manifest.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        verify(place)
    (place / "manifest.json").unlink()
    (place / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError):
        verify(place)


TRAINER = """
import json, os, sys, time
folder, attempt = os.environ["KRZEM_RUN_DIR"], int(os.environ["KRZEM_ATTEMPT"])
for s in range(1, 31):
    r = dict(step=s, tokens=s * 128, loss=5.0, grad_norm=1.0, seconds=.05, tokens_per_s=2560.,
             first_sample=(s - 1) * 8, last_sample=s * 8 - 1, attempt=attempt, time=time.time())
    odd = json.loads(sys.argv[1])
    r.update(odd if s % 3 == 0 else {})
    with open(folder + "/metrics.jsonl", "a") as file:
        file.write(("[" * 50000 + chr(10) if odd is None else "") + json.dumps(r) + chr(10))
    time.sleep(.01)
print(chr(27) + "]0;title" + chr(7) + chr(27) + "[31mred" + chr(27) + "[0m")
"""


@pytest.mark.parametrize("odd", [{"loss": "x"}, {"tokens_per_s": 0.0}, {"step": None}])
def test_odd_metrics_end_no_run_and_no_view(tmp_path: Path, odd: dict[str, Any]) -> None:
    path = write_run(tmp_path, steps=30, gates='progress = { times = 2, action = "stop" }')
    (tmp_path / "trainer.py").write_text(TRAINER)
    lines = path.read_text().splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("command = "))
    words = [
        "{python}",
        str(tmp_path / "trainer.py"),
        json.dumps(odd).replace("{", "{{").replace("}", "}}"),
    ]
    lines[at] = f"command = {json.dumps(words)}"
    path.write_text("\n".join(lines))
    assert run_it(path) in (State.STOPPED, State.DONE)
    status = read_status(tmp_path / "run")
    assert (status.bad_lines > 0) == ("tokens_per_s" not in odd)
    runner = CliRunner()
    for command, arguments in (
        (status_command, []), (status_command, ["--json"]), (logs_command, []),
        (logs_command, ["--events"]), (stop_command, []),
    ):  # fmt: skip
        result = runner.invoke(command, [str(tmp_path / "run"), *arguments])
        assert result.exception is None, result.output
        assert "\x1b" not in result.output
        if "--json" in arguments:
            json.loads(result.output)


def test_the_page_sets_no_name_as_a_formula(tmp_path: Path) -> None:
    run_it(write_run(tmp_path, steps=12))
    status = read_status(tmp_path / "run").as_dict()
    page = report_page(status, {1: r"$\frac{$ <script>"})
    assert "<script>" not in page.replace("<script>alert", "")


def test_a_quarter_million_steps_are_read_once(tmp_path: Path) -> None:
    """A redraw reads only what was added: the bytes say so, not the clock."""
    run_it(write_run(tmp_path, steps=12))
    reader = StatusReader(tmp_path / "run")
    assert reader.read().step == 12
    path = tmp_path / "run" / METRICS
    kept = tmp_path / "moved"
    shutil.copy(path, kept)
    raw = bytearray(path.read_bytes())
    raw[: len(raw) - 1] = b"x" * (len(raw) - 1)
    path.write_bytes(raw + record(step=13, tokens=13 * 128, first_sample=96, last_sample=103))
    status = reader.read()
    assert (status.step, status.bad_lines) == (13, 0)


def test_read_regular_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * 100)
    with pytest.raises(BadInputError, match="longer than 99"):
        read_regular(tmp_path / "long", 99)
    with pytest.raises(BadInputError, match="not a regular file"):
        read_regular(Path("/dev/zero"))
