"""Megatron-Bridge: fields that exist with their types, a program that compiles, refusals."""

from __future__ import annotations

import ast
import json
from dataclasses import replace

import pytest
from emit_matrix import CONFIG, GOAL, GOALS, cluster, launches, own_code, plain, text

from krzem.errors import GoalError, LayoutError, ModelError
from krzem.layout.layout import Optimizer, Precision, StateBytes
from krzem.model import load_model, model_ids
from krzem.plan.emit import Launch, emit
from krzem.plan.emit.bridge import TABLE
from krzem.plan.emit.parts import fits, keys_of
from krzem.plan.goal import Goal

KEYS = keys_of(TABLE)
REFUSED = ("pangu", "deepseek-v4", "deepseek-v3.2", "glm-5")


def bridge(
    layout: str, model: str = "deepseek-v3", goal: Goal = GOAL, **named: str
) -> dict[str, str]:
    switches = {name.replace("_", "-"): choice for name, choice in named.items()}
    launch = emit("megatron-bridge", text(layout), goal, load_model(model), cluster("h100:256"),
                  CONFIG, 250, switches)  # fmt: skip
    return values(launch)


def values(launch: Launch) -> dict[str, str]:
    return {flag.name.removeprefix("config."): flag.value for flag in launch.flags}


def as_json(value: str) -> str | None:
    """A Python value as JSON; None where it is an expression."""
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return None
    return json.dumps(found)


@pytest.mark.parametrize("model", model_ids())
def test_fields_exist_with_their_types(model: str) -> None:
    count = 0
    for launch, layout, goal in launches("megatron-bridge", model, "h100", 64):
        got = values(launch)
        typed = {name: as_json(value) for name, value in got.items()}
        wrong = [n for n, v in typed.items() if v is not None and not fits(v, KEYS[n])]
        assert not wrong, [(n, got[n], KEYS[n].kind) for n in wrong]
        assert len(got) == len(launch.flags)
        compile(plain(launch)["krzem_bridge.py"], "krzem_bridge.py", "exec")
        model_parallel = [int(got[f"model.{n}_parallel_size"]) for n in
                          ("tensor_model", "pipeline_model", "context")]  # fmt: skip
        assert model_parallel == [layout.tp, layout.pp, layout.cp]
        words = launch.command.split()
        nodes, each = (int(words[words.index(w) + 1]) for w in ("--nnodes", "--nproc-per-node"))
        assert nodes * each == layout.devices
        per_pass = int(got["train.micro_batch_size"]) * layout.dp
        assert int(got["train.global_batch_size"]) % per_pass == 0
        tokens = int(got["train.train_iters"]) * goal.tokens_per_step
        assert goal.tokens <= tokens < goal.tokens + goal.tokens_per_step
        count += 1
    assert (count == 0) == (model.startswith(REFUSED) or own_code(model))


def test_what_the_program_reads_is_asked() -> None:
    launch = emit("megatron-bridge", text("dp=256,ep=8"), GOAL, load_model("deepseek-v3"),
                  cluster("h100:256"))  # fmt: skip
    program = plain(launch)["krzem_bridge.py"]
    asked = set(launch.asked) - {"RDZV"}
    assert {"LR", "DATA", "ROTARY_BASE", "SAVE_STEPS", "ROUTER_SCALE"} <= asked
    assert all(f'os.environ["{name}"]' in program for name in asked)
    assert program.count("os.environ[") >= len(asked)


def test_pipelines() -> None:
    even = bridge("pp=4,dp=64,vpp=4,schedule=interleaved", "llama-3.1-70b")
    assert even["model.virtual_pipeline_model_parallel_size"] == "4"
    odd = bridge("pp=16,dp=16,ep=8")
    assert odd["model.pipeline_model_parallel_layout"].count("t") >= 4


def test_precision_and_states() -> None:
    fp8 = bridge("dp=256,ep=8", goal=GOALS[1], fp8_scaling="delayed", fp8_params="on")
    assert "delayed" in fp8["mixed_precision"]
    assert fp8["mixed_precision.fp8_param_gather"] == "True"
    small = bridge("dp=256,ep=8", goal=GOALS[2])
    assert small["optimizer.exp_avg_dtype"] == "torch.bfloat16"
    assert small["mixed_precision.grad_reduce_in_fp32"] == "False"
    full = bridge("dp=256,ep=8", goal=replace(GOAL, precision=Precision.FP32))
    assert full["mixed_precision"] == "None"
    kept = bridge("dp=256,zero=3,ep=8")
    assert kept["ddp.data_parallel_sharding_strategy"] == '"optim_grads_params"'


def test_refusals() -> None:
    with pytest.raises(LayoutError, match="zero=1 or pp=1"):
        bridge("pp=2,dp=128,zero=3", "llama-3.1-70b")
    muon = replace(GOAL, optimizer=Optimizer.MUON, states=StateBytes(moments=4))
    with pytest.raises(LayoutError, match="Muon"):
        bridge("dp=256,zero=3", "llama-3.1-70b", muon)
    with pytest.raises(LayoutError, match="sharded optimizer"):
        bridge("dp=256,zero=0", "llama-3.1-8b", replace(GOAL, states=StateBytes(moments=4)))
    with pytest.raises(ModelError, match="indexer"):
        bridge("dp=256,ep=8", "deepseek-v3.2")
    with pytest.raises(GoalError, match="cuda-graphs=full for experts"):
        bridge("dp=256,ep=8", cuda_graphs="full", dispatcher="alltoall")
    alone = bridge("dp=256,ep=8", cuda_graphs="full")
    assert alone["model.moe_flex_dispatcher_backend"] == '"hybridep"'
    assert bridge("dp=256,ep=8", cuda_graphs="full", routing="capacity")
    with pytest.raises(GoalError, match="precision fp8 only"):
        bridge("dp=256,ep=8", fp8_scaling="delayed")
