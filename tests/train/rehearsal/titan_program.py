"""Debug models of torchtitan rehearsed, for test_torchtitan.py: one JSON document on stdout."""

import json
from dataclasses import replace
from typing import Any

from krzem.errors import KrzemError
from krzem.layout.layout import parse_layout
from krzem.train.rehearsal.match import find_faults
from krzem.train.rehearsal.stages import RankSummary
from krzem.train.rehearsal.titan import TitanStep, titan_summary
from krzem.train.rehearsal.titan_config import TitanStart, resolved

DENSE = ("--module", "llama3", "--config", "llama3_debugmodel", "--training.seq_len", "512")
EXPERTS = (
    "--module", "qwen3", "--config", "qwen3_moe_debug", "--training.seq_len", "256",
    "--training.disable_cuda_graphs", "--training.local_batch_size", "5",
)  # fmt: skip


def step(layout: str, micro_batches: int, *words: str, sequence: int = 256) -> TitanStep:
    """A step of 8 or fewer ranks."""
    return TitanStep(
        start=TitanStart(words=words), layout=parse_layout(layout), sequence=sequence,
        micro_batches=micro_batches,
    )  # fmt: skip


def told(found: RankSummary) -> dict[str, Any]:
    """What tests look at."""
    return {
        "parameters": found.parameters,
        "layers": list(found.layers),
        "peak": found.peak.bytes,
        "flops": found.flops,
        "reads": found.reads_in_passes,
        "traffic": sorted([t.operation, t.group, t.count, t.bytes] for t in found.traffic),
        "notes": list(found.notes),
    }


def main() -> None:
    dense = step(
        "dp=4,mbs=2,zero=3", 4, *DENSE, "--training.local_batch_size", "2",
        "--training.global_batch_size", "32", "activation-checkpoint:none", sequence=512,
    )  # fmt: skip
    staged = step(
        "pp=2,dp=2,ep=2,mbs=1,zero=2", 5, *EXPERTS, "--parallelism.pipeline_parallel_degree", "2",
        "--parallelism.expert_parallel_degree", "2", "activation-checkpoint:none",
    )  # fmt: skip
    first, last = titan_summary(staged, 0), titan_summary(staged, 2)
    found: dict[str, Any] = {
        "dense": told(titan_summary(dense, 1)),
        "dense, each run": told(titan_summary(replace(dense, repeat=False), 1)),
        "first": told(first),
        "first, each run": told(titan_summary(replace(staged, repeat=False), 0)),
        "crowded": told(titan_summary(replace(staged, crowding=2.0), 0)),
        "last": told(last),
        "faults": [f.said for f in find_faults({0: first.program, 2: last.program})],
        "resolved": resolved(staged.start),
    }
    wrong = {
        "other": replace(staged, layout=parse_layout("pp=2,dp=2,mbs=1,zero=2")),
        "refused": step("dp=4", 1, *DENSE, "--training.no_such_thing", "1"),
    }
    for name, asked in wrong.items():
        try:
            titan_summary(asked, 0)
        except KrzemError as error:
            found[name] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
