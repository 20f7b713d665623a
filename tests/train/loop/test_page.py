"""The page of a run, and how a run says that it ended."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from tests.train.loop.folder import tokenised, write
from tests.train.loop.test_planned import PROFILE

from krzem.errors import RunError
from krzem.run.contract import EXIT_NONFINITE
from krzem.train.command import train_command
from krzem.train.engine import StepResult
from krzem.train.loop import Trainer
from krzem.train.summary import EVENTS, METRICS, POINTS, summarise


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenised(tmp_path)
    return tmp_path


def train(*arguments: object) -> Result:
    return CliRunner().invoke(train_command, [str(a) for a in arguments])


def test_the_page_of_a_planned_run(folder: Path) -> None:
    (folder / "profile.toml").write_text(PROFILE)
    run = write(folder, "llama", top='cluster = "profile.toml"', tokens=768, evaluate=2)
    done = train(run, "--html", folder / "run.html")
    assert done.exit_code == 0, done.output
    text = (folder / "run.html").read_text()
    assert "768 of 768 tokens in 3" in text
    assert "on held-out data to" in text
    assert "time in steps so far" in text
    assert "Planned for 1 x cpu, from measured rates" in text
    assert "Model FLOPs utilisation" in text
    assert text.count("<svg") == 3  # no experts, so no balance
    assert "Nothing but ordinary steps" in text
    loaded = re.findall(r"(?:src|href)=\"([^\"]*)|url\(([^)]*)\)|@import|<script", text)
    assert all((link or url).startswith("#") for link, url in loaded)


def test_the_page_of_a_run_that_has_ended_and_has_no_plan(folder: Path) -> None:
    run = write(folder, tokens=512)
    assert "done: 2 steps, 512 tokens, loss " in train(run).output
    again = train(run, "--html", folder / "run.html")
    assert "nothing is left to train: step 2 is the last" in again.output
    text = (folder / "run.html").read_text()
    assert "There is no plan to compare with" in text
    assert "Balance of experts" in text
    assert "512 of 512 tokens in 2" in text


def test_a_run_that_breaks_leaves_its_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer._one_step

    def breaks(trainer: Trainer) -> StepResult:
        if trainer.step == 2:
            with torch.no_grad():
                trainer.engine.held[0].part.fill_(float("inf"))
        return step(trainer)

    monkeypatch.setattr(Trainer, "_one_step", breaks)
    ended = train(write(folder, "llama"), "--html", folder / "run.html")
    assert ended.exit_code == EXIT_NONFINITE
    assert "step 3: loss nan" in ended.output
    assert "512 of 2,560 tokens in 2" in (folder / "run.html").read_text()


def test_the_end_as_json_is_json(folder: Path) -> None:
    run = write(folder, "llama", tokens=512)
    ends = [json.loads(train(run, "--json").stdout) for _ in range(2)]
    assert [end["step"] for end in ends] == [2, 2]
    assert ends[0]["loss"] > 0
    assert ends[1]["loss"] is None  # nothing was trained
    assert ends[1]["checkpoint"] == str(folder / "out" / "checkpoints" / "step-000000002")
    assert Path(ends[1]["checkpoint"]).is_dir()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--html", "{}/no/page.html"], "lies in a folder that does not exist"),
        (["--html", "{}"], "is a folder"),
        (["--dry-run", "--html", "{}/page.html"], "a dry run takes none"),
    ],
)
def test_a_page_that_cannot_be_is_refused_before_the_run(
    tmp_path: Path, options: list[str], says: str
) -> None:
    refused = train(tmp_path / "run.toml", *(o.format(tmp_path) for o in options))
    assert refused.exit_code == 2
    assert says in refused.output


def test_without_the_extra_it_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused = train(tmp_path / "run.toml", "--html", tmp_path / "page.html")
    assert refused.exit_code == 2
    assert "pip install 'krzem[report]'" in refused.output


def step(number: int, *, loss: float, seconds: float = 2.0, tokens: int = 100) -> str:
    record = {"step": number, "tokens": number * 100, "loss": loss, "seconds": seconds}
    record |= {"tokens_per_s": tokens / seconds, "grad_norm": 1.0, "rate": 0.1, "mfu": None}
    return json.dumps({**record, "peak_load": None, "memory_bytes": 7}) + "\n"


def test_steps_done_again_replace_those_before(tmp_path: Path) -> None:
    lines = [step(i, loss=9.0 - i) for i in (1, 2, 3, 4)] + ['{"step": 5, "lo\n']
    lines += [step(i, loss=1.0) for i in (3, 4)]
    (tmp_path / METRICS).write_text("".join(lines))
    noted = [
        {"step": 2, "kind": "held_out_loss", "value": 3.0},
        {"step": 4, "kind": "held_out_loss", "value": 4.0},
        {"step": 4, "kind": "warning", "message": "a word"},
        {"step": 4, "kind": "held_out_loss", "value": 5.0},
    ]
    (tmp_path / EVENTS).write_text("".join(json.dumps(x) + "\n" for x in noted))
    told = summarise(tmp_path, full_tokens=100)
    assert told.curves["loss"] == ((1, 8.0), (2, 7.0), (3, 1.0), (4, 1.0))
    assert (told.seconds, told.step_seconds, told.tokens_per_s) == (8.0, 2.0, 50.0)
    assert told.held_out == ((2, 3.0), (4, 5.0))
    assert [e.message for e in told.events] == ["a word"]
    assert told.curves["peak_load"] == ()
    assert told.mfu is None


def test_steps_of_a_ramp_are_not_compared_with_the_plan(tmp_path: Path) -> None:
    lines = [step(1, loss=2.0, tokens=10), step(2, loss=2.0, seconds=3.0), step(3, loss=2.0)]
    (tmp_path / METRICS).write_text("".join(lines))
    told = summarise(tmp_path, full_tokens=100)
    assert told.step_seconds == 2.5
    assert told.seconds == 7.0
    assert summarise(tmp_path, full_tokens=1000).step_seconds is None


def test_long_curves_are_thinned_by_means(tmp_path: Path) -> None:
    lines = [step(i, loss=float(i % 2)) for i in range(1, 4 * POINTS + 1)]
    (tmp_path / METRICS).write_text("".join(lines))
    curve = summarise(tmp_path, full_tokens=100).curves["loss"]
    assert len(curve) == POINTS
    assert curve[0] == (4, 0.5)
    assert curve[-1] == (4 * POINTS, 0.5)


def test_a_run_without_a_step_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no step is recorded in"):
        summarise(tmp_path, full_tokens=100)
