"""Published layouts beside the best ones found: ``python benchmarks/published_layouts.py``.

The engine and date are those of the publication, and the search is held to the schedules that its
engine could run, so that a gain is one the authors could have had.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from krzem.engine.description import engine_named
from krzem.hardware import read_cluster
from krzem.layout.layout import Layout, Precision, StateBytes, parse_layout
from krzem.model import load_model
from krzem.plan.goal import SURE, Goal
from krzem.plan.plan import TIE, describe
from krzem.plan.price import Pricer, Task
from krzem.plan.search import search
from krzem.report.text_table import table


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One run with its layout; ``source`` says where it stands."""

    name: str
    model: str
    cluster: str
    sequence: int
    batch: int
    precision: Precision
    engine: str
    year: float
    layout: str
    source: str
    states: StateBytes = field(default_factory=StateBytes)


RUNS = (
    Published(
        name="GPT-3 175B, selective", model="gpt3-175b", cluster="a100:64", sequence=2048,
        batch=64, precision=Precision.FP16, engine="megatron-lm", year=2022.4,
        layout="tp=8,pp=8,vpp=3,schedule=interleaved,recompute=attention,zero=0",
        source="arXiv 2205.05198 table 5",
    ),
    Published(
        name="MT-NLG 530B, selective", model="megatron-530b", cluster="a100:280", sequence=2048,
        batch=280, precision=Precision.FP16, engine="megatron-lm", year=2022.4,
        layout="tp=8,pp=35,vpp=3,schedule=interleaved,recompute=attention,zero=0",
        source="arXiv 2205.05198 table 5",
    ),
    Published(
        name="DeepSeek-V3", model="deepseek-v3", cluster="h800:2048", sequence=4096, batch=15360,
        precision=Precision.FP8_BLOCK, engine="deepseek", year=2024.9,
        layout="pp=16,ep=64,schedule=dualpipe,recompute=modules", source="arXiv 2412.19437",
        states=StateBytes(moments=4.0),
    ),
    Published(
        name="GPT-3 1T, selective", model="megatron-1t", cluster="a100:512", sequence=2048,
        batch=512, precision=Precision.FP16, engine="megatron-lm", year=2022.4,
        layout="tp=8,pp=64,recompute=attention,zero=0", source="arXiv 2205.05198 table 5",
    ),
)  # fmt: skip


def task_of(run: Published) -> Task:
    """What was planned."""
    goal = Goal(
        tokens=1e12, sequence=run.sequence, global_batch=run.batch, precision=run.precision,
        states=run.states,
    )  # fmt: skip
    return Task(
        architecture=load_model(run.model),
        cluster=read_cluster(run.cluster),
        goal=goal,
        engine=engine_named(run.engine).name,
        year=run.year,
    )


def layout_of(run: Published, devices: int) -> Layout:
    """The published layout; what is left of the devices is data parallel."""
    layout = parse_layout(run.layout)
    return replace(layout, dp=devices // (layout.tp * layout.cp * layout.pp))


def main() -> None:
    """Print one row a run."""
    rows = []
    for run in RUNS:
        task = task_of(run)
        pricer = Pricer(task)
        theirs = describe(pricer, layout_of(run, task.cluster.devices))
        found = search(pricer)
        first = found.best(SURE)[0]
        gain = theirs.step_seconds.mid / float(found.seconds[first]) - 1.0
        rows.append(
            [run.name, f"{theirs.step_seconds.mid:.2f}", f"{theirs.fits_probability:.2f}",
             f"{found.seconds[first]:.2f}", f"{gain:+.1%}", "yes" if gain > TIE else "tie",
             str(found.layouts.at(int(first)))]
        )  # fmt: skip
    heads = ["published run", "its s", "fits", "best s", "gain", "better", "best layout"]
    for line in table(heads, rows, "lrrrrlw"):
        print(line)


if __name__ == "__main__":
    main()
