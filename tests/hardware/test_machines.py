"""Public machines as clusters: every row, every way of writing its name, and its size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from krzem.errors import ClusterError, UnknownNameError
from krzem.facts.table import manual, read_table
from krzem.hardware.catalogue import find_id, load_device
from krzem.hardware.cluster_reader import cluster_of, read_cluster
from krzem.hardware.machines import TABLE, known_machine, machine, machines

ROWS = read_table(TABLE)
IDS = tuple(machines())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_rows_are_sound(row: dict[str, str]) -> None:
    device = load_device(row["device"])
    node = int(row["devices_per_node"])
    assert device.id == row["device"]
    assert node in (1, 4, 8, 12, 16)
    assert int(row["nodes"]) > 0
    assert int(row["scale_up_domain"]) <= node
    assert 10 <= float(row["scale_out_gbit_per_s"]) <= 800
    assert row["source"]
    assert row["date"][:2] == "20"
    assert row["confidence"] in ("high", "medium", "low")
    assert all(column in manual(TABLE) for column in ("short", "power_w", "nodes"))
    assert len(row["country"]) == 2


@pytest.mark.parametrize("name", IDS)
def test_every_machine_is_a_cluster_by_devices_and_by_nodes(name: str) -> None:
    place = machine(name)
    by_nodes = read_cluster(f"{name}:4 nodes")
    by_devices = read_cluster(f"{name}:{4 * place.devices_per_node}")
    assert by_nodes.devices == by_devices.devices == 4 * place.devices_per_node
    assert by_nodes.nodes == by_devices.nodes == 4
    in_a_file = cluster_of({"machine": name, "nodes": 4})
    assert replace(by_nodes, facts={}) == replace(in_a_file, facts={})
    (note,) = by_nodes.notes
    assert f"{by_nodes.devices:,} devices are 4 nodes of {place.devices_per_node}" in note
    assert f"{place.nodes:,} nodes" in note
    assert read_cluster(f"{name}:{place.nodes} nodes").devices == place.devices


@pytest.mark.parametrize("name", IDS)
def test_more_than_a_machine_has_is_refused_with_the_arithmetic(name: str) -> None:
    place = machine(name)
    with pytest.raises(ClusterError) as caught:
        read_cluster(f"{name}:{place.devices + 1}")
    for number in (place.devices + 1, place.nodes + 1, place.nodes, place.devices):
        assert f"{number:,}" in str(caught.value)
    with pytest.raises(ClusterError, match=f"{place.nodes:,} nodes"):
        read_cluster(f"{name}:{place.nodes + 1} nodes")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_names_are_read_without_case_dashes_and_spaces(row: dict[str, str]) -> None:
    spellings = [row["id"], row["name"], *filter(None, row["short"].split(";"))]
    for written in spellings:
        for spelt in (
            written,
            written.upper(),
            written.replace("-", " "),
            written.replace(" ", "_"),
        ):
            assert machine(spelt).id == row["id"], spelt


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("leonardo", "leonardo-booster"), ("jupiter", "jupiter-booster"), ("lumi", "lumi-g"),
        ("marenostrum5", "marenostrum5-acc"), ("MareNostrum 5", "marenostrum5-acc"),
        ("isambard", "isambard-ai"), ("el capitan", "el-capitan"), ("juwels", "juwels-booster"),
        ("meluxina", "meluxina-gpu"), ("vega", "vega-gpu"), ("perlmutter", "perlmutter"),
    ],
)  # fmt: skip
def test_first_words_are_enough(short: str, full: str) -> None:
    assert machine(short).id == full


def test_no_name_of_a_machine_is_a_device() -> None:
    for row in ROWS:
        for spelt in (row["id"], row["id"].split("-")[0], *filter(None, row["short"].split(";"))):
            with pytest.raises(UnknownNameError):
                find_id(spelt)
    assert known_machine("h100") is known_machine("") is None


def test_a_near_miss_offers_machines_too() -> None:
    with pytest.raises(UnknownNameError, match="leonardo-booster"):
        read_cluster("leonardo-boster:64")
    with pytest.raises(UnknownNameError, match="jupiter-booster"):
        machine("jupyter")


def test_the_page_has_every_machine() -> None:
    page = (Path(__file__).parents[2] / "docs" / "machines.md").read_text(encoding="utf-8")
    for place in machines().values():
        device = find_id(place.cluster["device"])
        size = f"{place.nodes:,} x {place.devices_per_node}"
        assert any(
            line.startswith(f"| `{place.id}` |") and size in line and device in line
            for line in page.splitlines()
        ), place.id


def test_a_file_overrules_the_machine() -> None:
    cluster = cluster_of({"machine": "alps", "nodes": 8, "price": "$3/h", "name": "mine"})
    assert (cluster.devices, cluster.name, cluster.usd_per_device_hour) == (32, "mine", 3.0)
    nics = cluster_of(
        {"machine": "alps", "nodes": 8, "nics_per_node": 4, "nic_bandwidth": "400 Gbit/s"}
    )
    assert nics.scale_out_bytes_per_s == pytest.approx(50e9)
    with pytest.raises(ClusterError, match="keep one"):
        cluster_of({"machine": "alps", "device": "h100", "nodes": 8})


def test_four_of_a_node_are_joined() -> None:
    assert read_cluster("jupiter:64").scale_up_domain == 4
    assert read_cluster("gh200-96:64").scale_up_domain == 1
    stated = cluster_of({"device": "gh200-96", "devices": 64, "devices_per_node": 4})
    assert stated.scale_up_domain == 4
    assert not stated.notes


def test_a_card_alone_on_fast_links_is_a_question_that_is_asked() -> None:
    (note,) = read_cluster("nvidia-gh200-96:64").notes
    assert "devices_per_node = 4" in note
    assert "jupiter-booster" in note
    (bridged,) = read_cluster("nvidia-a100-pcie-80:8").notes
    assert "scale_up_domain" in bridged
    assert not read_cluster("nvidia-gh200-96:1").notes
    assert not read_cluster("nvidia-rtx-4090:8").notes
    assert not cluster_of({"device": "nvidia-gh200-96", "devices": 8, "scale_up_domain": 1}).notes


@pytest.mark.parametrize(
    ("short", "taken", "other"),
    [
        ("h20", "nvidia-h20-sxm-141", "nvidia-h20-sxm-96 (96 GiB)"),
        ("a100", "nvidia-a100-sxm-80", "nvidia-a100-sxm-40"),
        ("v100", "nvidia-v100-sxm2-32", "nvidia-v100-sxm2-16"),
        ("h100", "nvidia-h100-sxm", "nvidia-h100-pcie"),
    ],
)
def test_a_short_name_of_several_cards_says_which_is_taken(
    short: str, taken: str, other: str
) -> None:
    (note,) = read_cluster(f"{short}:8").notes
    assert note.startswith(f"{short} is taken for {taken}")
    assert other in note
    assert not read_cluster(f"{taken}:8").notes


@pytest.mark.parametrize("name", ["b200", "mi300x", "gaudi3", "910c", "h20-sxm-96"])
def test_a_name_of_one_card_says_nothing(name: str) -> None:
    assert not read_cluster(f"{name}:8").notes
