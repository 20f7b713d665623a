"""The planner's memory and traffic of krzem's own engine beside the rehearsal of its code.

    python benchmarks/rehearsal.py [--only TEXT]    rehearse what rehearsal.json does not hold yet
    python benchmarks/rehearsal.py --again TEXT     rehearse these layouts anew
    python benchmarks/rehearsal.py --whole          every stage of large layouts, side by side
    python benchmarks/rehearsal.py --kinds          where the two differ, kind by kind
    python benchmarks/rehearsal.py --write          the tables of docs/rehearsal.md
    python benchmarks/rehearsal.py --trials         trials of torchtitan whose ends are known

The first, the second and the last stage of each layout: what the planner tells apart.  TEXT is a
part of "model layout".
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from krzem.accuracy.evaluate import outcomes
from krzem.cost.coefficients import fitted
from krzem.cost.memory import RankBytes
from krzem.cost.stages import stages
from krzem.cost.trainer_held import held_weights, weight_traffic
from krzem.cost.trainer_memory import trainer_ranks
from krzem.facts.table import read_table
from krzem.hardware import read_cluster
from krzem.layout.layout import pack, parse_layout
from krzem.model.catalogue import load_model_config
from krzem.plan.price import Pricer
from krzem.plan.question import Question
from krzem.plan.request import settle
from krzem.train.config import model_spec

if TYPE_CHECKING:
    from krzem.model.architecture import Architecture
    from krzem.train.rehearsal.rank import Step
    from krzem.train.rehearsal.stages import RankSummary

KINDS = ("weights", "gradients", "states", "activations", "transient")
FOUND = Path(__file__).with_suffix(".json")
WHOLE_FOUND = FOUND.with_name("rehearsal_whole.json")
PAGE = Path(__file__).parents[1] / "docs" / "rehearsal.md"


@dataclass(frozen=True)
class Case:
    model: str
    layout: str
    sequence: int
    batch: int
    on: str = "h800"

    @property
    def name(self) -> str:
        """As rows of the table are called."""
        return f"{self.model} {self.layout}"

    @property
    def stages(self) -> dict[str, int]:
        """Pipeline ranks that the planner tells apart; a pipe of one or two has fewer."""
        pp = parse_layout(self.layout).pp
        places = {"first": 0, "last": pp - 1, "middle": 1}
        if pp < 3:
            del places["middle"]
        if pp < 2:
            del places["last"]
        return places


_FULL, _PP = "recompute=full", "pp=16,ep=64"
CASES = [
    Case("deepseek-v3", f"pp=16,ep=64,dp=128,zero=1,{_FULL}", 4096, 15360),
    Case("qwen3-235b-a22b", f"pp=16,ep=16,dp=16,zero=1,{_FULL}", 4096, 1024),
    Case("llama-3.1-70b", f"tp=8,pp=16,dp=8,zero=1,{_FULL}", 8192, 128),
    Case("qwen3-30b-a3b", "pp=12,dp=16,ep=8,zero=1", 4096, 512),
    Case("deepseek-v4-flash", f"pp=16,ep=64,dp=64,zero=1,{_FULL}", 4096, 2048),
    Case("llama-3.1-8b", f"dp=64,zero=3,{_FULL}", 8192, 256),
    Case("deepseek-v3", "pp=16,ep=64,dp=64,zero=1", 4096, 4096),
    Case("deepseek-v3", f"tp=4,pp=16,ep=64,dp=64,zero=1,{_FULL}", 4096, 4096),
    Case("llama-3.1-70b", "tp=8,pp=16,dp=8,zero=1,recompute=modules", 8192, 128),
    Case("deepseek-v4-pro", f"pp=16,ep=128,dp=256,zero=1,{_FULL}", 4096, 16384),
    Case("llama-3.1-8b", "dp=128,zero=2", 8192, 256),
    Case("qwen3-30b-a3b", f"tp=2,pp=12,dp=16,ep=8,etp=2,zero=1,{_FULL}", 4096, 256),
    Case("llama-3.1-8b", "dp=64,zero=0,recompute=attention", 8192, 256),
    Case("qwen3-32b", "tp=4,pp=16,dp=8,zero=1", 4096, 128),
    Case("deepseek-v3", f"cp=2,cpkind=a2a,pp=16,ep=64,dp=64,zero=1,{_FULL}", 4096, 4096),
    Case("llama-3.1-405b", f"tp=8,pp=32,dp=16,zero=1,{_FULL}", 8192, 512),
    Case("qwen3-1.7b", f"tp=4,dp=16,zero=1,{_FULL}", 4096, 32),
    Case("llama-3.1-8b", "pp=8,schedule=zb-v,vpp=2,dp=16,zero=1", 4096, 256),
    Case("qwen3-30b-a3b", f"dp=64,ep=16,zero=3,{_FULL}", 4096, 64),
    Case("deepseek-v3", "pp=16,ep=64,dp=128,zero=1,recompute=modules", 4096, 15360),
    Case("deepseek-v3", f"{_PP},vpp=2,schedule=interleaved,dp=128,zero=1,{_FULL}", 4096, 8192),
    Case("qwen3-8b", f"cp=4,cpkind=a2a,dp=16,zero=3,{_FULL}", 32768, 16),
    Case("llama-3.1-70b", "tp=8,pp=20,vpp=2,schedule=interleaved,dp=8,zero=1", 8192, 160),
    Case("qwen3-235b-a22b", f"pp=32,ep=8,dp=8,zero=1,mbs=2,{_FULL}", 4096, 1024),
    Case("qwen3-235b-a22b", f"tp=4,pp=16,ep=16,dp=16,zero=1,{_FULL}", 4096, 1024),
    Case("llama-3.1-8b", "pp=8,schedule=dualpipev,vpp=2,dp=16,zero=1", 4096, 256),
    Case("deepseek-v3", f"pp=32,ep=64,dp=64,zero=2,mbs=2,{_FULL}", 4096, 8192),
    Case("deepseek-v3", f"pp=16,ep=64,dp=256,zero=1,{_FULL}", 4096, 15360),
    Case("deepseek-v4-flash", f"pp=16,ep=32,dp=32,zero=1,mbs=2,{_FULL}", 4096, 2048),
    Case("deepseek-v4-pro", f"pp=32,ep=64,dp=64,zero=1,{_FULL}", 4096, 4096),
    Case("deepseek-v4-pro", f"pp=16,ep=128,dp=512,zero=1,{_FULL}", 4096, 16384),
]  # fmt: skip
WHOLE = [
    Case("deepseek-v3", f"pp=16,ep=64,dp=128,zero=1,{_FULL}", 4096, 15360),
    Case("deepseek-v3", f"{_PP},vpp=2,schedule=interleaved,dp=128,zero=1,{_FULL}", 4096, 8192),
    Case("deepseek-v3", "pp=16,ep=64,dp=128,zero=1,recompute=modules", 4096, 15360),
    Case("qwen3-235b-a22b", f"pp=16,ep=16,dp=16,zero=1,{_FULL}", 4096, 1024),
]  # fmt: skip
"""Rehearsed at every stage."""


def pricer(case: Case) -> Pricer:
    """The planner on this case."""
    config, name = load_model_config(case.model)
    arch = model_spec(config, name=name).arch
    return pricer_of(
        arch, f"{case.on}:{parse_layout(case.layout).devices}", case.sequence, case.batch
    )


def pricer_of(arch: Architecture, on: str, sequence: int, batch: int) -> Pricer:
    """The planner of krzem's own engine in bfloat16 with AdamW."""
    asked = settle(
        Question(
            model=arch,
            on=read_cluster(on),
            sequence=sequence,
            global_batch=batch,
            precision="bf16",
            optimizer="adamw",
            engine="krzem",
            step_alone=True,
        )
    )
    return Pricer(asked.task)


