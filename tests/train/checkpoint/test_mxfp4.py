"""GPT-OSS as it is published: experts in MXFP4, read as the class of transformers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.train.configs import ALL
from tests.train.hf.test_roundtrip import engine

from krzem.errors import CheckpointError
from krzem.train.checkpoint.published import SafetensorsFolder
from krzem.train.hf import export_model, import_model

library = pytest.importorskip("safetensors.torch")
CONFIG = {"quantization_config": {"quant_method": "mxfp4"}}
NAME = "mlp.experts.gate_up_proj"


def packed(seed: int = 0, experts: int = 2, rows: int = 6, groups: int = 3) -> dict[str, Any]:
    """Random blocks and scales, none of them out of range."""
    generator = torch.Generator().manual_seed(seed)
    shape = (experts, rows, groups)
    blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 140, shape, generator=generator, dtype=torch.uint8)
    return {f"{NAME}_blocks": blocks, f"{NAME}_scales": scales}


def folder(path: Path, tensors: dict[str, Any]) -> SafetensorsFolder:
    library.save_file(tensors, path / "model.safetensors")
    return SafetensorsFolder(path, CONFIG)


def test_values_are_those_of_transformers(tmp_path: Path) -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    tensors = packed()
    source = folder(tmp_path, tensors)
    assert source.tensors() == {NAME: ("float32", (2, 96, 6))}
    expected = mxfp4.convert_moe_packed_tensors(*tensors.values(), dtype=torch.float32)
    assert torch.equal(source.read(NAME, (0, 0, 0), (2, 96, 6)), expected)


@given(st.data())
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_box_is_that_of_the_whole(tmp_path: Path, data: st.DataObject) -> None:
    source = folder(tmp_path, packed())
    whole = (2, 96, 6)
    at = tuple(data.draw(st.integers(0, n - 1)) for n in whole)
    shape = tuple(data.draw(st.integers(1, n - a)) for n, a in zip(whole, at, strict=True))
    box = tuple(slice(a, a + n) for a, n in zip(at, shape, strict=True))
    assert torch.equal(source.read(NAME, at, shape), source.read(NAME, (0, 0, 0), whole)[box])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop(f"{NAME}_scales"), "its scale is missing"),
        (
            lambda t: t.update({f"{NAME}_scales": t[f"{NAME}_scales"][:, :-1].clone()}),
            "needs uint8",
        ),
        (lambda t: t.update({f"{NAME}_scales": t[f"{NAME}_scales"].float()}), "needs uint8"),
        (
            lambda t: t.update({f"{NAME}_blocks": t[f"{NAME}_blocks"][..., :8].clone()}),
            "32 numbers",
        ),
        (lambda t: t.update({NAME: torch.zeros(2, 96, 6)}), "which counts"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: Any, told: str, tmp_path: Path) -> None:
    tensors = packed()
    change(tensors)
    with pytest.raises(CheckpointError, match=told) as error:
        folder(tmp_path, tensors)
    assert NAME in str(error.value)


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    tensors = packed()
    tensors[f"{NAME}_scales"][1, 2, 0] = 255  # NaN among exponents
    with pytest.raises(CheckpointError, match="_scales holds values that are not finite"):
        folder(tmp_path, tensors).read(NAME, (0, 0, 0), (2, 96, 6))


def test_a_model_is_imported_from_it(tmp_path: Path) -> None:
    config = {**ALL["gpt_oss"], "hidden_size": 64, "intermediate_size": 32}
    made = engine(config)
    export_model(made, tmp_path / "out", config, dtype=torch.float32)
    (file,) = (tmp_path / "out").glob("*.safetensors")
    tensors = library.load_file(file)
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, rows = tensors.pop(name).shape
        parts = packed(len(name), experts, rows, inputs // 32)
        tensors |= {f"{name}{n.removeprefix(NAME)}": t for n, t in parts.items()}
    library.save_file(tensors, file)
    (tmp_path / "out" / "model.safetensors.index.json").unlink()
    (tmp_path / "out" / "config.json").write_text(
        '{"quantization_config": {"quant_method": "mxfp4"}}'
    )
    target = engine(config, seed=1)
    assert import_model(target, tmp_path / "out") == ()
    name = "layers.1.mlp.experts.down_proj"
    source = SafetensorsFolder(tmp_path / "out", CONFIG)
    read = source.read(f"model.{name}", (0, 0, 0), source.tensors()[f"model.{name}"][1])
    assert torch.equal(target.stages[0].state_dict()[name], read)
