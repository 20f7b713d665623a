"""Speed and memory of the outlook's simulation: ``python benchmarks/outlook.py [PATHS]``."""

from __future__ import annotations

import os
import resource
import sys
import time

from krzem.outlook import forecast, shipped


def main(paths: int) -> None:
    """Print paths per second, seconds and peak memory; the best of three runs."""
    assumptions = shipped().with_run(paths=paths)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = forecast(assumptions)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    best = min(seconds)
    print(
        f"{paths:,} paths x {assumptions.run.steps} steps on {len(os.sched_getaffinity(0))} cores"
    )
    print(
        f"{best:.2f} s (of {', '.join(f'{s:.2f}' for s in seconds)}), {paths / best:,.0f} paths/s"
    )
    print(f"peak memory {peak:.0f} MiB; odds within 5 years {result.odds(5):.4f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
