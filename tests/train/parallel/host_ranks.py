"""Sums through a host's memory.

``python host_ranks.py RANK WORLD PORT``, cases with ``sizes`` and ``missing``, the rank without
memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from krzem.train.parallel import host_memory


def outcome(case: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    """Whether the sums are exact, twice over the same memory, and whether there was memory."""
    if case["missing"] == rank:
        host_memory._FOLDER = Path("/no/such/folder")
    group = dist.new_group(list(range(world)))
    assert group is not None
    add = host_memory.host_sum(group, 3 * sum(case["sizes"]) + 5)
    host_memory._FOLDER = Path("/dev/shm")
    dist.barrier()
    left = [p.name for p in host_memory._FOLDER.glob("krzem-*")]
    same = add is None or all(exact(add, case["sizes"], turn, rank, world) for turn in range(2))
    agreed: list[Any] = [None] * world
    dist.all_gather_object(agreed, (same, add is not None))
    return {"same": all(a[0] for a in agreed), "memory": [a[1] for a in agreed], "left": left}


def exact(add: host_memory.HostSum, sizes: list[int], turn: int, rank: int, world: int) -> bool:
    """Whether tensors that differ by rank become their sums."""
    drawn = [
        [torch.arange(3.0 * n).view(n, 3) + 10 * r + turn for n in sizes] for r in range(world)
    ]
    sums = [torch.stack(parts).sum(0) for parts in zip(*drawn, strict=True)]
    add(drawn[rank])
    return all(torch.equal(a, b) for a, b in zip(drawn[rank], sums, strict=True))


def main() -> None:
    """Run the cases of the standard input."""
    rank, world, port = (int(x) for x in sys.argv[1:4])
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    for case in json.load(sys.stdin):
        result = outcome(case, rank, world)
        if rank == 0:
            print(json.dumps(result), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
