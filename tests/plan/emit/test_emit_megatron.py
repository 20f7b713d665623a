"""Megatron-LM: known names, numbers that come back, refusals and substitutes that say so."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from emit_cases import CONFIG, GOAL, HERE, LAYOUTS, cluster
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import GoalError, KrzemError, LayoutError, ModelError, UnknownNameError
from krzem.layout.layout import Layout, Optimizer, Precision, StateBytes, parse_layout
from krzem.model import load_model, model_ids
from krzem.plan.emit import Launch, emit, render
from krzem.plan.emit.parts import keys_of
from krzem.plan.goal import Goal

KNOWN = frozenset(keys_of("megatron-lm-0.19.2"))
V3 = load_model("deepseek-v3")
GOALS = (
    GOAL,
    replace(GOAL, precision=Precision.FP8_BLOCK),
    replace(GOAL, precision=Precision.MXFP8, states=StateBytes(weight=1, gradient=2, moments=4)),
    replace(GOAL, precision=Precision.NVFP4),
    replace(GOAL, precision=Precision.FP16),
    replace(GOAL, optimizer=Optimizer.MUON, states=StateBytes(moments=4)),
)


def values(launch: Launch) -> dict[str, str]:
    return {flag.name: flag.value for flag in launch.flags}


def megatron(text: str, goal: Goal = GOAL, model: str = "deepseek-v3") -> Launch:
    return emit("megatron-lm", parse_layout(text), goal, load_model(model), cluster(), CONFIG)


@pytest.mark.parametrize("model", model_ids())
def test_every_name_is_an_argument_of_the_engine(model: str) -> None:
    arch, emitted = load_model(model), 0
    for layout in LAYOUTS:
        for goal in GOALS:
            fitting = layout if arch.is_moe else replace(layout, ep=1, etp=1)
            try:
                launch = emit("megatron-lm", fitting, goal, arch, cluster(), CONFIG)
            except KrzemError:
                continue
            names = [flag.name for flag in launch.flags]
            assert set(names) <= KNOWN
            assert len(names) == len(set(names)), "a flag is given twice"
            assert all(flag.why for flag in launch.flags)
            emitted += 1
    unsupported = arch.particular or model.startswith(
        ("deepseek-v4", "pangu", "nemotron", "qwen3-next")
    )
    assert (emitted == 0) == unsupported


@given(
    tp=st.sampled_from([1, 2, 4, 8]), pp=st.sampled_from([1, 2, 4, 16]),
    cp=st.sampled_from([1, 2]), dp=st.sampled_from([8, 64]), vpp=st.sampled_from([1, 2]),
    micro=st.sampled_from([1, 2]), zero=st.sampled_from([0, 1]),
)  # fmt: skip
def test_numbers_come_back(
    tp: int, pp: int, cp: int, dp: int, vpp: int, micro: int, zero: int
) -> None:
    layout = Layout(tp=tp, pp=pp, cp=cp, dp=dp, vpp=vpp, micro_batch=micro, zero=zero, ep=8)
    launch = emit("megatron-lm", layout, GOAL, V3, cluster(), CONFIG)
    got = values(launch)
    assert int(got["--tensor-model-parallel-size"]) == tp
    assert int(got["--pipeline-model-parallel-size"]) == pp
    assert int(got["--context-parallel-size"]) == cp
    assert int(got["--expert-model-parallel-size"]) == 8
    assert int(got["--micro-batch-size"]) == micro
    assert ("--use-distributed-optimizer" in got) == (zero == 1)
    assert ("--sequence-parallel" in got) == (tp > 1)
    samples, batch = int(got["--train-samples"]), int(got["--global-batch-size"])
    assert samples // batch == math.ceil(GOAL.tokens / (batch * int(got["--seq-length"])))
    words = launch.command.split()
    nodes, each = (int(words[words.index(w) + 1]) for w in ("--nnodes", "--nproc-per-node"))
    assert nodes * each == layout.devices


def test_model_of_deepseek_v3() -> None:
    got = values(megatron("pp=16,dp=128,ep=64"))
    expected = {
        "--num-layers": "61", "--hidden-size": "7168", "--ffn-hidden-size": "18432",
        "--num-attention-heads": "128", "--q-lora-rank": "1536", "--kv-lora-rank": "512",
        "--qk-head-dim": "128", "--qk-pos-emb-head-dim": "64", "--v-head-dim": "128",
        "--num-experts": "256", "--moe-ffn-hidden-size": "2048", "--moe-router-topk": "8",
        "--moe-shared-expert-intermediate-size": "2048", "--moe-router-num-groups": "8",
        "--moe-router-group-topk": "4", "--moe-router-topk-scaling-factor": "2.5",
        "--moe-router-score-function": "sigmoid", "--mtp-num-layers": "1",
        "--vocab-size": "129280", "--rotary-base": "10000", "--norm-epsilon": "1e-06",
    }  # fmt: skip
    assert {name: got.get(name) for name in expected} == expected
    assert eval(got["--moe-layer-freq"]) == [0] * 3 + [1] * 58


def test_models_of_other_families() -> None:
    gpt = values(megatron("tp=8,pp=8,dp=32", model="gpt3-175b"))
    assert gpt["--position-embedding-type"] == "learned_absolute"
    assert gpt["--normalization"] == "LayerNorm"
    assert not {"--swiglu", "--disable-bias-linear", "--rotary-base"} & gpt.keys()
    assert int(gpt["--make-vocab-size-divisible-by"]) * 8 > 0
    llama = values(megatron("tp=8,pp=8,dp=32", model="llama-3.1-405b"))
    assert (llama["--num-query-groups"], llama["--kv-channels"]) == ("8", "128")
    assert "--num-experts" not in llama
    qwen = values(megatron("dp=256,ep=8", model="qwen3-235b-a22b"))
    assert "--qk-layernorm" in qwen
    assert "--moe-layer-freq" not in qwen
    oss = values(megatron("dp=256,ep=8", model="gpt-oss-120b"))
    assert oss["--window-size"] == "127,0"
    assert sum(eval(oss["--window-attn-skip-freq"])) == 18
    assert "--disable-bias-linear" not in oss
    v32 = values(megatron("dp=256,ep=8", model="deepseek-v3.2"))
    assert v32["--dsa-indexer-topk"] == "2048"
    glm = values(megatron("dp=256,ep=8", model="glm-4.5"))
    assert "--add-qkv-bias" in glm


def test_vocabulary_padding_is_divided_by_tensor_parallelism() -> None:
    for tp in (1, 2, 4, 8, 16):
        layout = Layout(tp=tp, dp=8)
        got = values(emit("megatron-lm", layout, GOAL, load_model("gpt3-175b"), cluster()))
        unit = int(got["--make-vocab-size-divisible-by"])
        padded = math.ceil(50_257 / (unit * tp)) * unit * tp
        assert padded % tp == 0
        assert padded - 50_257 < 128


def test_what_no_plan_knows_is_asked() -> None:
    launch = emit("megatron-lm", Layout(pp=16, dp=128, ep=64), GOAL, V3, cluster())
    assert {"ROTARY_BASE", "NORM_EPSILON", "ROUTER_SCALE", "LR", "DATA"} <= set(launch.asked)
    told = emit("megatron-lm", Layout(pp=16, dp=128, ep=64), GOAL, V3, cluster(), CONFIG, 250)
    assert not {"ROTARY_BASE", "NORM_EPSILON", "ROUTER_SCALE", "SAVE_STEPS"} & set(told.asked)
    assert values(told)["--save-interval"] == "250"


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("pp=16,dp=128,ep=64,schedule=dualpipe", "interleaved with 2"),
        ("pp=16,dp=128,ep=64,schedule=dualpipev,vpp=2", "interleaved with 2"),
        ("pp=16,dp=128,ep=8,schedule=zb-v", "interleaved with 2"),
        ("pp=16,dp=128,ep=8,schedule=zb-h1", "1f1b with 1"),
    ],
)
def test_missing_schedules_are_replaced_and_said(text: str, instead: str) -> None:
    launch = megatron(text)
    (note,) = [note for note in launch.notes if "Emitted instead" in note]
    assert instead in note
    stages = values(launch)["--pipeline-model-parallel-layout"]
    chunks = 2 if "with 2" in instead else 1
    assert stages.count("|") >= 1
    assert ("--overlap-moe-expert-parallel-comm" in values(launch)) == ("dualpipe" in text)
    assert f"vpp={chunks}" in note
    assert not [n for n in megatron("pp=16,dp=128,ep=64").notes if "Emitted instead" in n]


def test_even_interleaving_needs_no_layout_text() -> None:
    got = values(megatron("pp=4,dp=64,vpp=4,schedule=interleaved", model="llama-3.1-70b"))
    assert got["--num-layers-per-virtual-pipeline-stage"] == "5"
    assert "--pipeline-model-parallel-layout" not in got


def test_recomputation() -> None:
    full = values(megatron("pp=2,dp=64,recompute=full"))
    assert (full["--recompute-method"], full["--recompute-num-layers"]) == ("uniform", "1")
    some = values(megatron("pp=2,dp=64,vpp=4,schedule=interleaved,recompute=full,rlayers=6"))
    assert (some["--recompute-method"], some["--recompute-num-layers"]) == ("block", "2")
    parts = values(megatron("pp=2,dp=64,recompute=modules"))
    assert parts["--recompute-modules"] == "layernorm mla_up_proj moe_act"
    assert "--recompute-granularity" not in values(megatron("pp=2,dp=64"))


def test_sharding() -> None:
    hybrid = values(megatron("dp=256,cp=2,shard=64"))
    assert hybrid["--num-distributed-optimizer-instances"] == "8"
    third = values(megatron("dp=256,zero=3"))
    assert third["--data-parallel-sharding-strategy"] == "optim_grads_params"
    with pytest.raises(LayoutError, match="does not divide"):
        megatron("dp=256,shard=96")


@pytest.mark.parametrize(
    ("text", "goal", "says"),
    [
        ("pp=2,dp=64,zero=3", GOAL, "plan with zero=1 or pp=1"),
        ("dp=256,zero=2", replace(GOAL, optimizer=Optimizer.MUON), "Megatron-FSDP knows Adam"),
        ("dp=256,zero=0,offload=1", GOAL, "plan with zero=1"),
        ("dp=1,cp=3", replace(GOAL, sequence=4096), "2 \\* cp = 6"),
        ("dp=7", GOAL, "1 \\* 7 = 7"),
        ("tp=4,dp=3", replace(GOAL, global_batch=15), "not a whole number"),
    ],
)
def test_impossible_layouts_are_refused(text: str, goal: Goal, says: str) -> None:
    with pytest.raises(LayoutError, match=says):
        megatron(text, goal)


def test_indexer_needs_gathered_keys() -> None:
    with pytest.raises(LayoutError, match="cpkind=allgather"):
        megatron("dp=128,cp=2", model="deepseek-v3.2")
    assert megatron("dp=128,cp=2,cpkind=allgather", model="deepseek-v3.2").flags


def test_state_widths_without_an_argument_are_refused() -> None:
    with pytest.raises(GoalError, match=r"1\.5 bytes each"):
        megatron("dp=256", replace(GOAL, states=StateBytes(moments=3)))


def test_models_beyond_its_words_are_refused_with_the_reason() -> None:
    with pytest.raises(ModelError, match="hyper-connections"):
        megatron("dp=256", model="deepseek-v4-pro")
    with pytest.raises(ModelError, match="sandwich norms"):
        megatron("dp=256", model="pangu-ultra-135b")


def test_unknown_engine_offers_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="megatron-lm"):
        emit("megatron", Layout(), GOAL, V3, cluster())


@pytest.mark.parametrize(
    ("text", "family", "expected"),
    [
        ("tp=8,pp=4,dp=64", "nvidia-hopper", "1"),
        ("pp=4,dp=64", "nvidia-hopper", None),
        ("tp=8,pp=4,dp=64", "nvidia-blackwell", None),
        ("pp=16,dp=128,ep=64,schedule=dualpipe", "nvidia-hopper", "32"),
        ("tp=8,dp=256,zero=3", "nvidia-hopper", None),
    ],
)
def test_connections_follow_the_hardware(text: str, family: str, expected: str | None) -> None:
    launch = emit("megatron-lm", parse_layout(text), GOAL, V3, cluster(family=family), CONFIG)
    got = {flag.name: flag.value for flag in launch.environment}
    assert got.get("CUDA_DEVICE_MAX_CONNECTIONS") == expected


def test_golden_script_of_deepseek_v3() -> None:
    goal = replace(GOAL, precision=Precision.FP8_BLOCK, states=StateBytes(moments=4))
    layout = parse_layout("tp=1,pp=16,dp=128,ep=64,mbs=1,schedule=dualpipe,recompute=modules")
    text = render(emit("megatron-lm", layout, goal, V3, cluster(), CONFIG, 250))
    golden = HERE / "deepseek_v3_megatron.sh"
    assert text == golden.read_text(encoding="utf-8"), f"if meant, write it anew: {golden}"
