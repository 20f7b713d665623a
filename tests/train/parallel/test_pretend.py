"""The same layouts on a device that is neither a CPU nor CUDA."""

from __future__ import annotations

import shutil

import pytest
from tests.train.parallel.spawn import spawn

LAYOUTS = [
    "dp=2,ep=2,zero=3,mbs=4",
    "dp=2,zero=0,mbs=4",
    "tp=2,mbs=8",
    "cp=2,cpkind=a2a,mbs=4",
    "pp=2,mbs=2",
    "pp=2,schedule=zb-v,mbs=2",
]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="the pretend device is built with g++")
def test_layouts_on_the_pretend_device_train_as_one_process_on_the_cpu() -> None:
    models = ("deepseek_v3", "deepseek_v4")
    cases = [{"model": m, "layout": x, "device": "pretend"} for m in models for x in LAYOUTS]
    for case, result in zip(cases, spawn("worker.py", 2, cases), strict=True):
        assert result["loss"] <= 1.01e-6, (case, result)
        assert result["parameter"] <= 1e-5, (case, result)
        assert result["bias"] <= 1e-6, (case, result)
