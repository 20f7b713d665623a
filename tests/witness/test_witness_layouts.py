"""A witness of one process holds under every layout of two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.train.parallel.spawn import ROOT, free_port

from krzem.witness.witness import write_witness


def run_ranks(folder: Path) -> dict[str, Any]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    port, script = str(free_port()), str(Path(__file__).with_name("ranks.py"))
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), "2", port, str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [rank.communicate(timeout=240) for rank in ranks]
    assert not any(rank.returncode for rank in ranks), said[0][1][-3000:] + said[1][1][-3000:]
    found: dict[str, Any] = json.loads(said[0][0])
    return found


def test_other_layouts_pass_and_a_fault_under_them_does_not(
    recorded: dict[tuple[str, str], tuple[Any, Any]], tmp_path: Path
) -> None:
    for dtype in ("float32", "bfloat16"):
        write_witness(recorded["deepseek_v3", dtype][0], tmp_path / f"{dtype}.json")
    found = run_ranks(tmp_path)
    passed, message, _ = found.pop("faulty")
    assert not passed
    assert "layers.2" in message
    assert all(result[0] for result in found.values()), found
    assert not any(result[2] for result in found.values()), found
    assert found["recorded"][1].startswith("tp=1")
