"""torchtitan: a recipe of known fields, and the krzem plan file beside it."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
from emit_cases import GOAL, LAYOUTS, cluster

from krzem.errors import GoalError, KrzemError, LayoutError, ModelError
from krzem.layout.layout import Layout, Optimizer, Precision, parse_layout
from krzem.model import load_model, model_ids
from krzem.plan.emit import Launch, emit, render
from krzem.plan.emit.parts import keys_of
from krzem.plan.goal import Goal

KNOWN = frozenset(keys_of("torchtitan-0.3.0")) | {"recipe"}
BUILT = {
    "llama-3.1-8b", "llama-3.1-70b", "llama-3.1-405b", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b",
    "qwen3-8b", "qwen3-14b", "qwen3-32b", "qwen3-30b-a3b", "qwen3-235b-a22b", "deepseek-v3",
    "gpt-oss-20b", "gpt-oss-120b",
}  # fmt: skip


def titan(text: str, goal: Goal = GOAL, model: str = "deepseek-v3") -> Launch:
    return emit("torchtitan", parse_layout(text), goal, load_model(model), cluster())


def values(launch: Launch) -> dict[str, str]:
    return {flag.name: flag.value for flag in launch.flags}


@pytest.mark.parametrize("model", model_ids())
def test_every_name_is_a_field(model: str) -> None:
    arch, emitted = load_model(model), 0
    for layout in LAYOUTS:
        fitting = layout if arch.is_moe else replace(layout, ep=1, etp=1)
        try:
            launch = emit("torchtitan", fitting, GOAL, arch, cluster())
        except ModelError:
            assert model not in BUILT
            return
        except KrzemError:
            continue
        assert {flag.name for flag in launch.flags} <= KNOWN
        body = render(launch).partition("<<'PYTHON'\n")[2].partition("\nPYTHON")[0]
        compile(body, "recipe", "exec")
        emitted += 1
    assert emitted
    assert model in BUILT


def test_numbers_come_back() -> None:
    got = values(titan("tp=2,pp=8,dp=128,ep=32,mbs=2,zero=3,vpp=2,schedule=interleaved"))
    assert got["parallelism.tensor_parallel_degree"] == "2"
    assert got["parallelism.pipeline_parallel_degree"] == "8"
    assert got["parallelism.expert_parallel_degree"] == "32"
    assert got["parallelism.data_parallel_shard_degree"] == "128"
    assert got["parallelism.fsdp_reshard_after_forward"] == '"always"'
    assert got["training.local_batch_size"] == "120"
    assert got["parallelism.pipeline_parallel_microbatch_size"] == "2"
    assert got["parallelism.pipeline_parallel_schedule"] == '"Interleaved1F1B"'
    counts = eval(got["parallelism.module_fqns_per_model_part"].removeprefix("stages"))
    assert len(counts) == 16
    assert sum(counts) == 61


def test_stage_names_cover_the_model() -> None:
    launch = titan("pp=4,dp=64", model="llama-3.1-8b")
    code = "\n".join(launch.preamble)
    scope: dict[str, object] = {}
    exec(code[code.index("def stages") :], scope)
    names = eval(values(launch)["parallelism.module_fqns_per_model_part"], scope)
    flat = [name for stage in names for name in stage]
    expected = ["tok_embeddings", *[f"layers.{i}" for i in range(32)], "norm", "lm_head"]
    assert flat == expected


@pytest.mark.parametrize(
    ("text", "replicas", "shards"),
    [("dp=256,zero=0", 256, 1), ("dp=256,zero=3", 1, 256), ("dp=256,cp=4,zero=3,shard=64", 16, 16)],
)
def test_sharding_groups(text: str, replicas: int, shards: int) -> None:
    got = values(titan(text, model="llama-3.1-8b"))
    assert got["parallelism.data_parallel_replicate_degree"] == str(replicas)
    assert got["parallelism.data_parallel_shard_degree"] == str(shards)


def test_multi_token_prediction_only_without_pipeline() -> None:
    alone = values(titan("dp=256,ep=8,zero=3"))
    assert "num_mtp_layers=1" in alone["model_spec"]
    assert alone["loss"].startswith("MTPLoss")
    piped = titan("pp=2,dp=128,ep=8,zero=3")
    assert "loss" not in values(piped)
    assert any("multi-token prediction is left out" in note for note in piped.notes)


def test_eight_bit_converters() -> None:
    got = values(titan("pp=2,dp=128,ep=8", replace(GOAL, precision=Precision.FP8)))
    assert "Float8GroupedExpertsConverter" in got["model_spec"]
    dense = values(titan("dp=256", replace(GOAL, precision=Precision.MXFP8), "qwen3-8b"))
    assert "MXFP8LinearConverter" in dense["model_spec"]
    assert "Grouped" not in dense["model_spec"]


def test_substitutes_are_said() -> None:
    notes = titan("pp=8,dp=64,schedule=dualpipe").notes
    assert any("DualPipeV" in note for note in notes)
    notes = titan("pp=8,dp=64,schedule=zb-h1,zero=1").notes
    assert any("1F1B" in note for note in notes)
    assert any("ZeRO 1 is emitted as ZeRO 2" in note for note in notes)
    assert any("fp32" in note for note in notes)
    ring = titan("dp=64,cp=2,recompute=full,rlayers=3").notes
    assert any("ring" in note for note in ring)
    assert any("all layers, not 3" in note for note in ring)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tp=4,dp=64,ep=8,etp=4", "etp=1"),
        ("dp=30,ep=4", "30 \\* 1 \\* 1 = 30"),
        ("pp=8,dp=64,schedule=zb-v,recompute=modules", "recompute=none"),
        ("dp=256,cp=4,zero=3,shard=6", "multiple of cp"),
        ("dp=256,zero=3,shard=96", "do not divide dp"),
        ("pp=32,dp=8,vpp=2,schedule=interleaved", "empty"),
    ],
)
def test_impossible_layouts_are_refused(text: str, says: str) -> None:
    with pytest.raises(LayoutError, match=says):
        titan(text, replace(GOAL, global_batch=15_360))


def test_other_refusals() -> None:
    with pytest.raises(ModelError, match="384 experts"):
        titan("dp=256", model="kimi-k2")
    with pytest.raises(GoalError, match="Muon"):
        titan("dp=256", replace(GOAL, optimizer=Optimizer.MUON))
    with pytest.raises(GoalError, match="fp8-block"):
        titan("dp=256", replace(GOAL, precision=Precision.FP8_BLOCK))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_plan_file_reads_back(layout: Layout) -> None:
    goal = replace(GOAL, deadline_days=60.0, budget_usd=5e6)
    text = render(emit("krzem", layout, goal, load_model("deepseek-v3"), cluster()))
    tables = tomllib.loads(text)
    assert parse_layout(tables["layout"]["text"]) == layout
    assert tables["layout"]["devices"] == layout.devices
    assert tables["goal"]["tokens"] == goal.tokens
    assert tables["goal"]["states"]["moments"] == goal.states.moments
    assert tables["goal"]["budget_usd"] == 5e6
    assert tables["model"]["name"] == "deepseek-v3"