def planned_at(case: Case, stages: Iterable[int]) -> list[dict[str, float]]:
    """The planner's bytes by kind on these pipeline ranks."""
    asked, x = pricer(case), pack([parse_layout(case.layout)])
    sizes = asked.sizes(asked.choose(x).settings[0])
    rank = trainer_ranks(asked.task.architecture, asked.table, x, case.batch, sizes)
    return [_kinds(rank(np.array([i])), 0) for i in stages]


def planned(case: Case) -> dict[str, dict[str, float]]:
    """The same on the ranks that the planner tells apart."""
    return dict(zip(case.stages, planned_at(case, case.stages.values()), strict=True))


class Counting(Pricer):
    """The planner on a machine whose links move a byte a second and that takes no time else:
    its seconds are bytes, of the code that prices a step."""

    def machine_of(self, choices: Any) -> Any:
        """The machine without everything but its links."""
        still = dict.fromkeys(
            ("up_latency", "out_latency", "up_start", "out_start", "tp_overlap", "tp_backward",
             "reduce_overlap", "gather_overlap", "ep_overlap", "beside", "dedup", "dispatch_all",
             "turn_seconds", "cut_turn_seconds", "host_seconds", "expert_host_seconds", "mesh",
             "gap_seconds", "jitter", "fixed_seconds", "synchronised"), 0.0,
        )  # fmt: skip
        one = dict.fromkeys(("up_bytes_per_s", "imbalance", "pp_exposed", "overhead"), 1.0)
        fast = dict.fromkeys(
            ("matmul_flops", "matmul16_flops", "attention_flops", "memory_bytes_per_s"), 1e40
        )
        return replace(super().machine_of(choices), domain=1e12, **still, **one, **fast)


