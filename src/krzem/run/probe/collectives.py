"""Collectives by size, among the processes of a probe; needs torch."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krzem.run.probe.backend import torch_or_none

SIZES = tuple(1 << power for power in (12, 16, 20, 24, 26, 28))
ENOUGH = 1 << 20
"""Bytes from which on a rate is the link's and no longer its latency: so far, time or not."""
_TIMEOUT = datetime.timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One collective at one size."""

    what: str
    bytes: int
    """Of the buffer on each rank."""
    seconds: float
    bus_bytes_per_s: float
    """Bytes that cross a rank's link, per second: comparable between collectives."""


def measure(place: Path, rank: int, world: int, device: str, budget: float) -> list[Collective]:
    """All collectives over ``world`` ranks that meet through the file ``place``.

    Every rank calls it; the result is the same on all.
    """
    torch = torch_or_none()
    if torch is None or world < 2:
        return []
    import torch.distributed as dist

    kind = device.partition(":")[0]
    backend = dist.get_default_backend_for_device(kind)
    dist.init_process_group(
        backend, init_method=f"file://{place}", rank=rank, world_size=world, timeout=_TIMEOUT
    )
    try:
        return [
            result
            for name in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
            for result in _by_size(torch, dist, name, world, device, budget / 4)
        ]
    finally:
        dist.destroy_process_group()


def _by_size(
    torch: Any, dist: Any, name: str, world: int, device: str, budget: float
) -> list[Collective]:
    found = []
    end = time.perf_counter() + budget
    for size in SIZES:
        count = max(world, size // 4 // world * world)
        work, share = _work(torch, dist, name, world, device, count)
        seconds = _agreed(torch, dist, _time(work, torch, device), device)
        found.append(
            Collective(what=name, bytes=4 * count, seconds=seconds,
                       bus_bytes_per_s=4 * count * share / seconds)
        )  # fmt: skip
        late = time.perf_counter() + 16 * 6 * seconds > end
        if size >= ENOUGH and _agreed(torch, dist, float(late), device) > 0:
            break
    return found


def _work(
    torch: Any, dist: Any, name: str, world: int, device: str, count: int
) -> tuple[Callable[[], Any], float]:
    """The call, and the share of the buffer that crosses a rank's link."""
    whole = torch.ones(count, device=device)
    part = torch.ones(count // world, device=device)
    others = (world - 1) / world
    if name == "all_reduce":
        return lambda: dist.all_reduce(whole), 2 * others
    if name == "all_gather":
        return lambda: dist.all_gather_into_tensor(whole, part), others
    if name == "reduce_scatter":
        return lambda: dist.reduce_scatter_tensor(part, whole), others
    out = torch.empty_like(whole)
    return lambda: dist.all_to_all_single(out, whole), others


def _time(work: Callable[[], Any], torch: Any, device: str) -> float:
    found = []
    for _ in range(5):
        begun = time.perf_counter()
        work()
        if device != "cpu":
            torch.accelerator.synchronize()
        found.append(time.perf_counter() - begun)
    return statistics.median(found[1:])


def _agreed(torch: Any, dist: Any, value: float, device: str) -> float:
    """The largest value of any rank, so that all go on alike."""
    box = torch.tensor([value], dtype=torch.float32, device=device)
    dist.all_reduce(box, op=dist.ReduceOp.MAX)
    return float(box.item())
