"""Weights out to Hugging Face folders and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.configs import ALL

from krzem.errors import CheckpointError, DataError
from krzem.layout.layout import Layout
from krzem.train.config import model_spec
from krzem.train.engine import Engine
from krzem.train.hf import export_model, import_model
from krzem.train.hf.writing import tensor_places

FLOAT = torch.float32


def engine(config: dict[str, Any], seed: int = 0) -> Engine:
    made = Engine(model_spec(config), Layout(), device=torch.device("cpu"), seed=seed)
    for router in made.routers().values():
        if router.shape.router_bias:
            torch.nn.init.normal_(router.e_score_correction_bias)
    return made


def same(a: Engine, b: Engine) -> bool:
    left, right = a.stages[0].state_dict(), b.stages[0].state_dict()
    return all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("name", sorted(ALL))
def test_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    source, target = engine(ALL[name]), engine(ALL[name], seed=1)
    assert not same(source, target)
    export_model(source, tmp_path / "out", ALL[name], dtype=FLOAT, shard_bytes=40_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert import_model(target, tmp_path / "out") == ()
    assert same(source, target)


@pytest.mark.parametrize("name", sorted(ALL))
def test_transformers_loads_what_is_exported(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = engine(ALL[name])
    export_model(source, tmp_path / "out", ALL[name], dtype=FLOAT)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=FLOAT, attn_implementation="eager"
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    tokens = torch.randint(0, 96, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            source.stages[0].logits(tokens), loaded(tokens).logits, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("name", sorted(ALL))
def test_what_transformers_saves_is_imported(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = engine(ALL[name])
    export_model(source, tmp_path / "out", ALL[name], dtype=FLOAT)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=FLOAT)
    loaded.save_pretrained(tmp_path / "theirs")
    target = engine(ALL[name], seed=1)
    absent = import_model(target, tmp_path / "theirs")
    assert absent == (("mtp.0",) if target.spec.arch.mtp_layers else ())
    left, right = source.stages[0].state_dict(), target.stages[0].state_dict()
    apart = [n for n in left if not torch.equal(left[n], right[n])]
    assert all(n.startswith("mtp.") for n in apart), apart


def test_bfloat16_is_the_default_and_biases_keep_their_type(tmp_path: Path) -> None:
    export_model(engine(ALL["deepseek_v4"]), tmp_path / "out", ALL["deepseek_v4"])
    (file,) = (tmp_path / "out").glob("*.safetensors")
    places = tensor_places(file)
    assert places["layers.0.attn.wq_a.weight"].dtype is torch.bfloat16
    assert places["layers.1.ffn.gate.bias"].dtype is FLOAT
    assert places["layers.0.ffn.gate.tid2eid"].dtype is torch.int64
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    export_model(engine(ALL["qwen3"]), tmp_path / "out", ALL["qwen3"])
    with pytest.raises(CheckpointError, match=r"does not fit the model of its config: missing: "):
        import_model(engine(ALL["deepseek_v3"]), tmp_path / "out")
    wider = {**ALL["qwen3"], "intermediate_size": 64}
    with pytest.raises(CheckpointError, match=r"is \[48, 32\] there, \[64, 32\] by the config"):
        import_model(engine(wider), tmp_path / "out")
    with pytest.raises(DataError, match="exists"):
        export_model(engine(ALL["qwen3"]), tmp_path / "out", ALL["qwen3"])


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    export_model(engine(ALL["qwen3"]), tmp_path / "out", ALL["qwen3"])
    (file,) = (tmp_path / "out").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cut short"):
        import_model(engine(ALL["qwen3"]), tmp_path / "out")
    file.write_bytes(b"\xff" * 20)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        import_model(engine(ALL["qwen3"]), tmp_path / "out")
