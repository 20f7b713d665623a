"""What is validated is what plans: a packaged row costs the same in ``accuracy`` and ``explain``.

Every row's switches are stated, those that it states itself and the likeliest of the others, so
that neither side has anything to choose; both then price the same device, links, engine, layout
and batch, each by its own way from what was written to the cost model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.some import some

from krzem.accuracy.batch import memory, packed, predict, prepare, situation, variants_of
from krzem.accuracy.calibrate import TABLES, timed_cases
from krzem.accuracy.case import Case
from krzem.accuracy.memory_fit import memory_cases, memory_rows
from krzem.cost.coefficients import fitted
from krzem.facts.table import read_table
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import cluster_of
from krzem.layout.layout import pack
from krzem.plan.goal import Goal, Tuning
from krzem.plan.price import Pricer, Task
from krzem.plan.tuning import ENDS, EVERYWHERE


def stated_whole(case: Case) -> Case:
    """The case with every switch stated, run by a user."""
    base = variants_of(case)[0]
    return replace(
        case, switches=dict(base.choices), layout=base.layout, by_maker=False,
        unknown=(), recompute_known=True, alternatives=(),
        global_batch=float(max(1, round(case.global_batch))),
    )  # fmt: skip


def cluster_for(case: Case) -> Cluster:
    """The row's machine as a cluster file would say it."""
    s = situation(case)
    given = {"device": case.device.id, "devices": case.devices,
             "devices_per_node": s.devices_per_node}  # fmt: skip
    if case.network_bytes_per_s is not None:
        given["scale_out_bandwidth"] = f"{case.network_bytes_per_s / 1e9!r} GB/s"
    return cluster_of(given, case.id)


def tuning_of(case: Case) -> Tuning:
    if case.finetune not in ("lora", "qlora"):
        return Tuning(kind=case.finetune or "none")
    ends = (ENDS,) if case.trained_ends else ()
    return Tuning(kind=case.finetune, rank=case.lora_rank or 16, targets=EVERYWHERE + ends)


def task_of(case: Case) -> Task:
    goal = Goal(
        tokens=1e17, sequence=case.sequence, global_batch=int(case.global_batch),
        precision=case.precision, tuning=tuning_of(case),
    )  # fmt: skip
    return Task(
        architecture=case.architecture, cluster=cluster_for(case), goal=goal, engine=case.engine,
        year=case.date, stated=tuple(case.switches.items()),
    )  # fmt: skip


@pytest.mark.parametrize("table", TABLES)
def test_accuracy_and_explain_give_the_same_seconds(table: str) -> None:
    # A plan is for whole nodes.
    cases = [
        stated_whole(case)
        for case in some(prepare(timed_cases(read_table(table))).cases, 2)
        if case.devices % (case.devices_per_node or 1) == 0
    ]
    validated = predict(packed(cases), fitted()).total
    planned = [
        float(np.ravel(Pricer(task_of(case)).step(pack([case.layout])).total)[0]) for case in cases
    ]
    assert len(cases) > 40
    different = [
        (case.id, there, here)
        for case, there, here in zip(cases, validated, planned, strict=True)
        if here != pytest.approx(there, rel=1e-9)
    ]
    assert different == []


ADAPTED = [
    case
    for case in memory_cases(memory_rows())
    if case.finetune in ("lora", "qlora") and case.states is None and not case.offload
    and not case.step_in_backward and case.devices % (case.devices_per_node or 1) == 0
]  # fmt: skip


def test_accuracy_and_plan_give_the_same_bytes_with_adapters() -> None:
    cases = [stated_whole(case) for case in ADAPTED]
    validated = np.asarray(memory(packed(cases)).peak)
    planned = [
        float(np.ravel(Pricer(task_of(case)).memory(pack([case.layout])).peak)[0]) for case in cases
    ]
    assert {case.finetune for case in cases} == {"lora", "qlora"}
    assert len(cases) > 150
    assert planned == pytest.approx(list(validated), rel=1e-9)
