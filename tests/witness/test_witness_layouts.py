"""A witness of one process holds under every layout of two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.train.parallel.spawn import ROOT, free_port

from krzem.witness.witness import write_witness


def run_ranks(folder: Path, script: str = "ranks.py", count: int = 2, *more: str) -> dict[str, Any]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    port, path = str(free_port()), str(Path(__file__).with_name(script))
    ranks = [
        subprocess.Popen(
            [sys.executable, path, str(rank), str(count), port, str(folder), *more],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
        )
        for rank in range(count)
    ]  # fmt: skip
    said = [rank.communicate(timeout=400) for rank in ranks]
    assert not any(rank.returncode for rank in ranks), said[0][1][-3000:] + said[-1][1][-3000:]
    found: dict[str, Any] = json.loads(said[0][0])
    return found


@pytest.mark.long
def test_other_layouts_pass_and_a_fault_under_them_does_not(
    recorded: dict[tuple[str, str], tuple[Any, Any]], tmp_path: Path
) -> None:
    for dtype in ("float32", "bfloat16"):
        write_witness(recorded["deepseek_v3", dtype][0], tmp_path / f"{dtype}.json")
    found = run_ranks(tmp_path)
    passed, message, _ = found.pop("faulty")
    assert not passed
    assert "layers.2" in message
    passed, message, _ = found.pop("clipping")
    assert not passed
    assert "gradient norm" in message, message
    assert all(result[0] for result in found.values()), found
    # No run file was given on either side: its settings alone are left open.
    left = {reason for result in found.values() for reason in result[2]}
    assert all(reason.startswith("the settings of the run") for reason in left), left
    assert found["recorded"][1].startswith("tp=1")


@pytest.mark.parametrize(
    ("ranks", "experts"), [(2, ""), pytest.param(4, ",ep=2", marks=pytest.mark.long)]
)
def test_four_sequences_are_enough_for_all_ranks_and_their_replica(
    ranks: int, experts: str, tmp_path: Path
) -> None:
    """Ranks beyond the sequences compute them again; fewer data-parallel ranks with the same cut of
    the model read the same within the floor."""
    full = run_ranks(tmp_path, "replica_ranks.py", 2 * ranks, f"dp={ranks},pp=2{experts},mbs=1")
    assert full["copies"] == ranks, "as many micro-batches for each, for busy stages"
    assert full["rows"] == [0, 1, 2, 3]
    assert full["ranks"] < 1e-6, "every data-parallel rank computes a sequence alike"
    few = ranks // 2
    replica = run_ranks(tmp_path, "replica_ranks.py", 2 * few, f"dp={few},pp=2{experts},mbs=1")
    assert replica["copies"] == few
    assert replica["passed"], replica["message"]
    assert not any("settings" not in what for what in replica["apart"])
