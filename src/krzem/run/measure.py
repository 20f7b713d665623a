"""A probe from start to verdict, on this machine or as a job of a pool."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from krzem.errors import LaunchError
from krzem.run.probe.backend import accelerators
from krzem.run.probe.judge import Probed, judge, read_ranks

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LATE = 6.0
"""Times the planned length after which a probe hangs."""
Progress = Callable[[float, str], None]


def probe_here(
    *,
    seconds: float,
    processes: int | None = None,
    use: str = "auto",
    spread: float = 0.15,
    progress: Progress = lambda share, part: None,
) -> Probed:
    """Measure every device of this machine at the same time, as training would use them.

    Processors without an accelerator are split among ``processes`` (2 by default), so that there
    is somebody to talk to.  Raises LaunchError where a process of the probe fails.
    """
    count = processes or (accelerators() if use == "auto" else 0) or min(2, _cores())
    with tempfile.TemporaryDirectory(prefix="krzem-probe-") as name:
        folder = Path(name)
        with _started(folder, count, seconds, use) as worker:
            _wait(worker, folder, count, seconds, progress)
            errors = (folder / "errors.log").read_text(errors="replace")
        if worker.returncode:
            raise LaunchError(f"the probe failed: {errors[-800:].strip() or 'it says nothing'}")
        return judge(read_ranks(folder), spread=spread)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def _started(
    folder: Path, count: int, seconds: float, use: str
) -> Iterator[subprocess.Popen[bytes]]:
    """The worker in a group of its own, ended whatever happens."""
    threads = str(max(1, _cores() // count))
    environment = {**dict.fromkeys(_THREADS, threads), **os.environ}
    command = [sys.executable, "-m", "krzem.run.probe.worker", str(folder), str(count), str(count),
               str(seconds), use]  # fmt: skip
    with (folder / "errors.log").open("wb") as errors:
        worker = subprocess.Popen(
            command, env=environment, stdout=errors, stderr=errors, start_new_session=True
        )
    try:
        yield worker
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, 9)
            worker.wait()


def _wait(
    worker: subprocess.Popen[bytes], folder: Path, count: int, seconds: float, progress: Progress
) -> None:
    limit = time.monotonic() + _LATE * seconds + 60
    while worker.poll() is None:
        if time.monotonic() > limit:
            raise LaunchError(f"the probe has not ended after {_LATE * seconds + 60:,.0f} s")
        progress(*how_far(folder, count))
        time.sleep(0.1)
    progress(1.0, "done")


def how_far(folder: Path, count: int) -> tuple[float, str]:
    """(share, part) of the slowest rank."""
    found = []
    for rank in range(count):
        text = "0 starting"
        with contextlib.suppress(OSError):
            text = (folder / f"rank-{rank}.progress").read_text() or text
        share, _, part = text.partition(" ")
        found.append((float(share), part))
    return min(found)


def forget(folder: Path) -> None:
    """Remove what an earlier probe left in ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)
