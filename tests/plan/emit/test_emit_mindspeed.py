"""MindSpeed-LLM: its own words where it has them, Megatron-LM's elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
from emit_cases import CONFIG, GOAL, LAYOUTS, cluster
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import GoalError, KrzemError, LayoutError, ModelError
from krzem.layout.layout import Optimizer, Precision, StateBytes, parse_layout
from krzem.model import load_model, model_ids
from krzem.plan.emit import Launch, emit
from krzem.plan.emit.mindspeed import _padding
from krzem.plan.emit.parts import keys_of
from krzem.plan.goal import Goal

KEYS = keys_of("mindspeed-llm-26.1.0")
DESTINATIONS = {
    "--disable-bias-linear": "add_bias_linear",
    "--no-gradient-accumulation-fusion": "gradient_accumulation_fusion",
    "--no-masked-softmax-fusion": "masked_softmax_fusion",
    "--no-rope-fusion": "apply_rope_fusion",
    "--fp8-format": "fp8",
    "--use-mcore-models": "deprecated_use_mcore_models",
}
"""Options whose name is not that of what they set."""


def known(option: str) -> bool:
    """Whether the engine's own sources register ``option``."""
    return DESTINATIONS.get(option, option.lstrip("-").replace("-", "_")) in KEYS


def mindspeed(text: str, goal: Goal = GOAL, model: str = "deepseek-v3") -> Launch:
    nodes = cluster(family="huawei-ascend-910c", per_node=16)
    return emit("mindspeed-llm", parse_layout(text), goal, load_model(model), nodes, CONFIG)


def values(launch: Launch) -> dict[str, str]:
    return {flag.name: flag.value for flag in launch.flags}


@pytest.mark.parametrize("model", model_ids())
def test_every_name_was_read_somewhere(model: str) -> None:
    arch = load_model(model)
    for layout in LAYOUTS:
        fitting = layout if arch.is_moe else replace(layout, ep=1, etp=1)
        try:
            launch = emit("mindspeed-llm", fitting, GOAL, arch, cluster(), CONFIG)
        except KrzemError:
            continue
        names = [flag.name for flag in launch.flags]
        assert not [name for name in names if not known(name)]
        assert len(names) == len(set(names))


def test_dualpipev_of_deepseek_v3_is_padded_like_the_published_script() -> None:
    """64 layers of which three are empty, on 8 ranks of 2 chunks."""
    launch = mindspeed("tp=1,pp=8,dp=64,ep=64,schedule=dualpipev,vpp=2")
    got = values(launch)
    assert got["--num-layers"] == "64"
    assert len(got["--noop-layers"].split(",")) == 3
    assert got["--schedules-method"] == "dualpipev"
    assert "--moe-fb-overlap" in got
    assert not {"--overlap-grad-reduce", "--overlap-param-gather"} & got.keys()
    assert got["--first-k-dense-replace"] == "3"
    assert not any("Emitted instead" in note for note in launch.notes)


@given(layers=st.integers(8, 130), pp=st.sampled_from([2, 4, 8]), vpp=st.integers(2, 4))
def test_empty_layers_fill_equal_chunks(layers: int, pp: int, vpp: int) -> None:
    layout = parse_layout(f"pp={pp},vpp={vpp},schedule=interleaved")
    padded, noops = _padding(layers, layout)
    assert padded - len(noops) == layers
    assert padded % (pp * vpp) == 0
    assert len(set(noops)) == len(noops)
    assert all(0 <= index < padded for index in noops)
    assert padded - layers < pp * vpp + vpp  # at most one per chunk, ends apart


def test_plain_pipeline_lists_its_stages() -> None:
    got = values(mindspeed("pp=16,dp=128,ep=64"))
    stages = [int(count) for count in got["--num-layer-list"].split(",")]
    assert len(stages) == 16
    assert sum(stages) == int(got["--num-layers"]) == 61


@pytest.mark.parametrize(
    ("kind", "algorithm"), [("ring", "megatron_cp_algo"), ("a2a", "ulysses_cp_algo")]
)
def test_context_parallel_has_its_own_names(kind: str, algorithm: str) -> None:
    got = values(mindspeed(f"dp=128,cp=2,cpkind={kind}"))
    assert got["--context-parallel-algo"] == algorithm
    assert "--cp-comm-type" not in got


def test_sparse_attention() -> None:
    got = values(mindspeed("dp=128,cp=2,cpkind=allgather,ep=8", model="deepseek-v3.2"))
    assert got["--context-parallel-algo"] == "kvallgather_cp_algo"
    assert (got["--index-topk"], got["--index-n-heads"]) == ("2048", "64")
    assert not any(name.startswith("--dsa") for name in got)


def test_recomputation_and_offload() -> None:
    parts = values(mindspeed("pp=4,dp=64,recompute=modules,offload=1"))
    assert {"--recompute-norm", "--recompute-activation-function", "--swap-optimizer"} <= set(parts)
    block = values(mindspeed("pp=4,dp=64,vpp=2,schedule=interleaved,recompute=full,rlayers=5"))
    assert block["--recompute-num-layers"] == "5"
    assert "--enable-recompute-layers-per-pp-rank" in block


@pytest.mark.parametrize(
    ("asked", "instead"),
    [("dualpipe", "dualpipev"), ("zb-v", "interleaved"), ("zb-h1", "1f1b")],
)
def test_missing_schedules_are_replaced_and_said(asked: str, instead: str) -> None:
    notes = mindspeed(f"pp=8,dp=64,ep=8,schedule={asked}").notes
    assert any(f"no {asked} schedule" in note and f"schedule={instead}" in note for note in notes)


