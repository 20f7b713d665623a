"""Starts worker processes and collects what the first one prints."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def spawn(script: str, world: int, cases: list[dict[str, Any]], timeout: float = 500) -> list[Any]:
    """Run ``script`` in ``world`` processes on ``cases``; the JSON lines of rank 0.

    Fails with the errors of all ranks where one of them does.
    """
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script)), str(rank), str(world), port],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for rank in range(world)
    ]
    texts: dict[int, tuple[str, str]] = {}
    stdin = json.dumps(cases)

    def follow(rank: int, process: subprocess.Popen[str]) -> None:
        texts[rank] = process.communicate(stdin, timeout=timeout)

    threads = [threading.Thread(target=follow, args=item) for item in enumerate(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    for process in ranks:
        if process.poll() is None:
            process.kill()
    failed = [r for r, process in enumerate(ranks) if process.wait()]
    assert not failed, "\n".join(f"rank {r}: {_tail(texts.get(r))}" for r in failed)
    return [json.loads(line) for line in texts[0][0].splitlines()]


def _tail(text: tuple[str, str] | None) -> str:
    """The end of what a rank said, without the prefixes that torch adds at every start."""
    if text is None:
        return "no answer in time"
    return re.sub(r"(\[rank\d+\]: )+", "", text[1])[-3000:]
