"""The verbs at work, on small clusters."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from krzem.cli.common import _Line, search_progress
from krzem.cli.main import BROKEN_PIPE, INTERRUPTED, VERBS

Krzem = Callable[..., Any]
RUN = ("qwen3-0.6b", "--on", "h100:16", "--batch", "64")


def test_plan(krzem: Krzem) -> None:
    said = krzem("plan", *RUN)
    assert said.code == 0
    assert said.err == ""
    assert said.out.startswith("qwen3-0.6b, 36T tokens on 16 nvidia-h100-sxm: ")


def test_plan_as_json_is_only_json(krzem: Krzem) -> None:
    document = json.loads(krzem("plan", *RUN, "--top", "2", "--json").out)
    assert document["schema"] == "krzem.plan/1"
    assert len(document["alternatives"]) == 2


def test_quiet_is_one_sentence(krzem: Krzem) -> None:
    said = krzem("plan", *RUN, "--quiet")
    assert said.out.count("\n") == 1
    assert said.out.endswith(".\n")


def test_the_same_question_has_the_same_answer(krzem: Krzem) -> None:
    first, second = (json.loads(krzem("plan", *RUN, "--json").out) for _ in range(2))
    for document in (first, second):
        document.pop("search_seconds")
    assert first == second


def test_explain_agrees_with_plan(krzem: Krzem) -> None:
    best = json.loads(krzem("plan", *RUN, "--json").out)["best"]
    said = krzem("explain", *RUN, "--layout", best["layout_text"], "--json")
    shown = json.loads(said.out)["layout_plan"]
    assert shown["step_time_s"] == pytest.approx(best["step_time_s"], rel=1e-9)
    assert shown["layout"] == best["layout"]


def test_compare(krzem: Krzem) -> None:
    said = krzem("compare", *RUN, "--on", "a100:16", "--top", "1")
    assert said.code == 0
    assert "nvidia-a100-sxm-80:16" in said.out
    document = json.loads(krzem("compare", *RUN, "--on", "a100:16", "--json").out)
    assert document["schema"] == "krzem.compare/1"


def test_launch_arguments_follow_the_report_or_go_to_a_file(krzem: Krzem, tmp_path: Path) -> None:
    layout = ("--layout", "tp=2,mbs=2")
    said = krzem("explain", *RUN, *layout, "--emit", "megatron-lm")
    assert "#!/usr/bin/env bash" in said.out
    file = tmp_path / "run.sh"
    said = krzem("explain", *RUN, *layout, "--emit", "megatron-lm", "--emit-to", str(file))
    assert "#!/usr/bin/env bash" not in said.out
    assert file.read_text().startswith("#!/usr/bin/env bash")
    document = json.loads(krzem("plan", *RUN, "--emit", "krzem", "--json").out)
    assert document["launch"]["engine"] == "krzem"


def test_a_page_is_written(krzem: Krzem, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "plan.html"
    said = krzem("plan", *RUN, "--quiet", "--html", str(file))
    assert said.err == f"wrote {file}\n"
    assert "<html" in file.read_text(encoding="utf-8")


def test_a_model_from_a_folder(krzem: Krzem, tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 256, "num_attention_heads": 4,
              "num_hidden_layers": 4, "vocab_size": 1000, "intermediate_size": 512,
              "num_key_value_heads": 2, "max_position_embeddings": 2048}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = krzem("plan", str(tmp_path), "--on", "h100:8", "--tokens", "1B", "--seq", "2k",
                 "--batch", "64", "--precision", "bf16", "--quiet")  # fmt: skip
    assert said.code == 0
    assert said.out.startswith(f"{tmp_path.name}, 1B tokens on 8 nvidia-h100-sxm")


def test_one_device_and_one_model(krzem: Krzem) -> None:
    assert "nvidia-h800-sxm" in krzem("devices", "h800").out
    assert len(json.loads(krzem("devices", "ascend", "--json").out)["devices"]) > 10
    assert len(json.loads(krzem("devices", "h800", "--json").out)["devices"]) == 1
    assert "qwen3-235b-a22b" in krzem("models", "qwen3").out
    assert len(json.loads(krzem("models", "gpt3-175b", "--json").out)["models"]) == 1


def test_version(krzem: Krzem) -> None:
    assert krzem("--version").out.startswith("krzem ")


def test_no_verb_shows_the_help(krzem: Krzem) -> None:
    said = krzem()
    assert said.code == 2
    assert "Verbs:" in said.out


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interruption_is_quiet(
    krzem: Krzem, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr("krzem.cli.catalogue.show", interrupted)
    said = krzem("models")
    assert said.code == INTERRUPTED
    assert said.err.strip() == "krzem: error: interrupted"


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from krzem.cli.main import main; main(['devices', '--json'])"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == BROKEN_PIPE


def test_a_terminal_without_utf_8_still_gets_its_answer() -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"from krzem.cli.main import main; main(['plan', *{RUN!r}])"],
        capture_output=True, check=True,
        env={"PYTHONIOENCODING": "latin-1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "?" in run.stdout.decode("latin-1")
    assert run.stderr == b""


def test_a_long_search_shows_its_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("krzem.cli.common.PATIENCE", 0.0)
    with search_progress("searching", quiet=False) as progress:
        assert isinstance(progress, _Line)
        progress(1000)
        assert progress.shown is not None
        shown, task = progress.shown
        progress(5000)
        assert shown.tasks[task].completed == 5000


def test_nobody_watches_a_pipe() -> None:
    with search_progress("searching", quiet=False) as progress:
        assert progress is None or sys.stderr.isatty()
    with search_progress("searching", quiet=True) as progress:
        assert progress is None


def test_every_verb_has_a_line_of_help() -> None:
    assert all(verb.help.endswith(".") for verb in VERBS.values())
