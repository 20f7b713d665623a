"""Models of other trainers, through transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.train.configs import ALL
from tests.witness.models import QUICK, batches

transformers = pytest.importorskip("transformers")

import torch  # noqa: E402

from krzem.errors import InputError, ModelError  # noqa: E402
from krzem.witness import (  # noqa: E402
    HfSubject,
    TorchRule,
    check,
    load_folder,
    read_witness,
    record,
    write_witness,
)
from krzem.witness.command import witness_command  # noqa: E402
from krzem.witness.measure import narrow_products  # noqa: E402
from krzem.witness.subject import Setting  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = {k: v for k, v in ALL["llama"].items() if k != "model_type"}
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.for_model("llama", **fields)
    model = transformers.AutoModelForCausalLM.from_config(config)
    target = tmp_path_factory.mktemp("hf") / "model"
    model.save_pretrained(target)
    return target


def groups(decay_everything: bool) -> Any:
    def make(named: list[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        flat = [p for _, p in named if p.dim() < 2]
        rest = [p for _, p in named if p.dim() >= 2]
        decay = 0.1 if decay_everything else 0.0
        return torch.optim.AdamW(
            [{"params": rest, "weight_decay": 0.1}, {"params": flat, "weight_decay": decay}],
            betas=(0.9, 0.95),
        )

    return make


def test_a_folder_agrees_with_itself_and_faults_are_found(folder: Path, tmp_path: Path) -> None:
    rule = TorchRule(groups(False))
    recorded = record(
        load_folder(folder, rule=rule), batches(), settings=QUICK, also=("bfloat16",)
    )  # fmt: skip
    write_witness(recorded, tmp_path / "witness.json")
    witness = read_witness(tmp_path / "witness.json")
    there = load_folder(folder, rule=rule)
    assert check(witness, there).passed
    assert check(witness, load_folder(folder, dtype="bfloat16")).passed
    both = check(witness, there)
    assert both.dtypes == ("float32", "bfloat16")
    for module in there.model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-4
    first = check(witness, there).first
    assert first is not None
    assert first.name == "model.layers.0.input_layernorm"
    decayed = check(witness, load_folder(folder, rule=TorchRule(groups(True))))
    assert decayed.first is not None
    assert decayed.first.direction == "update"
    assert "norm" in decayed.first.name or "bias" in decayed.first.name


def test_what_was_not_given_is_said(folder: Path) -> None:
    witness = record(load_folder(folder), batches(), settings=QUICK[:1])
    verdict = check(witness, load_folder(folder))
    assert verdict.passed
    assert any("optimizer" in what for what in verdict.not_compared)


def test_dropout_is_said_not_to_be_compared(folder: Path) -> None:
    there = load_folder(folder)
    there.identity = replace(there.identity, config={**there.identity.config, "resid_pdrop": 0.1})
    witness = record(there, batches(), settings=QUICK[:1])
    told = [what for what in check(witness, there).not_compared if what.startswith("dropout")]
    assert told == ["dropout (resid_pdrop): the step is computed without it, as in evaluation"]


def test_a_folder_on_a_device_without_float32_is_judged_by_the_floor_of_tf32(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "witness.json"
    write_witness(record(load_folder(folder), batches(), settings=QUICK, also=("tf32",)), file)
    command: Any = witness_command
    words = ["check", "--hf", str(folder), "--witness", str(file), "--device", "cpu", "--json"]
    with narrow_products():
        told = CliRunner().invoke(command, words)
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["dtypes"] == ["tf32"]


def test_bad_folders_are_one_sentence(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_folder(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_folder(tmp_path)
    with pytest.raises(InputError, match="not one of"):
        load_folder(folder, dtype="int3")
    with pytest.raises(InputError, match="no layouts"):
        record(load_folder(folder), batches(), settings=(Setting(layout="dp=1"),))


def test_another_arithmetic_is_the_model_that_a_check_loads(folder: Path) -> None:
    """Tables of rotations stay in float32, also while the floor of bfloat16 is recorded."""
    there = load_folder(folder)
    rotations = there.model.model.rotary_emb.inv_freq.clone()  # type: ignore[union-attr]
    alone = HfSubject(load_folder(folder).model)
    for model in (there, alone):
        with model.under(Setting(dtype="bfloat16")):
            assert model.dtype == "bfloat16"
            inside: Any = model.model
            assert inside.model.rotary_emb.inv_freq.dtype is torch.float32
        assert model.dtype == "float32"
        assert torch.equal(model.model.model.rotary_emb.inv_freq, rotations)  # type: ignore[union-attr]
    witness = record(there, batches(), settings=QUICK, also=("bfloat16",))
    again: Any = load_folder(folder, dtype="bfloat16")
    assert check(witness, again).passed
    with torch.no_grad():
        again.model.model.rotary_emb.inv_freq.mul_(0.9)
    assert not check(witness, again).passed
