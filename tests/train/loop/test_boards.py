"""Numbers that also go to the boards of others, behind switches of ``[metrics]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tests.train.loop.folder import tokenised, write

from krzem.errors import RunError
from krzem.train.command import main
from krzem.train.keys import MetricsTable
from krzem.train.report import Reporter


def reporter(folder: Path, *boards: str) -> Reporter:
    return Reporter(folder, tokens=100, every=0, boards=boards, console=Console(quiet=True))


def record(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 5.0 - step, "tokens": step * 10, "seconds": 1.0, "mfu": None,
            "tokens_per_s": 10.0, "grad_norm": 1.0, "rate": 1e-3}  # fmt: skip


def test_each_switch_gets_the_numbers_of_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, dict[str, float], int]] = []
    begun: dict[str, Any] = {}

    def init(**given: Any) -> SimpleNamespace:
        begun.update(given)
        return SimpleNamespace(log=lambda values, step: seen.append(("wandb", values, step)))

    mlflow = SimpleNamespace(
        start_run=lambda run_name: begun.update(run_name=run_name),
        log_metrics=lambda values, step: seen.append(("mlflow", values, step)),
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    boards = MetricsTable(wandb=True, mlflow=True).boards
    assert boards == ("wandb", "mlflow")
    told = reporter(tmp_path / "a-run", *boards)
    told.step(record(1), left=3)
    told.value(1, "held_out_loss", 4.5)
    names = [
        (name, step, values.get("loss"), values.get("held_out_loss")) for name, values, step in seen
    ]
    assert names == [
        ("wandb", 1, 4.0, None),
        ("mlflow", 1, 4.0, None),
        ("wandb", 1, None, 4.5),
        ("mlflow", 1, None, 4.5),
    ]
    assert "mfu" not in seen[0][1]  # a number that is not known is not sent
    assert (begun["id"], begun["resume"], begun["run_name"]) == ("a-run", "allow", "a-run")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_board_that_is_not_installed_is_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RunError, match=rf"metrics\.{name} = true needs .* pip install {name}"):
        reporter(tmp_path, name)


def test_tensorboard_still_writes_its_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    told = reporter(tmp_path, "tensorboard")
    told.step(record(1), left=0)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_trace_of_the_steps_asked_for(tmp_path: Path) -> None:
    tokenised(tmp_path)
    run = write(tmp_path, "qwen3", tokens=1024, save=0)
    text = run.read_text().replace("[metrics]", '[metrics]\nprofile = "2:4"')
    run.write_text(text)
    assert main(run) == 0
    (trace,) = (tmp_path / "out" / "profile").iterdir()
    assert trace.name == "step-2.json"
    names = [e.get("name", "") for e in json.loads(trace.read_text())["traceEvents"]]
    assert sum("adam" in n for n in names) >= 2  # an update of each of the two steps


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('profile = "4:2"', "below the second number"),
        ("profile = 3", "steps such as"),
        ('profile = "2:4"\nmemory_snapshot = true', "needs a cuda device"),
    ],
)
def test_what_cannot_be_recorded_is_said(
    tmp_path: Path, keys: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenised(tmp_path)
    run = write(tmp_path, "qwen3")
    run.write_text(run.read_text().replace("[metrics]", f"[metrics]\n{keys}"))
    assert main(run) != 0
    assert said in capsys.readouterr().err
