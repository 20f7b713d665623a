"""No price depends on a word in a source, an address, a note or a label."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.some import WHOLE, some

import krzem.facts
from krzem.accuracy.evaluate import Outcome, evaluate
from krzem.facts.table import read_table

Row = dict[str, str]

SCRIPT = Path(__file__).parents[2] / "scripts" / "table-columns"
TABLES = ("runs", "runs_new", "memory_rows", "fit_trials", "whole_runs")
FREE = ("notes", "source", "url_or_repo", "known_issues", "model_name")
"""Columns for people."""
WORDS = (
    "megatron-lm", "DeepSpeed ZeRO-3", "torchtitan", "MaxText", "MLPerf Training v5.0", "Primus",
    "hybridep", "a2a overlap", "cuda_graph=full_iteration", "async TP", "use-mc2", "LoRA",
    "capacity factor 1", "force-balanced", "rowwise", "etp=1", "DualPipeV", "zero-bubble",
    "ulysses", "recompute_modules=mlp", "nvidia-smi", "allocated", "8xHDR IB per node",
    "1600 Gbps/node", "FSDP64", "w/ MTP", "mamba", "arXiv 2104.04473", "gpt-oss", "Gemma-3-12B",
    "Llama-3-8B", "DeepSeek-V2-Lite", "BLOOM", "reduced", "2-layer proxy", "", "?",
)  # fmt: skip
"""What once decided a price, and what still would by a name."""
free = st.lists(st.sampled_from(WORDS), max_size=3).map("; ".join)


def priced(found: Outcome) -> tuple[object, ...]:
    return (
        found.reason, found.mid_s, found.low_s, found.high_s, found.memory_predicted, found.fits,
        found.measured_s, found.guesses,
    )  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_free_text_may_be_deleted(table: str) -> None:
    rows = some(read_table(f"{table}.csv"), 3)
    bare = [{name: cell for name, cell in row.items() if name not in FREE} for row in rows]
    blank = [{**row, **dict.fromkeys(FREE, "")} for row in rows]
    expected = [priced(found) for found in evaluate(rows).outcomes]
    assert [priced(found) for found in evaluate(bare).outcomes] == expected
    assert [priced(found) for found in evaluate(blank).outcomes] == expected


@settings(max_examples=200 if WHOLE else 60, deadline=None)
@given(
    st.sampled_from(TABLES), st.integers(0, 10**6), st.fixed_dictionaries(dict.fromkeys(FREE, free))
)
def test_free_text_may_say_anything(table: str, index: int, said: Row) -> None:
    rows = read_table(f"{table}.csv")
    row = dict(rows[index % len(rows)])
    changed = [row, row | said]
    before, after = (priced(found) for found in evaluate(changed).outcomes)
    assert after == before


@pytest.mark.parametrize("table", TABLES)
def test_filling_columns_twice_changes_nothing(table: str, tmp_path: Path) -> None:
    packaged = Path(krzem.facts.__file__).parent / f"{table}.csv"
    out = tmp_path / "again.csv"
    subprocess.run([sys.executable, SCRIPT, packaged, out], check=True)
    assert out.read_bytes() == packaged.read_bytes()


def columns_of(folder: Path, row: Row) -> Row:
    """What the script makes of one row."""
    table, out = folder / "in.csv", folder / "out.csv"
    with table.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, list(row))
        writer.writeheader()
        writer.writerow(row)
    subprocess.run([sys.executable, SCRIPT, table, out], check=True)
    with out.open(encoding="utf-8", newline="") as lines:
        return next(csv.DictReader(lines))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            {"source": "NVIDIA-NeMo/Megatron-Bridge docs, 26.04",
             "notes": "NeMo container 26.04; dispatcher=hybridep; a2a overlap; cuda_graph=none/[]"},
            {"engine": "megatron-bridge", "engine_version": "26.04", "dispatcher": "hybridep",
             "overlap_a2a": "on", "cuda_graphs": "none", "organisation": "NVIDIA"},
        ),
        (
            {"source": "pytorch/torchtitan", "notes": "FSDP2, eager; vanilla TP"},
            {"engine": "torchtitan", "compile": "off", "overlap_tp": "off",
             "attention_kernel": "", "organisation": "Meta/PyTorch"},
        ),
        (
            {"source": "somewhere", "notes": "compiler choice; DGX, 4xHDR200 per node; 2 x 24 GB"},
            {"engine": "", "compile": "", "network_gbit_per_device": "100", "finetune": ""},
        ),
        (
            {"source": "MLPerf Training v5.1 Dell 1xB200 llama31_8b result logs", "date": "",
             "accelerator_id": "nvidia-b200-sxm", "notes": "8x100Gb"},
            {"engine": "megatron-bridge", "organisation": "NVIDIA", "date": "2025-11",
             "network_gbit_per_device": "100"},
        ),
        (
            {"notes": "etp=1; Ulysses; zero bubble; recompute_modules=mlp,norm", "etp": "2"},
            {"etp": "2", "cp_kind": "a2a", "schedule": "zb-h1", "recompute_modules": "mlp+norm"},
        ),
    ],
)  # fmt: skip
def test_what_words_become(said: Row, expected: Row, tmp_path: Path) -> None:
    row = {"id": "x", "source": "", "devices_per_node": "8", "model_name": "", **said}
    found = columns_of(tmp_path, row)
    assert {name: found[name] for name in expected} == expected
