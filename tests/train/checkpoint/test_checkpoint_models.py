"""The trainer's own models: conversion from the config alone, against the running trainer's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tests.train.configs import ALL

from krzem.errors import CheckpointError
from krzem.layout.layout import Layout
from krzem.train.checkpoint import load, read_manifest, save
from krzem.train.checkpoint.command import checkpoint_command
from krzem.train.checkpoint.names import correspondence
from krzem.train.config import model_spec
from krzem.train.engine import Engine
from krzem.train.hf import export_model


def weights(config: dict[str, Any]) -> tuple[Engine, dict[str, torch.Tensor]]:
    """A model whose every tensor is random, and its state as a checkpoint names it."""
    engine = Engine(model_spec(config), Layout(), device=torch.device("cpu"), seed=1)
    for router in engine.routers().values():
        if router.shape.router_bias:
            torch.nn.init.normal_(router.e_score_correction_bias)
    return engine, {f"weight/{n}": t for n, t in engine.stages[0].state_dict().items()}


def files(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def invoke(*arguments: str) -> None:
    done = CliRunner().invoke(checkpoint_command, list(arguments))
    if done.exception is not None:
        raise done.exception


@pytest.mark.parametrize("name", sorted(ALL))
def test_conversion_agrees_with_the_trainers_own_export(name: str, tmp_path: Path) -> None:
    config = ALL[name]
    engine, state = weights(config)
    folder = save(tmp_path / "run", 1, state, meta={}, config=config).folder
    invoke("export", str(folder), str(tmp_path / "hf"), "--dtype", "float32")
    export_model(engine, tmp_path / "own", config, dtype=torch.float32)
    mine, own = files(tmp_path / "hf"), files(tmp_path / "own")
    assert mine.keys() == own.keys()
    assert all(torch.equal(mine[n], own[n]) and mine[n].dtype == own[n].dtype for n in own)

    invoke("import", str(tmp_path / "hf"), str(tmp_path / "back"))
    again = {n: torch.zeros_like(t) for n, t in state.items()}
    load(tmp_path / "back" / "checkpoints" / "step-000000000", again, config=config)
    assert all(torch.equal(again[n], state[n]) for n in state)


@pytest.mark.parametrize("name", sorted(ALL))
def test_moments_have_the_shapes_of_what_is_trained(name: str) -> None:
    pairs = correspondence(ALL[name])
    moments = pairs.of_moments()
    assert pairs.ours.keys() - moments.ours.keys() == pairs.stateless
    assert not any(n.endswith(("e_score_correction_bias", "tid2eid")) for n in moments.ours)


def test_what_a_folder_may_lack_and_what_not(tmp_path: Path) -> None:
    """A router bias that is missing begins at zero; a weight that is missing is an error."""
    config = ALL["deepseek_v3"]
    _, state = weights(config)
    folder = save(tmp_path / "run", 1, state, meta={}, config=config).folder
    invoke("export", str(folder), str(tmp_path / "hf"), "--dtype", "float32")
    tensors = files(tmp_path / "hf")
    biases = [n for n in tensors if n.endswith("e_score_correction_bias")]
    assert biases
    (tmp_path / "less").mkdir()
    (tmp_path / "less" / "config.json").write_text(json.dumps(config))
    kept = {n: t for n, t in tensors.items() if n not in biases}
    save_file(
        {**kept, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)},
        tmp_path / "less" / "model.safetensors",
    )
    invoke("import", str(tmp_path / "less"), str(tmp_path / "back"))
    manifest = read_manifest(tmp_path / "back" / "checkpoints" / "step-000000000")
    ours = next(n for n in manifest.tensors if n.endswith("e_score_correction_bias"))
    target = torch.ones(manifest.tensors[ours].shape)
    load(tmp_path / "back" / "checkpoints" / "step-000000000", {ours: target}, strict=False)
    assert not target.any()
    del kept["model.norm.weight"]
    save_file(kept, tmp_path / "less" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: model\.norm\.weight"):
        invoke("import", str(tmp_path / "less"), str(tmp_path / "other"))
