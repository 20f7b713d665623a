"""Every chip of the catalogue has an answer with days, or a named reason why not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from krzem.errors import ClusterError, UnknownFactError
from krzem.hardware.catalogue import device_ids, load_device
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import cluster_of, read_cluster
from krzem.plan.answer import plan_of
from krzem.plan.plan import Plan
from krzem.plan.question import Question
from krzem.plan.request import settle
from krzem.plan.search import MOST

FEW = "cp=1,pp<=2,vpp=1,mbs<=2,recompute=none|full"
"""A part of the space that holds a layout for every chip, so that all are planned in seconds."""
WITH_A_PEAK = [
    name for name in device_ids() if {"bf16", "fp16"} & set(load_device(name).peak_flops)
]
WITHOUT = sorted(set(device_ids()) - set(WITH_A_PEAK))


def planned(on: str | Cluster) -> Plan:
    question = Question(model="llama-3.1-8b", on=on, tokens="1T", global_batch=512, limits=FEW)
    return plan_of(settle(question), alternatives=0)


@pytest.mark.parametrize("name", WITH_A_PEAK)
def test_every_chip_with_a_16_bit_peak_has_days(name: str) -> None:
    try:
        plan = planned(f"{name}:64")
    except UnknownFactError as error:
        assert "at one end" in str(error)  # noqa: PT017
        assert "Give it in a cluster file" in str(error)  # noqa: PT017
        return
    run = plan.whole_run
    assert run.days is not None
    assert run.device_hours is not None
    assert run.days.low < run.days.mid < run.days.high
    assumed = plan.task.cluster.assumed
    for bounds in assumed.values():
        assert any(bounds.key in note for note in plan.notes)
    borrowed = plan.task.cluster.facts["failures_per_device_day"].basis == "class"
    assert borrowed == any("nobody has published" in note for note in run.notes)


@pytest.mark.parametrize("name", WITHOUT)
def test_a_chip_without_a_16_bit_peak_stops_and_names_it(name: str) -> None:
    with pytest.raises(UnknownFactError, match="dense 16-bit peak"):
        planned(f"{name}:64")


GIVEN = {
    "cambricon-mlu690": ("scale_out_bandwidth", "100 Gbit/s", "400 Gbit/s"),
    "metax-c600": ("scale_up_bandwidth", "32 GB/s", "448 GB/s"),
    "metax-c500-oam": ("scale_up_bandwidth", "32 GB/s", "448 GB/s"),
    "hygon-bw1000": ("scale_up_bandwidth", "32 GB/s", "448 GB/s"),
}


@pytest.mark.parametrize("name", GIVEN)
def test_the_interval_holds_what_any_value_within_the_bounds_gives(name: str) -> None:
    key, *values = GIVEN[name]
    without = planned(cluster_of({"device": name, "devices": 64}))
    for value in values:
        known = planned(cluster_of({"device": name, "devices": 64, key: value}))
        assert not known.task.cluster.assumed
        step = known.best.step_seconds
        assert without.best.step_seconds.low < step.mid < without.best.step_seconds.high
        ratio = without.best.step_seconds.high / without.best.step_seconds.low
        assert ratio >= (step.high / step.low) * 0.98


def test_what_the_bounds_decide_is_asked_for() -> None:
    """Tensor parallelism over a link that may be a bus or the fastest there is."""
    cluster = replace(read_cluster("metax-c600:64"), memory_bytes=24e9, memory_bytes_per_s=3.6e12)
    question = Question(model="llama-3.1-8b", on=cluster, tokens="1T", global_batch=64,
                        limits="tp=8,cp=1,pp=1,mbs=1")  # fmt: skip
    with pytest.raises(UnknownFactError, match="scale up bandwidth of metax-c600") as caught:
        plan_of(settle(question), alternatives=0)
    assert f"up to {MOST:g} times" in str(caught.value)
    assert "scale_up_bandwidth = " in str(caught.value)


def test_memory_that_decides_whether_a_model_fits_is_asked_for() -> None:
    on = "huawei-ascend-920:16"
    question = Question(
        model="llama-3.1-70b", on=on, tokens="1T", global_batch=64, limits="cp=1,pp=1"
    )
    with pytest.raises((UnknownFactError, ClusterError), match=r"memory of huawei|does not fit"):
        plan_of(settle(question), alternatives=0)


def test_a_given_price_is_used_whatever_else_is_unknown() -> None:
    run = planned(cluster_of({"device": "mi300x", "devices": 64, "price": "$1.5/h"})).whole_run
    assert run.cost_usd is not None
    assert run.device_hours is not None
    assert run.cost_usd.mid == pytest.approx(1.5 * run.device_hours.mid, rel=1e-6)
