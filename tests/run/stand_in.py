"""A trainer that knows nothing of krzem: ``python stand_in.py ENGINE FOLDER STEPS SECONDS``.

It prints what torchtitan or Megatron-LM print of a step, and keeps checkpoints as they do: folders
with data, and last of all the file that says that one is whole.  A checkpoint holds every step that
was trained, so that one that is lost or repeated shows.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

EVERY = 5
TRACKER = "latest_checkpointed_iteration.txt"


def main() -> None:
    engine, root, steps, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    root.mkdir(parents=True, exist_ok=True)
    titan = engine == "torchtitan"
    step, trained = newest(root, titan)
    while step < steps:
        time.sleep(float(seconds))
        step += 1
        trained.append(step)
        loss = 5 - step / steps
        if titan:
            print(f"[titan] 2026-11-30 12:00:{step % 60:02d},000 - root - INFO - "
                  f"\x1b[31mstep: {step:2}  \x1b[32mloss:  {loss:.5f}  \x1b[38;2;180;60;0m"
                  "grad_norm:  1.2340  \x1b[38;2;54;234;195mmemory: -0.00GiB(-0.00%)  \x1b[34m"
                  "tps: 1,234  \x1b[36mtflops: 0.00  \x1b[35mmfu: 0.00%\x1b[39m",
                  flush=True)  # fmt: skip
        else:
            print(f" iteration {step:8d}/{steps:8d} | consumed samples: {step * 8:12d} | elapsed "
                  f"time per iteration (ms): {float(seconds) * 1e3:.1f} | learning rate: 1.0E-04 | "
                  f"global batch size: {8:5d} | lm loss: {loss:.6E} | grad norm: 1.234 |",
                  flush=True)  # fmt: skip
        if step % EVERY == 0 or step == steps:
            store(root, titan, step, trained)


def newest(root: Path, titan: bool) -> tuple[int, list[int]]:
    if titan:
        whole = [p for p in root.glob("step-*") if (p / ".metadata").exists()]
        steps = [int(p.name.removeprefix("step-")) for p in whole]
    else:
        tracker = root / TRACKER
        steps = [int(tracker.read_text())] if tracker.exists() else []
    if not steps:
        return 0, []
    step = max(steps)
    folder = root / (f"step-{step}" if titan else f"iter_{step:07d}")
    return step, json.loads((folder / "__0_0.distcp").read_text())


def store(root: Path, titan: bool, step: int, trained: list[int]) -> None:
    folder = root / (f"step-{step}" if titan else f"iter_{step:07d}")
    folder.mkdir(exist_ok=True)
    (folder / "__0_0.distcp").write_text(json.dumps(trained))
    time.sleep(0.01)
    (folder / ".metadata").write_text("whole")
    if not titan:
        (root / TRACKER).write_text(str(step))


main()
