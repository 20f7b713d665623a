"""Exports under a layout, imports in one process, and the other way round.

``python transfer_worker.py RANK WORLD PORT``, cases with ``model``, ``layout`` and ``folder``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from tests.train.configs import ALL
from tests.train.parallel.worker import collect

from krzem.layout.layout import Layout, parse_layout
from krzem.train.config import model_spec
from krzem.train.engine import Engine
from krzem.train.hf import export_model, import_model

CPU = torch.device("cpu")


def outcome(case: dict[str, Any]) -> dict[str, Any]:
    """Whether values survive both ways, bit by bit."""
    config, layout = ALL[case["model"]], parse_layout(case["layout"])
    spec = model_spec(config)
    spread = Engine(spec, layout, device=CPU, seed=3)
    folder = export_model(spread, case["folder"], config, dtype=torch.float32, shard_bytes=50_000)
    single = Engine(spec, Layout(), device=CPU, seed=9)
    absent = list(import_model(single, folder))
    expected = collect(Engine(spec, Layout(), device=CPU, seed=3), shared=False)
    out = equal(collect(single, shared=False), expected)
    back = Engine(spec, layout, device=CPU, seed=9)
    import_model(back, folder)
    return {
        "absent": absent,
        "out": out,
        "back": equal(collect(back, shared=layout.pp > 1), expected),
    }


def equal(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether both hold the same values under the same names, copies apart."""
    return all(torch.equal(v, expected[n.removeprefix("copy:")]) for n, v in found.items())


def main() -> None:
    """Run all cases."""
    rank, world, port = (int(a) for a in sys.argv[1:4])
    cases = json.load(sys.stdin)
    store = dist.TCPStore("127.0.0.1", port, world, is_master=rank == 0)
    for number, case in enumerate(cases):
        own = dist.PrefixStore(str(number), store)
        dist.init_process_group("gloo", store=own, rank=rank, world_size=world)
        result = outcome(case)
        if rank == 0:
            print(json.dumps(result), flush=True)
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
