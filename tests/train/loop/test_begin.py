"""A run that begins from weights that came from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.train.loop.folder import tokenised, write

from krzem.errors import CheckpointError, DataError, RunError
from krzem.train.checkpoint.command import checkpoint_command
from krzem.train.loop import Trainer
from krzem.train.start import checked, prepare


def checkpoint(*arguments: object) -> None:
    done = CliRunner().invoke(checkpoint_command, [str(a) for a in arguments])
    if done.exception is not None:
        raise done.exception


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {k: t.clone() for k, t in trainer.engine.stages[0].state_dict().items()}


@pytest.mark.parametrize("model", ["deepseek_v3", "deepseek_v4"])
def test_a_run_begins_where_the_weights_of_another_ended(tmp_path: Path, model: str) -> None:
    """With routers' biases and hash tables, through a Hugging Face folder."""
    tokenised(tmp_path)
    first = prepare(write(tmp_path, model, tokens=512))
    first.run()
    checkpoint("export", tmp_path / "out", tmp_path / "hf", "--dtype", "float32")
    checkpoint("import", tmp_path / "hf", tmp_path / "next", "--step", 5, "--tokens", 256)

    file = write(tmp_path, model, tokens=512)
    file.write_text(file.read_text().replace('"out"', '"next"'))
    second = prepare(file)
    resumed = second.resume()
    assert resumed == tmp_path / "next" / "checkpoints" / "step-000000005"
    before, after = state(first), state(second)
    assert any(name.endswith("e_score_correction_bias") for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (second.step, second.sample, second.optimizer.steps) == (5, 8, 0)
    assert second.run().step == 6  # 256 tokens are left, a step of 8 sequences of 32


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    tokenised(tmp_path)
    prepare(write(tmp_path, "llama", tokens=256)).run()
    checkpoint("export", tmp_path / "out", tmp_path / "hf")
    checkpoint("import", tmp_path / "hf", tmp_path / "next")
    config = json.loads((tmp_path / "config.json").read_text())
    file = write(tmp_path, "llama", tokens=256)
    file.write_text(file.read_text().replace('"out"', '"next"'))
    (tmp_path / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(CheckpointError, match=r"another model\. rms_norm_eps"):
        prepare(file).resume()


def test_a_damaged_checkpoint_is_passed_over_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenised(tmp_path)
    file = write(tmp_path, "llama", tokens=512, save=1)
    prepare(file).run()
    victim = next((tmp_path / "out/checkpoints/step-000000002").glob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    resumed = prepare(file).resume()
    assert resumed is not None
    assert resumed.name == "step-000000001"
    assert "step-000000002 is passed over" in capsys.readouterr().err


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(tmp_path: Path) -> None:
    tokenised(tmp_path)
    file = write(tmp_path, "llama", tokens=512, save=1)
    prepare(file).run()
    for victim in (tmp_path / "out/checkpoints").glob("*/*.safetensors"):
        victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"none of the 2 checkpoints in .* is good: put back"):
        prepare(file).resume()


def test_a_run_whose_first_save_was_interrupted_begins_anew(tmp_path: Path) -> None:
    tokenised(tmp_path)
    file = write(tmp_path, "llama", tokens=256)
    prepare(file).run()
    (tmp_path / "out/checkpoints/step-000000001/manifest.json").unlink()
    assert prepare(file).resume() is None


@pytest.mark.parametrize(
    ("before", "after", "missing"),
    [("adamw", "muon", "momentum"), ("muon", "adamw", "exp_avg and exp_avg_sq")],
)
def test_a_checkpoint_of_another_optimizer_is_refused(
    tmp_path: Path, before: str, after: str, missing: str
) -> None:
    tokenised(tmp_path)
    file = write(tmp_path, "llama", tokens=256)
    plain = file.read_text()
    file.write_text(plain.replace("[goal]", f'[goal]\noptimizer = "{before}"'))
    prepare(file).run()
    file.write_text(plain.replace("[goal]", f'[goal]\noptimizer = "{after}"'))
    with pytest.raises(CheckpointError, match=f"has no {missing} for {after}: it was trained with"):
        prepare(file).resume()


def test_a_model_that_memory_cannot_hold_is_refused_before_it_is_built(tmp_path: Path) -> None:
    tokenised(tmp_path)
    file = write(tmp_path, "llama", tokens=512)
    config = {**json.loads((tmp_path / "config.json").read_text()), "intermediate_size": 2**31 - 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        RunError, match=r"parameters of at least 12 bytes .* over 1 ranks are .*TiB"
    ):
        checked(file)


@pytest.mark.parametrize("value", [7, 60_000])
def test_tokens_that_were_altered_are_refused_before_a_step(tmp_path: Path, value: int) -> None:
    """Also where every id is one of the vocabulary; unless the run file says not to look."""
    tokenised(tmp_path)
    file = write(tmp_path, "llama", tokens=256)
    shard = next((tmp_path / "tokens").glob("*.train.tokens"))
    np.memmap(shard, "<u2", "r+")[100:] = value
    with pytest.raises(DataError, match=rf"{shard.name} was altered: its SHA-256"):
        prepare(file)
    file.write_text(file.read_text().replace("[data]", "[data]\nverify = false"))
    prepare(file)
