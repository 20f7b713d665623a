"""A chip that a file describes whole, and every way to leave something out."""

from __future__ import annotations

from typing import Any

import pytest

from krzem.errors import ClusterError, InputError, UnknownNameError
from krzem.hardware.catalogue import find_id
from krzem.hardware.cluster import Cluster
from krzem.hardware.cluster_reader import cluster_of
from krzem.plan.answer import plan_of
from krzem.plan.question import Question
from krzem.plan.request import settle

WHOLE: dict[str, Any] = {
    "device": "acme-x1", "devices": 64, "devices_per_node": 8, "memory": "96 GB",
    "memory_bandwidth": "2 TB/s", "scale_up_domain": 8, "scale_up_bandwidth": "300 GB/s",
    "scale_out_bandwidth": "200 Gbit/s", "peak": {"bf16": "400 TFLOP/s"},
}  # fmt: skip


def chip(**changes: Any) -> Cluster:
    return cluster_of({**WHOLE, **changes}, "chip.toml")


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in WHOLE.items() if key not in keys}


def test_what_is_given_is_what_it_is() -> None:
    cluster = chip(vendor="Acme", power="500 W", price="$1/h")
    device = cluster.device
    assert (device.id, device.vendor, device.name, device.family) == (
        "acme-x1", "Acme", "acme-x1", "own",
    )  # fmt: skip
    assert device.peak_flops["bf16"] == 400e12
    assert (device.power_w, cluster.power_w, cluster.usd_per_device_hour) == (500, 500, 1)
    assert cluster.memory_bytes == 96e9
    assert not cluster.assumed
    assert "not in the catalogue" in cluster.notes[0]


@pytest.mark.parametrize("key", ["memory", "memory_bandwidth", "peak"])
def test_what_it_cannot_do_without_is_asked_for_together(key: str) -> None:
    with pytest.raises(ClusterError) as caught:
        cluster_of(without(key), "chip.toml")
    assert key in str(caught.value)
    with pytest.raises(ClusterError) as caught:
        cluster_of(without("memory", "memory_bandwidth", "peak") | {"vendor": "Acme"}, "chip.toml")
    for lacking in ("memory =", "memory_bandwidth =", "[peak] bf16 ="):
        assert lacking in str(caught.value)


def test_a_name_alone_is_an_unknown_device() -> None:
    with pytest.raises(UnknownNameError, match="h100"):
        cluster_of({"device": "h1000", "devices": 8})


@pytest.mark.parametrize(
    "keys",
    [
        ("scale_out_bandwidth",), ("scale_up_bandwidth",), ("devices_per_node", "scale_up_domain"),
        ("scale_up_domain",),
    ],
)  # fmt: skip
def test_links_and_nodes_are_assumed_where_they_are_left_out(keys: tuple[str, ...]) -> None:
    assert set(cluster_of(without(*keys)).assumed) == {
        {"scale_out_bandwidth": "scale_out_bytes_per_s",
         "scale_up_bandwidth": "scale_up_bytes_per_s"}.get(key, key)
        for key in keys
    }  # fmt: skip


def test_a_stack_and_a_family_are_those_of_the_catalogue() -> None:
    assert chip(software="cuda", family="nvidia-hopper").device.family == "nvidia-hopper"
    assert chip(software="hip").device.software == "hip"
    with pytest.raises(ClusterError, match="Did you mean cuda"):
        chip(software="cudda")
    with pytest.raises(ClusterError, match="nvidia-hopper"):
        chip(family="hopper")


def test_parts_of_a_card_have_no_meaning() -> None:
    with pytest.raises(ClusterError, match="device_fraction"):
        chip(device_fraction=0.5)


@pytest.mark.parametrize("name", ["X1", "Acme X1 (rev. B)", "x" * 200])
def test_any_name_becomes_an_id(name: str) -> None:
    device = chip(device=name).device
    assert len(device.id) <= 60
    with pytest.raises(InputError):
        find_id(device.id)


def test_it_is_planned_like_any_other() -> None:
    question = Question(
        model="llama-3.1-8b",
        on=chip(price="$1/h"),
        tokens="100B",
        global_batch=256,
        limits="cp=1,pp=1",
    )
    run = plan_of(settle(question), alternatives=0).whole_run
    assert run.days is not None
    assert run.cost_usd is not None
    assert run.device_hours is not None
    assert run.cost_usd.mid == pytest.approx(run.device_hours.mid, rel=1e-6)
