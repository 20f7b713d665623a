"""A run of DeepSeek-V3's class through sequences of 256, 1,024 and 4,096, killed in each phase.

    OMP_NUM_THREADS=1 python benchmarks/phases.py [--folder runs/phases]

Latent attention, experts, multi-token prediction and YaRN at small widths; each phase has its own
length, mixture, rotation, batch and rate, and weights and moments go on.  The run is made twice: at
a stretch, and killed (SIGKILL, nothing saved) in each phase and started again.  Prints a line a
phase; ends with 1 where losses or the last checkpoint's tensors differ by a bit.  Some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.train.configs import DEEPSEEK_V3

from krzem.train.checkpoint import latest_good, read_manifest
from krzem.train.data import BuildRequest, build

RUN = """
model = "config.json"
layout = "mbs=4"
[run]
folder = "out"
[goal]
tokens = 57344
sequence = 256
global_batch = 8
precision = "fp32"
[data]
path = { code = 0.8, prose = 0.2 }
documents = true
[optimizer]
rate = 3e-3
[checkpoint]
every = 1
[metrics]
every = 0
[[phase]]
at = 12288
name = "1,024"
sequence = 1024
global_batch = 4
data = { code = 0.5, prose = 0.5 }
rate = 1e-3
max_positions = 1024
layout = "mbs=2"
[phase.rope]
rope_type = "yarn"
rope_theta = 10000.0
factor = 4.0
original_max_position_embeddings = 256
[[phase]]
at = 28672
name = "4,096"
sequence = 4096
global_batch = 2
data = { prose = 1 }
rate = 3e-4
max_positions = 4096
layout = "mbs=1"
[phase.rope]
rope_type = "yarn"
rope_theta = 10000.0
factor = 16.0
original_max_position_embeddings = 256
"""
KILLED_AFTER = (3, 8, 11)
"""Steps after which it is killed: one in each phase."""


def prepared(folder: Path) -> Path:
    """Data, config and run file in ``folder``."""
    folder.mkdir(parents=True)
    root = Path(__file__).parents[1]
    for name, sources in {"code": [root / "src"], "prose": [root / "docs"]}.items():
        suffix = "*.py" if name == "code" else "*.md"
        text = folder / f"{name}.txt"
        files = sorted(f for s in sources for f in s.rglob(suffix))
        text.write_text("\n\n".join(f.read_text() for f in files)[:1_500_000])
        build(BuildRequest(sources=(text,), out=folder / name, tokenizer="bytes"))
    config = {
        **DEEPSEEK_V3,
        "vocab_size": 264,
        "rope_parameters": None,
        "max_position_embeddings": 256,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "run.toml").write_text(RUN)
    return folder / "run.toml"


def lines(folder: Path) -> list[dict[str, Any]]:
    """The steps that count: a repeated step's last line."""
    file = folder / "out" / "metrics.jsonl"
    text = file.read_text().splitlines() if file.exists() else []
    complete = [json.loads(x) for x in text if x.endswith("}")]
    return list({x["step"]: x for x in complete}.values())


def train(run: Path, kill_after: int | None) -> None:
    """Start the run; kill it once it has taken the step ``kill_after``."""
    command = [sys.executable, "-m", "krzem", "train", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        done = lines(run.parent)
        if kill_after is not None and done and done[-1]["step"] >= kill_after:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.05)
    if kill_after is not None or process.returncode:
        raise SystemExit(f"the run ended by itself ({process.returncode})")


def tensors(run: Path) -> dict[str, tuple[str, ...]]:
    """Checksums of the last checkpoint's tensors: weights and moments."""
    folder = latest_good(run.parent / "out" / "checkpoints")
    assert folder is not None
    stored = read_manifest(folder).tensors
    return {name: tuple(str(c.crc32) for c in t.chunks) for name, t in stored.items()}


def main() -> None:
    """Both runs, and what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to run  [default: a temporary folder]")
    options = parser.parse_args()
    root = options.folder or Path(tempfile.mkdtemp())
    whole, broken = prepared(root / "whole"), prepared(root / "broken")
    train(whole, None)
    for step in KILLED_AFTER:
        train(broken, step)
        print(f"killed after step {lines(broken.parent)[-1]['step']}", flush=True)
    train(broken, None)
    pairs = list(zip(lines(whole.parent), lines(broken.parent), strict=True))
    for phase in range(3):
        own = [(a, b) for a, b in pairs if a["phase"] == phase]
        losses = f"{own[0][0]['loss']:.4f} to {own[-1][0]['loss']:.4f}"
        same = all(a["loss"] == b["loss"] for a, b in own)
        print(
            f"phase {phase}: {len(own)} steps, loss {losses}, killed: {'equal' if same else 'NOT'}"
        )
    same = tensors(whole) == tensors(broken)
    print(f"weights and moments at the end: {'equal to the bit' if same else 'NOT equal'}")
    sys.exit(not same or any(a["loss"] != b["loss"] for a, b in pairs))


if __name__ == "__main__":
    main()
