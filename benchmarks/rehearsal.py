"""The planner's memory and traffic of krzem's own engine beside the rehearsal of its code.

    python benchmarks/rehearsal.py [--only NAME] [--out FILE.json]      rehearse (minutes)
    python benchmarks/rehearsal.py --show FILE.json                    the table of its page

The first, the second and the last stage of each layout: what the planner tells apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krzem.cost.memory import RankBytes
from krzem.hardware import read_cluster
from krzem.layout.layout import pack, parse_layout
from krzem.model.catalogue import load_model_config
from krzem.plan.price import Pricer
from krzem.plan.question import Question
from krzem.plan.request import settle
from krzem.train.config import model_spec
from krzem.train.optim import OptimizerConfig
from krzem.train.rehearsal.rank import Step
from krzem.train.rehearsal.stages import rehearse, stage_rank

KINDS = ("weights", "gradients", "states", "activations", "transient")


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    layout: str
    sequence: int
    batch: int
    on: str


CASES = [
    Case("v3-pp16", "deepseek-v3", "pp=16,ep=64,dp=128,zero=1,recompute=full", 4096, 15360, "h800"),
    Case("v3-pp8", "deepseek-v3", "pp=8,ep=64,dp=256,zero=2,recompute=full", 4096, 15360, "h800"),
    Case(
        "v3-interleaved",
        "deepseek-v3",
        "pp=8,vpp=2,schedule=interleaved,ep=64,dp=256,zero=1,recompute=full",
        4096,
        16384,
        "h800",
    ),
    Case("v3-tp", "deepseek-v3", "tp=4,pp=8,ep=64,dp=64,zero=1,recompute=full", 4096, 4096, "h800"),
    Case("v3-fsdp", "deepseek-v3", "dp=2048,ep=64,zero=3,recompute=full", 4096, 8192, "h800"),
    Case("v3-none", "deepseek-v3", "pp=16,ep=64,dp=64,zero=1", 4096, 4096, "h800"),
    Case(
        "v4-pro",
        "deepseek-v4-pro",
        "pp=16,ep=128,dp=512,zero=1,recompute=full",
        4096,
        16384,
        "h800",
    ),
    Case(
        "qwen3-235b",
        "qwen3-235b-a22b",
        "pp=4,ep=32,dp=64,zero=1,recompute=full",
        4096,
        2048,
        "h800",
    ),
    Case(
        "qwen3-235b-fsdp",
        "qwen3-235b-a22b",
        "dp=256,ep=32,zero=3,recompute=full",
        4096,
        2048,
        "h800",
    ),
    Case("qwen3-30b", "qwen3-30b-a3b", "dp=64,ep=16,zero=3,recompute=full", 4096, 256, "h800"),
    Case("qwen3-32b", "qwen3-32b", "tp=4,dp=16,zero=1,recompute=full", 4096, 128, "h800"),
    Case("llama-8b", "llama-3.1-8b", "dp=64,zero=3,recompute=full", 8192, 256, "h800"),
    Case("llama-70b", "llama-3.1-70b", "dp=256,zero=3,recompute=full", 8192, 512, "h800"),
    Case(
        "llama-70b-3d", "llama-3.1-70b", "tp=8,pp=4,dp=8,zero=1,recompute=full", 8192, 128, "h800"
    ),
    Case("llama-70b-none", "llama-3.1-70b", "tp=8,pp=4,dp=8,zero=1", 8192, 128, "h800"),
    Case(
        "llama-405b", "llama-3.1-405b", "tp=8,pp=16,dp=32,zero=1,recompute=full", 8192, 1024, "h800"
    ),
]


def planned(case: Case) -> dict[str, dict[str, float]]:
    """The planner's bytes by kind on the first, a middle and the last pipeline rank."""
    layout = parse_layout(case.layout)
    config, name = load_model_config(case.model)
    spec = model_spec(config, name=name)
    asked = settle(
        Question(
            model=spec.arch,
            on=read_cluster(f"{case.on}:{layout.devices}"),
            sequence=case.sequence,
            global_batch=case.batch,
            precision="bf16",
            optimizer="adamw",
            engine="krzem",
            tokens=case.batch * case.sequence,
        )
    )
    memory = Pricer(asked.task).memory(pack([layout]))
    return {place: _kinds(getattr(memory, place), 0) for place in ("first", "middle", "last")}


def _kinds(rank: RankBytes, index: int) -> dict[str, float]:
    found = {}
    for kind in KINDS:
        value = getattr(rank, "optimizer" if kind == "states" else kind)
        found[kind] = float(value[index]) if getattr(value, "ndim", 0) else float(value)
    return found


def rehearsed(case: Case) -> dict[str, dict[str, Any]]:
    """The rehearsal's, of the ranks that the planner tells apart."""
    layout = parse_layout(case.layout)
    config, name = load_model_config(case.model)
    step = Step(
        spec=model_spec(config, name=name),
        layout=layout,
        sequence=case.sequence,
        micro_batches=case.batch // (layout.dp * layout.micro_batch),
        optimizer=OptimizerConfig(),
    )
    stages = {"first": 0, "middle": min(1, layout.pp - 1), "last": layout.pp - 1}
    ranks = sorted({stage_rank(layout, s) for s in stages.values()})
    found = rehearse(step, ranks, progress=lambda said: print(f"  {said}", file=sys.stderr))
    by = {r.stage: r for r in found.ranks}
    return {
        place: {
            "peak": dict(by[stage].peak.bytes),
            "parameters": by[stage].parameters,
            "seconds": round(by[stage].seconds, 1),
            "largest": [[p.bytes, p.kind, p.count, p.shape, p.operator] for p in by[stage].largest],
            "traffic": [
                [t.operation, t.group, t.ranks, t.count, t.bytes] for t in by[stage].traffic
            ],
            "reads": by[stage].reads_in_passes,
            "tflop": by[stage].flops / 1e12,
        }
        for place, stage in stages.items()
    }


def show(rows: list[dict[str, Any]]) -> str:
    """The table of docs/rehearsal.md."""
    lines = [
        "| layout | stage | rehearsed GiB | planned GiB | planned / rehearsed | processor s |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        plan = planned(Case(**row["case"]))
        seen = []
        for place in ("first", "middle", "last"):
            real = row["rehearsed"][place]
            if real in seen:
                continue
            seen.append(real)
            a, b = sum(real["peak"].values()) / 2**30, sum(plan[place].values()) / 2**30
            what = f"{row['case']['model']} `{row['case']['layout']}`"
            lines.append(
                f"| {what} | {place} | {a:.2f} | {b:.2f} | {b / a:.3f} | {real['seconds']} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=Path)
    asked = parser.parse_args()
    if asked.show:
        rows = json.loads(asked.show.read_text(encoding="utf-8"))
        print(show(rows))
        return
    rows = []
    for case in CASES:
        if asked.only and case.name not in asked.only.split(","):
            continue
        begun = time.perf_counter()
        print(f"{case.name}: {case.layout}", file=sys.stderr)
        rows.append({"case": vars(case), "rehearsed": rehearsed(case)})
        print(f"  {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        if asked.out:
            asked.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(show(rows))


if __name__ == "__main__":
    main()
