"""Rows that tests of accuracy share."""

from __future__ import annotations

import pytest

from krzem.facts.table import read_table

LLAMA = {
    "id": "r1", "source": "somewhere", "engine": "torchtitan", "date": "2025-03-04",
    "model_name": "Llama-3-8B", "family": "dense", "layers": "32", "hidden": "4096",
    "ffn_hidden": "14336", "heads": "32", "kv_heads": "8", "vocab": "128256", "attention": "gqa",
    "seq_len": "8192", "params_b": "8.03", "accelerator_id": "nvidia-h100-sxm", "devices": "64",
    "tp": "1", "pp": "1", "zero_or_fsdp_stage": "fsdp", "micro_batch": "2", "global_batch": "128",
    "precision": "bf16", "recompute": "full", "metric_step_time_s": "3.0",
}  # fmt: skip


@pytest.fixture
def llama() -> dict[str, str]:
    """A complete, ordinary row."""
    return dict(LLAMA)


@pytest.fixture(scope="session")
def some_runs() -> list[dict[str, str]]:
    """A few packaged rows of several sources, engines and accelerators."""
    wanted = ("KORT-", "SIM-00", "MT-00", "TT-0", "MPT-10")
    return [dict(row) for row in read_table("runs.csv") if row["id"].startswith(wanted)]
