"""A cluster, a goal and layouts that the emitter tests share."""

from __future__ import annotations

from pathlib import Path

from krzem.hardware.catalogue import Device
from krzem.hardware.cluster import Cluster
from krzem.layout.layout import Layout, parse_layout
from krzem.plan.goal import Goal

HERE = Path(__file__).parent
GOAL = Goal(tokens=14.8e12, sequence=4096, global_batch=15_360)
CONFIG = {"rms_norm_eps": 1e-6, "rope_theta": 10_000, "routed_scaling_factor": 2.5}


def cluster(devices: int = 2048, family: str = "nvidia-hopper", per_node: int = 8) -> Cluster:
    """A cluster of unremarkable devices."""
    return Cluster(
        device=Device(id="test-card", vendor="Test", name="card", family=family),
        devices=devices,
        devices_per_node=per_node,
        memory_bytes=80e9,
        memory_bytes_per_s=3e12,
        scale_up_domain=8,
        scale_up_bytes_per_s=2e11,
        scale_out_bytes_per_s=5e10,
    )


LAYOUTS: tuple[Layout, ...] = tuple(
    parse_layout(text)
    for text in (
        "tp=1,pp=16,dp=128,ep=64,schedule=dualpipe",
        "tp=1,pp=16,dp=128,ep=64,recompute=modules",
        "tp=2,pp=8,dp=64,cp=2,ep=8,vpp=2,schedule=interleaved,recompute=full",
        "tp=8,pp=8,dp=16,cp=2,vpp=4,schedule=interleaved,ep=8,recompute=full,rlayers=3,cpkind=a2a",
        "tp=8,pp=16,dp=16,first=3,last=2,offload=1,ep=8",
        "tp=4,cp=4,dp=128,zero=2,ep=8,shard=64,cpkind=allgather",
        "tp=8,dp=256,zero=3,ep=8,etp=1",
        "tp=4,pp=4,dp=128,zero=0,recompute=attention,sp=0",
        "tp=1,pp=16,dp=128,ep=8,schedule=zb-v",
        "tp=1,pp=16,dp=128,ep=8,schedule=zb-h1",
        "tp=1,pp=8,dp=256,ep=32,schedule=dualpipev,vpp=2",
    )
)
