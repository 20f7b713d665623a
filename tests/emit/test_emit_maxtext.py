"""MaxText: keys that exist with their types, a mesh that closes, its validation's refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from emit_matrix import CONFIG, GOAL, cluster, every_switch, launches, text, written

from krzem.errors import GoalError, LayoutError, ModelError
from krzem.layout.layout import Layout, Optimizer, Precision, StateBytes
from krzem.model import load_model, model_ids
from krzem.plan.emit import Launch, emit
from krzem.plan.emit.maxtext import TABLE
from krzem.plan.emit.parts import fits, keys_of
from krzem.plan.goal import Goal

KEYS = keys_of(TABLE)
REFUSED = ("pangu", "glm-4.5")


def maxtext(
    layout: str, model: str = "llama-3.1-70b", goal: Goal = GOAL, on: str = "v5p:256", **named: str
) -> Launch:
    switches = {name.replace("_", "-"): choice for name, choice in named.items()}
    arch = load_model(model)
    return emit("maxtext", text(layout), goal, arch, cluster(on), CONFIG, 250, switches)


def values(launch: Launch) -> dict[str, str]:
    return {flag.name: flag.value for flag in launch.flags}


@pytest.mark.parametrize("chip", ["v5p", "v6e", "h100", "mi355x"])
@pytest.mark.parametrize("model", model_ids())
def test_keys_exist_with_their_types(model: str, chip: str) -> None:
    count = 0
    for launch, layout, goal in launches("maxtext", model, chip, 64):
        got = values(launch)
        wrong = [n for n, v in got.items() if not fits(v, KEYS[n])]
        assert not wrong, [(n, got[n], KEYS[n].kind) for n in wrong]
        assert len(got) == len(launch.flags)
        _closes(got, layout, goal)
        count += 1
    assert count == 0 or not model.startswith(REFUSED)


def _closes(got: dict[str, str], layout: Layout, goal: Goal) -> None:
    near, far = (
        [int(v) for n, v in got.items() if n.startswith(s) and n.endswith("_parallelism")]
        for s in ("ici_", "dcn_")
    )
    assert math.prod(near) * int(got["num_slices"]) == layout.devices
    assert math.prod(far) == int(got["num_slices"])
    batch = float(got["per_device_batch_size"]) * layout.devices
    batch *= int(got["gradient_accumulation_steps"])
    assert batch == pytest.approx(goal.global_batch)
    tokens = int(got["steps"]) * goal.tokens_per_step
    assert goal.tokens <= tokens < goal.tokens + goal.tokens_per_step
    if layout.pp > 1:
        assert int(got["num_pipeline_microbatches"]) % layout.pp == 0
    degrees = [int(got[f"{s}_{n}_parallelism"]) for s in ("ici", "dcn") for n in ("expert",)]
    assert math.prod(degrees) == layout.ep


def test_the_script_writes_what_yaml_reads(tmp_path: Path) -> None:
    document = yaml.safe_load(written(maxtext("dp=256,zero=3"), tmp_path)["krzem_maxtext.yml"])
    assert document["base_config"] == "base.yml"
    assert (document["ici_fsdp_parallelism"], document["dcn_fsdp_parallelism"]) == (256, 1)
    assert isinstance(document["normalization_layer_epsilon"], float)
    assert set(document) <= set(KEYS)


def test_slices_are_nodes_on_gpus() -> None:
    got = values(maxtext("tp=4,dp=64,zero=3", on="h100:256"))
    assert (got["num_slices"], got["hardware"]) == ("32", '"gpu"')
    assert (got["ici_tensor_sequence_parallelism"], got["ici_fsdp_parallelism"]) == ("4", "2")
    assert got["dcn_fsdp_parallelism"] == "32"


def test_every_switch_is_written() -> None:
    taken: dict[str, set[str]] = {}
    for on in ("v5p:256", "h100:256"):

        def make(switches: dict[str, str], on: str = on) -> Launch:
            goal = replace(GOAL, precision=Precision.FP8)
            named = {n.replace("-", "_"): c for n, c in switches.items()}
            return maxtext("dp=256,zero=3,ep=8", "deepseek-v3", goal, on, **named)

        for switch, choice, launch in every_switch(make):
            assert all(fits(v, KEYS[n]) for n, v in values(launch).items())
            taken.setdefault(f"{on[0]} {switch}", set()).add(choice)
    assert taken["v cuda-graphs"] == {"full"}
    assert taken["h cuda-graphs"] == {"full"}
    assert taken["v overlap-a2a"] == {"off", "on"}
    assert taken["h dispatcher"] == {"alltoall", "allgather"}
    assert taken["v compile"] == {"on"}
    assert taken["v fp8-scaling"] == {"tensor"}
    flags = {f.name: f.value for f in maxtext("dp=256,zero=3", on="h100:256",
                                              overlap_grad_reduce="on").environment}  # fmt: skip
    assert flags["XLA_FLAGS"] == "--xla_gpu_enable_latency_hiding_scheduler=true"


def test_blocks_follow_the_structure() -> None:
    blocks = {
        "llama-3.1-8b": "llama2", "qwen3-8b": "qwen3", "qwen3-235b-a22b": "qwen3_moe",
        "mixtral-8x7b": "mixtral", "deepseek-v3": "deepseek", "kimi-k2": "deepseek",
        "glm-5": "deepseek", "deepseek-v4-pro": "deepseek4", "gpt-oss-120b": "gpt_oss",
        "gpt3-175b": "gpt3",
    }  # fmt: skip
    for model, block in blocks.items():
        goal = replace(GOAL, sequence=2048)
        assert values(maxtext("dp=256,zero=3", model, goal))["decoder_block"] == f'"{block}"'
    with pytest.raises(ModelError, match="no decoder block"):
        maxtext("dp=256,zero=3", "pangu-ultra-135b")


def test_states_follow_types() -> None:
    half = replace(GOAL, states=StateBytes(weight=2, gradient=2, master=0, moments=4))
    got = values(maxtext("dp=256,zero=3", goal=half))
    names = ("weight_dtype", "grad_dtype", "mu_dtype")
    assert [got[n] for n in names] == ['"bfloat16"'] * 3
    with pytest.raises(GoalError, match="for the first"):
        maxtext("dp=256,zero=3", goal=replace(GOAL, states=StateBytes(moments=2)))


@pytest.mark.parametrize(
    ("layout", "model", "says"),
    [
        ("dp=256,zero=2", "llama-3.1-70b", "zero=1 or zero=3"),
        ("pp=4,dp=64,zero=3,schedule=zb-v,vpp=2", "llama-3.1-70b", "circular"),
        ("tp=8,dp=32,zero=3,ep=4,etp=1", "deepseek-v3", "etp=8"),
        ("dp=128,cp=2,zero=3,cpkind=ring", "deepseek-v3", "multi-token"),
        ("dp=128,cp=2,zero=3,cpkind=ring", "kimi-k2", "block deepseek"),
        ("dp=12,zero=3", "llama-3.1-70b", "does not fill slices"),
    ],
)
def test_impossible_layouts_are_refused(layout: str, model: str, says: str) -> None:
    goal = replace(GOAL, global_batch=768)
    with pytest.raises(LayoutError, match=says):
        maxtext(layout, model, goal, "h100:256" if "dp=12," in layout else "v5p:256")


def test_other_refusals() -> None:
    with pytest.raises(GoalError, match="Muon"):
        maxtext("dp=256,zero=3", "mixtral-8x7b",
                replace(GOAL, optimizer=Optimizer.MUON, states=StateBytes(moments=4)))  # fmt: skip
    with pytest.raises(GoalError, match="choose from"):
        maxtext("dp=256,zero=3", goal=replace(GOAL, precision=Precision.FP8_BLOCK))
    with pytest.raises(GoalError, match="overlap-a2a=on where"):
        maxtext("dp=256,zero=3", overlap_a2a="on")


def test_kernels_follow_what_attention_needs() -> None:
    ring = values(maxtext("dp=128,cp=2,zero=3,cpkind=ring"))
    assert (ring["attention"], ring["use_tokamax_splash"]) == ('"flash"', "true")
    sparse = values(maxtext("dp=256,ep=8,zero=3", "deepseek-v3.2", on="h100:256"))
    assert (sparse["attention"], sparse["use_tokamax_splash"]) == ('"dot_product"', "false")
    with pytest.raises(GoalError, match="attention=eager with ring"):
        maxtext("dp=128,cp=2,zero=3,cpkind=ring", attention="eager")
    with pytest.raises(GoalError, match="attention=fused for sparse"):
        maxtext("dp=256,ep=8,zero=3", "glm-5", on="h100:256", attention="fused")
