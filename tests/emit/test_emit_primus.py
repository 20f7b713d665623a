"""Primus: keys that exist with their types, arithmetic that closes, presets overruled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from emit_matrix import CONFIG, GOAL, cluster, every_switch, launches, own_code, text, written

from krzem.errors import GoalError, LayoutError, ModelError
from krzem.layout.layout import Layout, Precision, StateBytes
from krzem.model import load_model, model_ids
from krzem.plan.emit import Launch, emit
from krzem.plan.emit.parts import fits, keys_of
from krzem.plan.emit.primus import TABLE
from krzem.plan.goal import Goal

KEYS = keys_of(TABLE)
PREFIX = "modules.pre_trainer.overrides."
REFUSED = ("pangu", "gpt-oss")


def primus(layout: str, model: str = "deepseek-v3", goal: Goal = GOAL, **switches: str) -> Launch:
    named = {name.replace("_", "-"): choice for name, choice in switches.items()}
    return emit(
        "primus", text(layout), goal, load_model(model), cluster("mi300x:256"), CONFIG, 250, named
    )


def overrides(launch: Launch) -> dict[str, str]:
    flags = launch.parts[0].sections[1:]
    return {f.name.removeprefix(PREFIX): f.value for s in flags for f in s.flags}


@pytest.mark.parametrize("chip", ["mi300x", "mi355x"])
@pytest.mark.parametrize("model", model_ids())
def test_keys_exist_with_their_types(model: str, chip: str) -> None:
    count = 0
    for launch, layout, goal in launches("primus", model, chip, 64):
        got = overrides(launch)
        wrong = [n for n, v in got.items() if not fits(v, KEYS[n])]
        assert not wrong, [(n, got[n], KEYS[n].kind) for n in wrong]
        assert len(got) == sum(len(s.flags) for s in launch.parts[0].sections[1:])
        _closes(got, launch, layout, goal)
        count += 1
    assert (count == 0) == (model.startswith(REFUSED) or own_code(model))


def _closes(got: dict[str, str], launch: Launch, layout: Layout, goal: Goal) -> None:
    shell = {flag.name: flag.value for flag in launch.environment}
    world = int(shell["NNODES"]) * int(shell["GPUS_PER_NODE"])
    cut = [f"{n}_parallel_size" for n in ("tensor_model", "pipeline_model", "context")]
    dp = world
    for name in cut:
        dp, rest = divmod(dp, int(got[name]))
        assert rest == 0
    assert (world, dp) == (layout.devices, layout.dp)
    per_step = int(got["micro_batch_size"]) * dp
    assert int(got["global_batch_size"]) % per_step == 0
    tokens = int(got["train_iters"]) * int(got["global_batch_size"]) * int(got["seq_length"])
    assert goal.tokens <= tokens < goal.tokens + goal.tokens_per_step
    if layout.zero == 3 and layout.ep == 1:
        assert got["use_distributed_optimizer"] == "false"


def test_the_script_writes_what_yaml_reads(tmp_path: Path) -> None:
    launch = primus("tp=2,pp=4,dp=32,ep=8,vpp=2,schedule=interleaved", loss="fused")
    document = yaml.safe_load(written(launch, tmp_path)["krzem_primus.yaml"])
    module = document["modules"]["pre_trainer"]
    assert module["framework"] == "megatron"
    assert isinstance(module["overrides"]["norm_epsilon"], float)
    assert module["overrides"]["tensor_model_parallel_size"] == 2
    assert module["overrides"]["lr"] == 1
    assert not module["overrides"]["finetune"]


def test_every_switch_is_written() -> None:
    def make(switches: dict[str, str]) -> Launch:
        layout = "tp=2,pp=2,dp=64,ep=8,vpp=2,schedule=interleaved"
        fp8 = replace(GOAL, precision=Precision.FP8)
        return primus(layout, goal=fp8, **{n.replace("-", "_"): c for n, c in switches.items()})

    plain = overrides(primus("tp=2,pp=2,dp=64,ep=8,vpp=2,schedule=interleaved"))
    taken: dict[str, set[str]] = {}
    for switch, choice, launch in every_switch(make):
        got = overrides(launch)
        assert all(fits(v, KEYS[n]) for n, v in got.items())
        named = [f for s in launch.parts[0].sections for f in s.flags if switch in f.why]
        assert named or (switch, choice) == ("grad-sync", "last")
        taken.setdefault(switch, set()).add(choice)
    lacks = {"dispatcher": "hybridep", "cuda-graphs": "full", "fp8-scaling": "row",
             "grad-sync": "every", "loss": "chunked", "partition-activations": "on"}  # fmt: skip
    for switch, choice in lacks.items():
        assert choice not in taken[switch]
    assert len(taken) == 16
    assert "overlap_grad_reduce" not in plain


def test_presets_are_overruled() -> None:
    gpt = overrides(primus("tp=8,dp=32", "gpt3-175b"))
    assert (gpt["swiglu"], gpt["add_bias_linear"]) == ("false", "true")
    assert gpt["position_embedding_type"] == '"learned_absolute"'
    tied = overrides(primus("dp=256", "qwen3-4b"))
    assert tied["untie_embeddings_and_output_weights"] == "false"
    plain = overrides(primus("tp=2,dp=128,zero=0", "llama-3.1-8b"))
    assert plain["use_distributed_optimizer"] == "false"
    assert plain["sequence_parallel"] == "true"


def test_fsdp_is_pytorchs_for_dense_models_and_megatrons_for_experts() -> None:
    dense = overrides(primus("dp=256,zero=3,shard=8", "llama-3.1-70b"))
    assert dense["use_torch_fsdp2"] == "true"
    assert dense["data_parallel_replicate_degree"] == "32"
    assert dense["ckpt_format"] == '"torch_dcp"'
    mixture = overrides(primus("dp=256,zero=3,ep=8"))
    assert mixture["data_parallel_sharding_strategy"] == '"optim_grads_params"'


def test_zero_bubble_is_its_own_runtime() -> None:
    got = overrides(primus("pp=8,dp=32,schedule=zb-h1", "llama-3.1-70b"))
    assert got["pp_algorithm"] == '"zero-bubble"'
    folded = overrides(primus("pp=8,dp=32,schedule=zb-v", "llama-3.1-70b"))
    assert folded["pp_algorithm"] == '"zbv-formatted"'
    assert folded["num_layers_per_virtual_pipeline_stage"] == "5"
    uneven = overrides(primus("pp=8,dp=32,ep=8,schedule=zb-v"))["pipeline_model_parallel_layout"]
    assert uneven.startswith('"Et')
    assert uneven.endswith('mL"')


def test_deepseek_v4_has_its_own_model() -> None:
    launch = primus("dp=256,ep=8", "deepseek-v4-pro")
    got = overrides(launch)
    ratios = yaml.safe_load(yaml.safe_load(got["compress_ratios"]))
    assert len(ratios) == int(got["num_layers"]) + int(got["mtp_num_layers"])
    assert (got["hc_mult"], got["num_hash_layers"], got["o_groups"]) == ("4", "3", "16")
    assert launch.parts[0].sections[0].flags[-1].value == '"deepseek_v4_base.yaml"'


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ("pp=2,dp=128,zero=3", "plan with zero=1"),
        ("dp=256,zero=2,offload=1", "zero=1"),
        ("tp=1,dp=85,cp=3", "whole number of nodes"),
    ],
)
def test_impossible_layouts_are_refused(layout: str, says: str) -> None:
    goal = replace(GOAL, global_batch=85 * 16)
    with pytest.raises(LayoutError, match=says):
        primus(layout, "llama-3.1-70b", goal if "85" in layout else GOAL)


def test_small_moments_belong_to_the_sharded_optimizer() -> None:
    small = replace(GOAL, states=StateBytes(moments=4))
    assert overrides(primus("dp=256,zero=1", goal=small))["exp_avg_dtype"] == '"bf16"'
    for layout in ("dp=256,zero=0", "dp=256,zero=3"):
        with pytest.raises(LayoutError, match="sharded optimizer"):
            primus(layout, "llama-3.1-8b", small)


def test_other_refusals() -> None:
    with pytest.raises(GoalError, match="NVFP4"):
        primus("dp=256", goal=replace(GOAL, precision=Precision.NVFP4))
    with pytest.raises(ModelError, match="sliding windows"):
        primus("dp=256", "gpt-oss-20b")
    with pytest.raises(GoalError, match="overlap-a2a=on without model chunks"):
        primus("pp=8,dp=32,ep=8", overlap_a2a="on")


def test_another_version_stops_the_script_with_one_sentence() -> None:
    (program,) = primus("dp=256").installed
    assert (program.name, program.version) == ("Primus", "26.5")
