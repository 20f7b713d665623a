"""Hugging Face folders written and read by several ranks hold the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.train.parallel.spawn import spawn

LAYOUTS = {
    "deepseek_v3": ["tp=2,dp=2,ep=2,etp=2,mbs=1", "pp=2,dp=2,ep=2,zero=3,mbs=1"],
    "deepseek_v4": ["tp=2,dp=2,ep=4,zero=3,mbs=1", "dp=4,zero=3,shard=2,mbs=1"],
    "llama": ["pp=2,tp=2,mbs=1"],
}


@pytest.mark.long
def test_export_and_import_under_layouts(tmp_path: Path) -> None:
    cases = [
        {"model": model, "layout": layout, "folder": str(tmp_path / f"{model}-{i}")}
        for model, layouts in LAYOUTS.items()
        for i, layout in enumerate(layouts)
    ]
    for case, result in zip(cases, spawn("transfer_worker.py", 4, cases), strict=True):
        assert result == {"absent": [], "out": True, "back": True}, case
