"""The benchmark of GPUs where there is none: what it says, and the paths that it would run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore:.torch.distributed:FutureWarning")
BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_it_says_so(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main([str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "no GPU" in said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_pretending_predicts_and_runs_the_paths_of_a_device(
    gpu: ModuleType, tmp_path: Path
) -> None:
    asked = [str(tmp_path), "--pretend", "h100:2", "--small", "--sequence", "128"]
    assert gpu.main([*asked, "--only", "fp8 by"]) == 0
    found = json.loads((tmp_path / "prediction.json").read_text())
    blocks, rows = found["experts, fp8 by blocks"], found["experts, fp8 by rows, capacity 2"]
    assert rows["host_reads_for_experts"] == 0 < blocks["host_reads_for_experts"]
    assert sum(rows["host_reads"].values()) == 2
    for told in (blocks, rows):
        assert told["rehearsed_bytes"] > 0
        assert 0 < told["seconds"][0] < told["seconds"][1] < told["seconds"][2]
    assert not (tmp_path / "measured.json").exists()
    assert "| experts, fp8 by blocks | " in (tmp_path / "report.md").read_text()


def test_steps_at_the_start_and_under_the_profiler_do_not_count(gpu: ModuleType) -> None:
    steps = [
        {"seconds": 9.0 if i < 6 or i > 11 else 1.0, "tokens_per_s": 5.0, "mfu": None, "loss": 1.0}
        for i in range(16)
    ]
    found = gpu.of_metrics([*steps[:-1], {**steps[-1], "memory_bytes": 7}])
    assert (found["seconds"], found["mfu"], found["bytes"]) == (1.0, None, 7)
    row = gpu.table(
        {"a": {"rehearsed_bytes": 2**30, "host_reads_for_experts": 0}}, {"a": {"failed": "x"}}
    )
    assert "| a | – | failed | – | – | – | 1.00 | – | 0 |" in row
