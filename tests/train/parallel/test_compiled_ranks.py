"""Compiled layers on several ranks train as one process without them does."""

from __future__ import annotations

import pytest
from tests.train.parallel.spawn import spawn

LAYOUTS = ["dp=2,ep=2,zero=3,recompute=modules,mbs=4", "tp=2,recompute=full,mbs=8"]


@pytest.mark.long
def test_compiled_layers_under_layouts() -> None:
    about = {"model": "qwen3_moe", "backend": "aot_eager", "steps": 1}
    for result in spawn("worker.py", 2, [{**about, "layout": x} for x in LAYOUTS]):
        assert result["loss"] <= 1.01e-6, result
        assert result["parameter"] <= 1e-5, result