def planned_traffic(case: Case) -> dict[str, float]:
    """Bytes that a rank sends in a step, by what they are for: of experts and to other stages one
    of the second stage, of weights and gradients one of the first.

    A step is priced with the fullest middle stage; the second one holds a share of its experts,
    none where its layers are dense.
    """
    layout = parse_layout(case.layout)
    x, asked = pack([layout]), pricer(case)
    counting = Counting(asked.task)
    count = case.batch / (layout.dp * layout.micro_batch)
    second = 1 if layout.pp > 1 else 0
    rank, spread = counting.passes(x).ranks[second], stages(asked.table, x)
    priced = float((spread.middle_moe if second else spread.first_moe)[0])
    step = counting.step(x)
    held = held_weights(asked.task.architecture, asked.table, x)
    routed = [float(np.ravel(layer.experts)[0]) > 0 for layer in held.layers]
    own = float(held.every(np.array([second]))[routed].sum())
    return {
        "experts": count * float(np.ravel(rank.dispatch)[0]) * own / (priced or 1.0),
        "stages": float(np.ravel(step.pipeline_transfer)[0]),
        "weights and gradients": float(weight_traffic(held, x, case.batch, np.zeros(1))[0]),
    }


_HOLDERS = ("shard", "replicate", "stage", "world")
"""Groups that hold parts or copies of weights; some are all ranks of a stage, or of the run."""


def rehearsed_traffic(real: dict[str, Any]) -> dict[str, float]:
    """The same of a rehearsed rank: of a collective of n ranks a rank sends (n-1)/n, of a sum
    that all get twice that."""
    found = dict.fromkeys(("experts", "stages", "weights and gradients"), 0.0)
    for operation, group, ranks, _, size in real["traffic"]:
        sent = size * (ranks - 1) / ranks
        if operation == "all-to-all" and group.startswith("expert"):
            found["experts"] += sent
        elif operation == "send":
            found["stages"] += size
        elif group in _HOLDERS and operation in ("all-gather", "reduce-scatter"):
            found["weights and gradients"] += sent
        elif group in _HOLDERS and operation == "all-reduce":
            found["weights and gradients"] += 2.0 * sent
    return found


def _kinds(rank: RankBytes, index: int) -> dict[str, float]:
    found = {}
    for kind in KINDS:
        value = getattr(rank, "optimizer" if kind == "states" else kind)
        found[kind] = float(value[index]) if getattr(value, "ndim", 0) else float(value)
    return found


def step_of(case: Case) -> Step:
    """The step that is rehearsed."""
    from krzem.train.optim import OptimizerConfig
    from krzem.train.rehearsal.rank import Step

    layout = parse_layout(case.layout)
    config, name = load_model_config(case.model)
    return Step(
        spec=model_spec(config, name=name),
        layout=layout,
        sequence=case.sequence,
        micro_batches=case.batch // (layout.dp * layout.micro_batch),
        optimizer=OptimizerConfig(),
    )


