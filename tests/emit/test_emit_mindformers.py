"""MindFormers: keys that exist with their types, batches that close, its own refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from emit_matrix import CONFIG, GOAL, cluster, launches, plain, text

from krzem.errors import GoalError, LayoutError, ModelError
from krzem.layout.layout import Precision
from krzem.model import load_model, model_ids
from krzem.plan.emit import Launch, emit
from krzem.plan.emit.mindformers import TABLE
from krzem.plan.emit.parts import fits, keys_of
from krzem.plan.goal import Goal

KEYS = keys_of(TABLE)
TAKEN = ("deepseek-v3", "qwen3")


def mindformers(layout: str, model: str = "qwen3-32b", goal: Goal = GOAL, **named: str) -> Launch:
    switches = {name.replace("_", "-"): choice for name, choice in named.items()}
    return emit("mindformers", text(layout), goal, load_model(model), cluster("910b:256"),
                CONFIG, 250, switches)  # fmt: skip


@pytest.mark.parametrize("model", model_ids())
def test_keys_exist_with_their_types(model: str) -> None:
    count = 0
    for launch, layout, goal in launches("mindformers", model, "910b", 64):
        wrong = [(f.name, f.value) for f in launch.flags
                 if "${" not in f.value and not fits(f.value, KEYS[f.name])]  # fmt: skip
        assert not wrong
        document = yaml.safe_load(plain(launch)["krzem_mindformers.yaml"])
        cut = document["parallel_config"]
        world = cut["data_parallel"] * cut["model_parallel"] * cut["context_parallel"]
        assert world * cut["pipeline_stage"] == layout.devices
        runner = document["runner_config"]
        batch = runner["batch_size"] * cut["data_parallel"] * cut["micro_batch_num"]
        assert batch * runner["gradient_accumulation_steps"] == goal.global_batch
        assert document["train_dataset"] == document["train_dataset_task"]["dataset_config"]
        offsets = document["model"]["model_config"].get("offset")
        if layout.pp > 1:
            rows = offsets if isinstance(offsets[0], list) else [offsets]
            stages = sum(map(len, rows))
            layers = document["model"]["model_config"]["num_hidden_layers"]
            assert sum(map(sum, rows)) + stages * (layers // stages) == layers
        count += 1
    others = ("deepseek-v3.2", "qwen3.5", "qwen3-next")
    taken = model.startswith(TAKEN) and not model.startswith(others)
    assert (count > 0) == taken


def test_schedules_and_sharding() -> None:
    folded = yaml.safe_load(plain(mindformers("pp=4,dp=64,vpp=2,schedule=zb-v"))[
        "krzem_mindformers.yaml"])  # fmt: skip
    assert folded["parallel"]["pipeline_config"]["pipeline_scheduler"] == "zero_bubble_v"
    assert folded["model"]["model_config"]["pp_interleave_num"] == 2
    third = yaml.safe_load(plain(mindformers("dp=256,zero=3,recompute=full"))[
        "krzem_mindformers.yaml"])  # fmt: skip
    assert third["recompute_config"]["parallel_optimizer_comm_recompute"] is True
    whole = yaml.safe_load(plain(mindformers("dp=256,zero=0"))["krzem_mindformers.yaml"])
    assert whole["parallel"]["enable_parallel_optimizer"] is False


def test_refusals() -> None:
    with pytest.raises(ModelError, match="trains deepseek_v3, qwen3, qwen3_moe"):
        mindformers("dp=256", "llama-3.1-8b")
    with pytest.raises(LayoutError, match="etp=2"):
        mindformers("tp=2,dp=128,ep=8", "deepseek-v3")
    with pytest.raises(LayoutError, match="schedule=dualpipe"):
        mindformers("pp=4,dp=64,schedule=dualpipe")
    with pytest.raises(GoalError, match="choose bf16"):
        mindformers("dp=256", goal=replace(GOAL, precision=Precision.FP8))
