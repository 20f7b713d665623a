"""The processes of a probe on one host: starts one for each device and waits for all of them.

``python -m krzem.run.probe.worker FOLDER PER_HOST WORLD SECONDS USE``; under Slurm every node runs
it, and SLURM_NODEID says which ranks are its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from krzem.run.launch.commands import node_rank


def main(arguments: list[str]) -> int:
    """The first exit code that is not 0, or 0."""
    folder, per_host, world = arguments[0], int(arguments[1]), int(arguments[2])
    seconds, use = arguments[3], arguments[4]
    node = os.environ.get("SLURM_NODEID")
    first = (node_rank() if node is None else int(node)) * per_host
    Path(folder).mkdir(parents=True, exist_ok=True)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "krzem.run.probe.rank", folder, str(first + local), str(world),
             str(local), seconds, use]
        )
        for local in range(per_host)
    ]  # fmt: skip
    codes = [process.wait() for process in started]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