def rehearsed(case: Case, stage: int) -> dict[str, Any]:
    """One rank of the step, in this process."""
    from krzem.train.rehearsal.stages import stage_rank, summary_of

    found = summary_of(step_of(case), stage_rank(parse_layout(case.layout), stage))
    return told(found) | {"parameters": found.parameters, "layers": list(found.layers)}


def told(found: RankSummary, largest: int = 6) -> dict[str, Any]:
    """What is kept of a rank, its ``largest`` storages among it."""
    return {
        "peak": dict(found.peak.bytes),
        "at": [found.at.what, found.at.chunk, found.at.micro_batch],
        "seconds": round(found.seconds, 1),
        "reads": found.reads_in_passes,
        "tflop": round(found.flops / 1e12, 3),
        "largest": [
            f"{p.bytes / 2**30:.3f} {p.kind} {p.count} x {p.shape} by {p.operator}"
            for p in found.largest[:largest]
        ],
        "traffic": [[t.operation, t.group, t.ranks, t.count, t.bytes] for t in found.traffic],
    }


def rehearse_all(known: dict[str, Any], cases: list[Case], workers: int) -> None:
    """Rehearse what is not in ``known`` yet, and write it down as it comes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = {
            pool.submit(rehearsed, case, stage): (case, place)
            for case in cases
            for place, stage in case.stages.items()
            if place not in known.get(case.name, {})
        }
        for job in as_completed(jobs):
            case, place = jobs[job]
            try:
                known[case.name][place] = job.result()
            except Exception as error:  # The others go on.
                print(f"{case.name} {place}: {error!r}", file=sys.stderr)
                continue
            FOUND.write_text(json.dumps(known, indent=1), encoding="utf-8")
            print(_row(case, place, known[case.name][place], planned(case)[place]), flush=True)


def rehearsed_whole(case: Case) -> dict[str, Any]:
    """Every stage of the step, one after the other in this process, and whether they meet."""
    from krzem.train.rehearsal.match import find_faults
    from krzem.train.rehearsal.stages import stage_rank, summary_of

    step, layout = step_of(case), parse_layout(case.layout)
    found = [summary_of(step, stage_rank(layout, stage)) for stage in range(layout.pp)]
    return {
        "seconds": [round(one.seconds, 1) for one in found],
        "peak": [one.peak.total for one in found],
        "faults": [fault.said for fault in find_faults({one.rank: one.program for one in found})],
    }


def rehearse_whole(cases: list[Case]) -> None:
    """Rehearse what is not written down yet."""
    known = json.loads(WHOLE_FOUND.read_text(encoding="utf-8")) if WHOLE_FOUND.exists() else {}
    for case in cases:
        if case.name not in known:
            known[case.name] = rehearsed_whole(case)
            WHOLE_FOUND.write_text(json.dumps(known, indent=1), encoding="utf-8")
            print(case.name, known[case.name], flush=True)


def whole_table(known: dict[str, Any]) -> str:
    """Whole runs, of docs/rehearsal.md."""
    lines = [
        "| layout | ranks | stages | slowest, s | all, s | fullest, GiB | planned over rehearsed | "
        "faults |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for case in WHOLE:
        real = known.get(case.name)
        if real is None:
            continue
        plan = planned_at(case, range(len(real["peak"])))
        off = [sum(p.values()) / a - 1 for p, a in zip(plan, real["peak"], strict=True)]
        lines.append(
            f"| {case.model} `{case.layout}` | {parse_layout(case.layout).devices:,} | "
            f"{len(off)} | {max(real['seconds']):.0f} | {sum(real['seconds']):.0f} | "
            f"{max(real['peak']) / 2**30:.1f} | {min(off):+.1%} to {max(off):+.1%} | "
            f"{len(real['faults'])} |"
        )
    return "\n".join(lines)


def _row(case: Case, place: str, real: dict[str, Any], plan: dict[str, float]) -> str:
    a, b = sum(real["peak"].values()) / 2**30, sum(plan.values()) / 2**30
    return (
        f"| {case.model} `{case.layout}` | {place} | {a:.2f} | {b:.2f} | {b / a - 1:+.1%} | "
        f"{real['seconds']:.0f} |"
    )


def table(known: dict[str, Any]) -> str:
    """Memory, of docs/rehearsal.md."""
    lines = [
        "| layout | stage | rehearsed GiB | planned GiB | planned over rehearsed | processor s |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for case in CASES:
        plan = planned(case)
        lines += [
            _row(case, place, known[case.name][place], plan[place])
            for place in ("first", "middle", "last")
            if place in case.stages and place in known.get(case.name, {})
        ]
    return "\n".join(lines)


def traffic_table(known: dict[str, Any]) -> str:
    """Traffic, of docs/rehearsal.md."""
    lines = [
        "| layout | experts, GB | between stages, GB | weights and gradients, GB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for case in CASES:
        real = known.get(case.name, {})
        if not {"first", *case.stages} <= {"last", *real}:
            continue
        a = rehearsed_traffic(real.get("middle", real["first"]))
        a["weights and gradients"] = rehearsed_traffic(real["first"])["weights and gradients"]
        b = planned_traffic(case)
        cells = (f"{a[kind] / 1e9:,.2f} / {b[kind] / 1e9:,.2f}" for kind in a)
        lines.append(f"| {case.model} `{case.layout}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(known: dict[str, Any]) -> None:
    """Put the tables into the page, between their marks."""
    text = PAGE.read_text(encoding="utf-8")
    whole = json.loads(WHOLE_FOUND.read_text(encoding="utf-8"))
    for name, made in (
        ("memory", table(known)),
        ("traffic", traffic_table(known)),
        ("whole", whole_table(whole)),
    ):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        head, _, rest = text.partition(begin)
        text = head + begin + made + "\n" + end + rest.partition(end)[2]
    PAGE.write_text(text, encoding="utf-8")


def by_kind(known: dict[str, Any]) -> Iterator[str]:
    """Where the two differ, kind by kind, GiB."""
    for case in CASES:
        plan = planned(case)
        for place, real in known.get(case.name, {}).items():
            pairs = [(real["peak"].get(k, 0) / 2**30, plan[place][k] / 2**30) for k in KINDS]
            a, b = sum(p[0] for p in pairs), sum(p[1] for p in pairs)
            kinds = "  ".join(
                f"{k[:5]} {x:.2f}/{y:.2f}" for k, (x, y) in zip(KINDS, pairs, strict=True)
            )
            yield f"{b / a - 1:+6.1%} {a:6.2f} {case.name} {place} {real['at']}\n        {kinds}"


def trials() -> Iterator[str]:
    """Which trials of torchtitan the planner is wrong about, and how often it is right."""
    rows = [row for row in read_table("fit_trials.csv") if row["engine"] == "torchtitan"]
    right, errors = Counter[str](), []
    for row, found in zip(rows, outcomes(rows, fitted()), strict=True):
        ran = (row["status"] or "ok") == "ok"
        good = (found.chance >= 0.5) == ran
        right["ran" if ran else "ran out"] += good
        if row["metric_peak_mem_gb"]:
            errors.append(found.memory_predicted / 2**30 / float(row["metric_peak_mem_gb"]))
        if not good:
            yield f"{row['id']}: {found.layout}, ran: {ran}, chance {found.chance:.2f}"
    off = float(np.median(np.abs(np.log(errors))))
    yield f"right of {len(rows)}: {dict(right)}; peaks {off:.1%} off in the median"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--again")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--kinds", action="store_true")
    parser.add_argument("--trials", action="store_true")
    asked = parser.parse_args()
    known: dict[str, Any] = defaultdict(dict)
    if FOUND.exists():
        known.update(json.loads(FOUND.read_text(encoding="utf-8")))
    if asked.kinds:
        print("\n".join(by_kind(known)))
    elif asked.trials:
        print("\n".join(trials()))
    elif asked.whole:
        rehearse_whole([case for case in WHOLE if asked.only in case.name])
    elif asked.write:
        write(known)
    else:
        only = asked.again or asked.only
        cases = [case for case in CASES if only in case.name]
        for case in cases if asked.again else ():
            known.pop(case.name, None)
        rehearse_all(known, cases, asked.workers)


if __name__ == "__main__":
    main()
