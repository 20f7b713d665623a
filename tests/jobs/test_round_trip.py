"""What krzem writes for an engine is read back as what was planned."""

from __future__ import annotations

import pytest

from krzem.errors import KrzemError
from krzem.hardware.catalogue import Device
from krzem.hardware.cluster import Cluster
from krzem.jobs.job import Job
from krzem.jobs.reading import read_job
from krzem.layout.layout import Layout, Precision, parse_layout
from krzem.model import load_model
from krzem.plan.emit import emit, render
from krzem.plan.goal import Goal

CONFIG = {"rms_norm_eps": 1e-6, "rope_theta": 10_000, "routed_scaling_factor": 2.5}
CLUSTER = Cluster(
    device=Device(id="test-card", vendor="Test", name="card", family="nvidia-hopper"),
    devices=2048, devices_per_node=8, memory_bytes=80e9, memory_bytes_per_s=3e12,
    scale_up_domain=8, scale_up_bytes_per_s=2e11, scale_out_bytes_per_s=5e10,
)  # fmt: skip
GOALS = {p: Goal(tokens=1e12, sequence=4096, global_batch=15_360, precision=p) for p in (
    Precision.BF16, Precision.FP8_BLOCK, Precision.FP8)}  # fmt: skip
LAYOUTS = (
    "tp=1,pp=16,dp=128,ep=64,recompute=modules",
    "tp=2,pp=8,dp=64,cp=2,ep=8,vpp=2,schedule=interleaved,recompute=full",
    "tp=8,pp=8,dp=16,cp=2,vpp=4,schedule=interleaved,ep=8,recompute=full,rlayers=3,cpkind=a2a",
    "tp=8,pp=16,dp=16,first=3,last=2,ep=8",
    "tp=8,dp=256,zero=1,ep=8,etp=1,offload=1",
    "tp=4,pp=4,dp=128,zero=0,recompute=attention,sp=0",
    "tp=4,cp=4,dp=128,zero=3,ep=8,cpkind=allgather",
    "tp=2,pp=4,dp=256,mbs=2",
)
MODELS = ("deepseek-v3", "llama-3.1-70b", "qwen3-30b-a3b", "mixtral-8x7b")


def emitted(engine: str, layout: Layout, goal: Goal, model: str) -> Job | None:
    """The job read from what is written; None where the engine cannot have this layout."""
    arch = load_model(model)
    try:
        text = render(emit(engine, layout, goal, arch, CLUSTER, CONFIG))
    except KrzemError:
        return None
    return read_job(text={"train.sh": text})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("engine", ["megatron-lm", "mindspeed-llm"])
@pytest.mark.parametrize("text", LAYOUTS)
def test_layouts_come_back(engine: str, text: str, model: str) -> None:
    layout = parse_layout(text)
    arch = load_model(model)
    if not arch.is_moe or model == "mixtral-8x7b":
        small = "ep=8" if arch.is_moe else "ep=1"
        layout = parse_layout(text.replace("ep=64", small).replace("ep=8", small))
    job = emitted(engine, layout, GOALS[Precision.BF16], model)
    if job is None:
        pytest.skip("this engine cannot have this layout")
    assert job.engine == engine
    assert not job.faults
    assert not job.not_understood
    expected = {
        "tp": layout.tp, "cp": layout.cp, "pp": layout.pp, "dp": layout.dp, "zero": layout.zero,
        "mbs": layout.micro_batch, "seq": 4096, "global_batch": 15_360,
        "accumulation": 15_360 // layout.micro_batch // layout.dp, "devices": 2048,
        "model.layers": arch.layers, "model.hidden": arch.hidden, "precision": "bf16",
        "offload": layout.offload_optimizer, "model.tied": arch.tied_embeddings,
    }  # fmt: skip
    if arch.is_moe:
        expected["ep"] = layout.ep
        expected["etp"] = layout.etp
    if model == "llama-3.1-70b":
        expected["vpp"] = layout.vpp
        expected["recompute"] = str(layout.recompute)
        expected["model.kv_heads"] = 8
    assert {name: job.get(name) for name in expected} == expected


@pytest.mark.parametrize("precision", GOALS)
@pytest.mark.parametrize("model", MODELS)
def test_precisions_come_back(precision: Precision, model: str) -> None:
    layout = parse_layout("tp=2,pp=4,dp=256")
    job = emitted("megatron-lm", layout, GOALS[precision], model)
    if job is None:
        pytest.skip("this engine has no such precision")
    assert job.get("precision") == str(precision)
