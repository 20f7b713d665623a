"""``krzem witness`` from the prompt, on a checkpoint."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from tests.train.configs import ALL
from tests.witness.models import build

from krzem.errors import KrzemError
from krzem.layout.layout import Layout
from krzem.train.checkpoint import save, verify
from krzem.train.resuming import run_state
from krzem.witness.checkpoint import RunConstants, check_checkpoint
from krzem.witness.command import witness_command


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine, optimizer = build("llama", Layout(micro_batch=2), torch.float32)
    root = tmp_path_factory.mktemp("run")
    saved = save(
        root, 7, run_state(engine, optimizer), meta={"step": 7, "updates": 12}, config=ALL["llama"]
    )
    result = invoke("record", str(saved.folder), "--length", "16", "--batches", "1", "--device",
                    "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    return saved.folder


def invoke(*arguments: str) -> Result:
    command: click.Command = witness_command
    return CliRunner().invoke(command, arguments)


def test_a_recorded_checkpoint_is_still_good_and_passes(checkpoint: Path) -> None:
    assert "witness.json" in verify(checkpoint).attachments
    result = invoke("check", str(checkpoint), "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["schema"] == "krzem.witness/1"
    assert found["passed"]
    assert found["first_departure"] is None
    assert found["signals_judged"] > 100
    shown = invoke("show", str(checkpoint))
    assert shown.exit_code == 0
    assert "4 x 16 tokens" in shown.stdout
    assert json.loads(invoke("show", str(checkpoint), "--json").stdout)["run"]["step"] == 7


def test_a_failed_check_exits_with_one_and_writes_a_page(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from krzem.train.optim import optimizer

    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(optimizer, "_decays", lambda held: True)
    page = tmp_path / "parity.html"
    result = invoke("check", str(checkpoint), "--html", str(page), "--device", "cpu")
    assert result.exit_code == 1, result.output
    assert result.stdout.startswith("FAIL  llama departs in the optimizer's update at")
    text = page.read_text(encoding="utf-8")
    assert "First departure" in text
    assert "<svg" in text
    assert not re.search(r"(src|href)=.https?:", text)  # nothing is loaded


def test_constants_of_the_run_are_recorded_and_compared(checkpoint: Path) -> None:
    from dataclasses import replace

    constants = RunConstants()
    wrong = replace(constants, optimizer=replace(constants.optimizer, beta2=0.999))
    assert check_checkpoint(checkpoint, device="cpu").passed
    verdict = check_checkpoint(checkpoint, device="cpu", constants=wrong)
    assert verdict.first is not None
    assert verdict.first.direction == "update"
    assert asdict(constants.optimizer)["beta2"] == 0.95


def test_a_declared_difference_is_let_through(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from krzem.train.optim import optimizer

    monkeypatch.setattr(optimizer, "_decays", lambda held: True)
    result = invoke("check", str(checkpoint), "--allow", "update *=0.5", "--allow", "step *=20",
                    "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("check",), "give either"),
        (("check", "CHECKPOINT", "--allow", "x"), "PATTERN=REL"),
        (("check", "--hf", "nowhere"), "--witness FILE"),
        (("record", "--hf", "nowhere"), "--out FILE"),
        (("record", "--hf", "nowhere", "--out", "x.json"), "no config.json"),
        (("check", "nowhere"), "cannot read the witness"),
        (("show", "nowhere"), "cannot read the witness"),
        (("check", "CHECKPOINT", "--loss", "-1"), "above 0"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], words: str, checkpoint: Path
) -> None:
    result = invoke(*(a.replace("CHECKPOINT", str(checkpoint)) for a in arguments))
    assert isinstance(result.exception, KrzemError), result.output
    assert result.exception.exit_code == 2
    assert words in str(result.exception)


def test_help_teaches(checkpoint: Path) -> None:
    for verb in ((), ("record",), ("check",), ("show",)):
        result: Any = invoke(*verb, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.output