@pytest.mark.parametrize(
    ("text", "goal", "says"),
    [
        ("dp=256,zero=3", GOAL, "plan with zero=1"),
        ("dp=256,shard=8", GOAL, "shard = 8"),
        ("pp=8,dp=64,cp=2,schedule=dualpipev,vpp=2", GOAL, "cp=1"),
        ("pp=8,dp=64,schedule=dualpipev,vpp=2", replace(GOAL, global_batch=640), "2 \\* pp - 1"),
        ("dp=128,cp=2,cpkind=allgather", GOAL, "ring or a2a"),
    ],
)
def test_impossible_layouts_are_refused(text: str, goal: Goal, says: str) -> None:
    with pytest.raises(LayoutError, match=says):
        mindspeed(text, goal)


def test_other_refusals() -> None:
    with pytest.raises(ModelError, match="sinks"):
        mindspeed("dp=256", model="gpt-oss-120b")
    with pytest.raises(LayoutError, match="tied"):
        mindspeed("pp=2,dp=64,schedule=dualpipev,vpp=2", model="qwen3-4b")
    with pytest.raises(LayoutError, match="allgather or a2a"):
        mindspeed("dp=128,cp=2", model="deepseek-v3.2")
    with pytest.raises(GoalError, match="moments"):
        mindspeed("dp=256", replace(GOAL, states=StateBytes(moments=4)))
    with pytest.raises(GoalError, match="fp8-block"):
        mindspeed("dp=256", replace(GOAL, precision=Precision.FP8_BLOCK))


def test_notes_on_hardware_and_optimizer() -> None:
    goal = replace(GOAL, precision=Precision.MXFP8)
    assert any("Ascend 950" in note for note in mindspeed("dp=256", goal).notes)
    muon = replace(GOAL, optimizer=Optimizer.MUON, states=StateBytes(moments=4))
    launch = mindspeed("dp=256", muon)
    assert values(launch)["--optimizer"] == "muon"
    assert any("Muon" in note for note in launch.notes)


def test_deepseek_v4_starts_its_own_program() -> None:
    launch = mindspeed("tp=2,pp=2,dp=64,ep=128,vpp=11,schedule=interleaved",
                       model="deepseek-v4-flash")  # fmt: skip
    got = values(launch)
    assert "pretrain_deepseek4.py" in launch.command
    assert (got["--n-hash-layers"], got["--o-groups"], got["--hc-mult"]) == ("3", "8", "4")
    ratios = [int(ratio) for ratio in got["--compress-ratios"].split()]
    assert len(ratios) == int(got["--num-layers"]) == 44
    (noop,) = map(int, got["--noop-layers"].split(","))
    assert ratios[noop] == 0
    arch = load_model("deepseek-v4-flash")
    assert [r for i, r in enumerate(ratios) if i != noop] == [
        layer.attention.compression or 0 for layer in arch.expanded()
    ]
    with pytest.raises(LayoutError, match="DualPipeV for DeepSeek V4"):
        mindspeed("pp=2,dp=64,ep=8,schedule=dualpipev,vpp=2", model="deepseek-v4-flash")


def test_sandwich_norms_of_dense_models() -> None:
    got = values(mindspeed("tp=8,pp=8,dp=16", model="pangu-ultra-135b"))
    assert "--post-norm" in got
    assert got["--spec"].startswith("mindspeed_llm.tasks.models.spec.gemma2_spec")
    with pytest.raises(ModelError, match="sandwich norms"):
        mindspeed("dp=256,ep=8", model="pangu-ultra-moe-718b")


@pytest.mark.parametrize(
    ("switches", "has", "lacks"),
    [
        ({"overlap-grad-reduce": "off"}, (), ("--overlap-grad-reduce",)),
        ({"overlap-grad-reduce": "on"}, ("--overlap-grad-reduce",), ()),
        ({"attention": "eager"}, (), ("--use-flash-attn",)),
        ({"fused-accumulation": "off"}, ("--no-gradient-accumulation-fusion",), ()),
        ({"dispatcher": "allgather"}, ("--moe-token-dispatcher-type",), ()),
        ({"routing": "balanced"}, ("--fix-router",), ()),
        ({"loss": "chunked"}, ("--loss-compute-mode", "--loss-chunk-size"), ()),
    ],
)
def test_switches(switches: dict[str, str], has: tuple[str, ...], lacks: tuple[str, ...]) -> None:
    arch, nodes = load_model("deepseek-v3"), cluster(family="huawei-ascend-910c", per_node=16)
    layout = parse_layout("pp=8,dp=64,ep=64")
    launch = emit("mindspeed-llm", layout, GOAL, arch, nodes, CONFIG, 250, switches)
    names = [flag.name for flag in launch.flags]
    assert set(has) <= set(names)
    assert not set(lacks) & set(names)
    assert len(names) == len(set(names))
    assert all(known(name) for name in names)


def test_switches_that_it_lacks() -> None:
    for switches in ({"dispatcher": "deepep"}, {"cuda-graphs": "full"}):
        with pytest.raises(GoalError, match=next(iter(switches))):
            emit("mindspeed-llm", parse_layout("dp=256,ep=8"), GOAL, load_model("deepseek-v3"),
                 cluster(), CONFIG, 250, switches)  # fmt: skip
