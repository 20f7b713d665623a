"""How long training stands still for a checkpoint, and how fast it is written and read back.

    python benchmarks/checkpoint.py                      10M parameters with AdamW moments, 120 MB
    python benchmarks/checkpoint.py --parameters 50e6 --folder /fast/disk
    torchrun --nproc_per_node=2 benchmarks/checkpoint.py

Matrix products run on while a checkpoint is written, as a training step would.  The first save pays
for fresh memory and is given apart.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from krzem.train.checkpoint import AsyncSaver, Retention, Saved, load, save


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=10e6)
    parser.add_argument("--saves", type=int, default=6)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if ranks > 1 else 0
    folder = options.folder or Path(tempfile.gettempdir())
    root = folder / "krzem-checkpoint-benchmark"
    if rank == 0:
        shutil.rmtree(root, ignore_errors=True)
    state = make_state(int(options.parameters), ranks)
    try:
        measure(root, state, options.saves, show=rank == 0)
    finally:
        if rank == 0:
            shutil.rmtree(root, ignore_errors=True)
        if ranks > 1:
            dist.destroy_process_group()


def make_state(parameters: int, ranks: int) -> dict[str, Tensor]:
    """Weights and two moments of square matrices, cut over the ranks."""
    width, count = 1024, max(1, parameters // 1024**2)
    mesh = init_device_mesh("cpu", (ranks,)) if ranks > 1 else None
    state: dict[str, Tensor] = {}
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        for layer in range(count):
            tensor = torch.randn(width // ranks, width)
            state[f"{kind}/{layer}"] = (
                tensor if mesh is None else DTensor.from_local(tensor, mesh, [Shard(0)])
            )
    return state


def measure(root: Path, state: dict[str, Tensor], saves: int, *, show: bool) -> None:
    """Save in the background some times, once at once, and load."""
    copied = in_background(root, state, range(saves), copy_now=True)
    hidden = in_background(root, state, range(saves, 2 * saves), copy_now=False)
    now = save(root, 2 * saves, state, meta={})
    begun = time.perf_counter()
    load(now.folder, state)
    loaded = time.perf_counter() - begun
    if not show:
        return
    size = now.bytes / 1e6
    print(f"checkpoint of {size:,.0f} MB on {now.folder.parent.parent}")
    show_saves("first save", copied[:1])
    show_saves("later saves", copied[1:])
    show_saves("copy hidden", hidden[1:])
    print(f"save at once   {now.seconds:.3f} s, {size / now.seconds:,.0f} MB/s")
    print(f"load, verified {loaded:.3f} s, {size / loaded:,.0f} MB/s")


def in_background(
    root: Path, state: dict[str, Tensor], steps: range, *, copy_now: bool
) -> list[Saved]:
    """Save while matrix products run; a forward and backward pass before each optimizer step."""
    done = []
    with AsyncSaver(root, retention=Retention(keep_last=2)) as saver:
        for step in steps:
            saver.save(step, state, {"step": step}, copy_now=copy_now)
            work()
            saver.wait_copied()
            while (saved := saver.poll()) is None:
                work()
            done.append(saved)
    return done


def show_saves(what: str, saves: list[Saved]) -> None:
    """Medians of ``saves`` in a line."""
    stall = statistics.median(s.stall_seconds for s in saves)
    total = statistics.median(s.seconds for s in saves)
    print(
        f"{what:<14} stall {stall * 1e3:6.1f} ms of {total:.3f} s = {stall / total:.1%} "
        f"(median of {len(saves)}; goal < 5 %)"
    )


def work() -> None:
    """What a small training step does: some 100 ms of matrix products."""
    a = torch.randn(512, 512)
    for _ in range(40):
        a = torch.tanh(a @ a)


if __name__ == "__main__":
    main()
