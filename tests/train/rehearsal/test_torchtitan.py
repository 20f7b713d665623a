"""torchtitan's own trainer rehearsed; skipped where scripts/engine-env torchtitan was not run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from krzem.errors import RunError
from krzem.jobs.command import check_command
from krzem.jobs.reading import read_job
from krzem.jobs.registry import Sources
from krzem.jobs.titan_jobs import command_of
from krzem.train.rehearsal.titan_import import need_torchtitan

ROOT = Path(__file__).parents[3]
HOME = ROOT / ".venv-engines" / "torchtitan"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """This Python with torchtitan's packages behind its own."""
    if not (HOME / "done").exists():
        pytest.skip("no torchtitan here: scripts/engine-env torchtitan installs it")
    (site,) = HOME.glob("lib/python3*/site-packages")
    path = os.pathsep.join([str(ROOT / "src"), str(site)])
    return subprocess.run(
        [sys.executable, *words], env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        text=True, check=False, cwd=ROOT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    done = run(str(Path(__file__).with_name("titan_program.py")))
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("name", ["dense", "first"])
def test_repeating_a_micro_batch_is_running_it(found: dict[str, Any], name: str) -> None:
    repeated, ran = found[name], found[f"{name}, each run"]
    for what in ("traffic", "flops", "reads"):
        assert repeated[what] == ran[what]
    peaks = [sum(one["peak"].values()) for one in (repeated, ran)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)


@pytest.mark.parametrize("name", ["dense", "first", "last"])
def test_weights_and_states_are_in_32_bits(found: dict[str, Any], name: str) -> None:
    one = found[name]
    assert one["peak"]["states"] == pytest.approx(8 * one["parameters"], rel=0.01)
    assert one["peak"]["weights"] >= 4 * one["parameters"]


def test_stages_hold_their_layers_and_meet(found: dict[str, Any]) -> None:
    assert found["first"]["layers"] == [0, 1, 2, 3]
    assert found["last"]["layers"] == [4, 5, 6, 7]
    assert found["faults"] == []


def test_rows_are_sent_there_and_back_in_both_passes(found: dict[str, Any]) -> None:
    """Of 256 tokens with 8 experts each, 256 channels of 16 bits, in five micro-batches."""
    rows = 5 * 256 * 8 * 256 * 2 * 4
    counts = 5 * 4 * 64 * 8  # Of 64 experts, in 64 bits.
    exchanged = {t[0]: t[3] for t in found["first"]["traffic"]}
    assert exchanged["all-to-all"] == 4 * rows + counts
    assert found["first"]["reads"] == 4.0  # One of a layer, in its forward pass.


def test_crowded_experts_hold_more(found: dict[str, Any]) -> None:
    even, crowded = found["first"], found["crowded"]
    assert crowded["flops"] > even["flops"]
    assert crowded["peak"]["activations"] > even["peak"]["activations"]


def test_what_was_changed_is_said(found: dict[str, Any]) -> None:
    assert any("CUDA graphs" in note for note in found["dense"]["notes"])
    assert not any("CUDA graphs" in note for note in found["first"]["notes"])


def test_another_layout_than_was_read_and_unknown_settings_are_refused(
    found: dict[str, Any],
) -> None:
    assert "ep 2 (read: 1)" in found["other"]
    assert "no_such_thing" in found["refused"]


def test_recipes_are_resolved_by_torchtitan(found: dict[str, Any]) -> None:
    assert "pipeline_parallel_degree = 2" in found["resolved"]
    assert 'mode = "none"' in found["resolved"]


def test_the_command_shows_the_plan_beside_it(tmp_path: Path) -> None:
    script, page, step = tmp_path / "run.sh", tmp_path / "page.html", tmp_path / "step.json"
    script.write_text(
        "torchrun --nproc-per-node 8 -m torchtitan.train --module qwen3 --config qwen3_0_6b"
        " --training.seq_len 1024 --training.local_batch_size 1\n"
    )
    done = run("-m", "krzem", "check", str(script), "--on", "h100", "--rehearse", "--json",
               "--html", str(page), "--trace", str(step))  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["engine"].startswith("torchtitan 0.3")
    assert told["ranks_in_all"] == 8
    (rank,) = told["ranks"]
    assert rank["planned"]["states"] == pytest.approx(rank["peak"]["states"], rel=0.02)
    assert rank["planned_bytes"] == pytest.approx(sum(rank["peak"].values()), rel=0.3)
    assert "<svg" in page.read_text(encoding="utf-8")
    assert json.loads(step.read_text(encoding="utf-8"))["traceEvents"]


@pytest.mark.parametrize(
    ("version", "said"), [(None, "has no torchtitan"), ("0.2.2", "0.2.2 is installed")]
)
def test_a_torchtitan_that_is_missing_or_old_is_named(
    monkeypatch: pytest.MonkeyPatch, version: str | None, said: str
) -> None:
    def asked(_: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError
        return version

    monkeypatch.setattr(importlib.metadata, "version", asked)
    with pytest.raises(RunError, match=said) as refused:
        need_torchtitan()
    assert "pip install torchtitan==0.3.0" in str(refused.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--rehearse"], "a job of megatron-lm"), (["--rank", "3"], "add --rehearse")],
)
def test_wrong_wishes_are_taught(tmp_path: Path, words: list[str], said: str) -> None:
    script = tmp_path / "run.sh"
    script.write_text("torchrun pretrain_gpt.py --num-layers 2 --hidden-size 64\n")
    done = CliRunner().invoke(check_command, [str(script), *words])
    assert said in str(done.exception)


COMMAND = "torchrun --nproc-per-node 8"
WORDS = ("--module", "llama3", "--config", "llama3_8b")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (f"{COMMAND} -m torchtitan.train {' '.join(WORDS)} --training.steps 4",
         (*WORDS, "--training.steps", "4")),
        ("MODULE=llama3 CONFIG=llama3_8b NGPU=8 ./run_train.sh --training.steps 4",
         (*WORDS, "--training.steps", "4")),
        ("CONFIG_FILE=llama3_8b.toml ./run_train.sh", ()),
    ],
)  # fmt: skip
def test_the_words_of_a_start_are_found(script: str, words: tuple[str, ...]) -> None:
    assert command_of(Sources(files={"run.sh": script})).words == words


def test_a_recipe_alone_starts_what_it_makes() -> None:
    text = (
        "from torchtitan.trainer import Trainer\n\n\n"
        "def mine():\n    return Trainer.Config(hf_assets_path='x')\n"
    )
    found = command_of(Sources(files={"folder/my_recipe.py": text}))
    assert found.words == ("--module", "my_recipe", "--config", "mine")
    assert found.files["folder/my_recipe.py"] == text


@pytest.mark.parametrize(("choice", "recompute"), [("full", "full"), ("selective", "modules")])
def test_a_choice_behind_an_option_is_none_of_its_values(choice: str, recompute: str) -> None:
    words = (*WORDS, "--training.local_batch_size", "2", f"activation-checkpoint:{choice}")
    batch = "local_batch_size"
    job = read_job(text={
        "run.sh": f"{COMMAND} -m torchtitan.train {' '.join(words)}",
        "said.toml": f"[training]\n{batch} = 1\n[parallelism]\ntensor_parallel_degree = 1\n",
    })  # fmt: skip
    assert job.get("mbs") == 2
    assert job.get("recompute") == recompute
