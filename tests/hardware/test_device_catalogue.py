"""The catalogue: every row sound, every published id known, short names by stated rules."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krzem.errors import InputError, KrzemError, UnknownNameError
from krzem.facts.table import manual, read_table
from krzem.hardware.catalogue import TABLE, Confidence, device_ids, device_row, find_id, load_device

ROWS = read_table(TABLE)

IN_PUBLISHED_RUNS = {
    "amd-mi250x": 0.5,
    "amd-mi300x": 1.0,
    "amd-mi350x": 1.0,
    "amd-mi355x": 1.0,
    "aws-trainium1": 0.5,
    "google-tpu-v3": 1.0,
    "google-tpu-v4": 1.0,
    "google-tpu-v5e": 1.0,
    "google-tpu-v5p": 1.0,
    "google-tpu-v6e": 1.0,
    "huawei-ascend-910a": 1.0,
    "huawei-ascend-910b": 1.0,
    "huawei-ascend-910c": 0.5,
    "hygon-k100-ai": 1.0,
    "iluvatar-bi-v100": 1.0,
    "iluvatar-bi-v150": 1.0,
    "intel-gaudi2": 1.0,
    "kunlunxin-r300": 1.0,
    "moorethreads-mtt-s5000": 1.0,
    "nvidia-a100-pcie-80": 1.0,
    "nvidia-a100-sxm-40": 1.0,
    "nvidia-a100-sxm-80": 1.0,
    "nvidia-b200-sxm": 1.0,
    "nvidia-gb200": 1.0,
    "nvidia-gb300": 1.0,
    "nvidia-h100-sxm": 1.0,
    "nvidia-h100-sxm-96-500w": 1.0,
    "nvidia-h800-sxm": 1.0,
    "nvidia-v100-sxm2-16": 1.0,
    "nvidia-v100-sxm2-32": 1.0,
}
"""Every accelerator of the published runs, with the part of a card that a device is there."""

NUMBERS = [
    "die_area_mm2", "transistors_bn", "fp64_tflops", "tf32_tflops", "fp16_tflops", "bf16_tflops",
    "fp8_tflops", "fp4_tflops", "int8_tops", "mem_gib", "mem_visible_gib", "mem_gb_per_s",
    "scaleup_gb_per_s", "scaleup_domain", "scaleout_gbit_per_s", "cards_per_node",
    "dies_per_card", "die_link_gb_per_s", "tdp_w", "price_usd", "rental_usd_per_hour",
    "tpp_reported",
]  # fmt: skip


def test_there_are_all_rows_and_no_id_twice() -> None:
    ids = [row["id"] for row in ROWS]
    assert len(ids) == len(set(ids)) == 130
    assert tuple(ids) == device_ids()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_every_row_is_sound(row: dict[str, str]) -> None:
    assert None not in row, "too many cells"
    assert None not in row.values(), "too few cells"
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", row["id"])
    assert re.fullmatch(r"20\d\d(-(0[1-9]|1[0-2]))?", row["released"])
    assert row["confidence"] in set(Confidence)
    for column in ("vendor", "name", "family", "country", "framework_device", "sources"):
        assert row[column].strip(), column
    for column in NUMBERS:
        assert row[column] == "" or float(row[column]) > 0, column
    assert all(part.strip() for part in row["sources"].split(" ; "))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_figures_are_plausible_against_each_other(row: dict[str, str]) -> None:
    """Slips of a factor: bits for bytes, sparse for dense, GB/s for TB/s."""
    value = {column: float(row[column]) for column in NUMBERS if row[column]}
    if "mem_visible_gib" in value:
        assert 0.92 * value["mem_gib"] <= value["mem_visible_gib"] <= value["mem_gib"]
    if {"bf16_tflops", "fp8_tflops"} <= value.keys():
        assert 1 <= value["fp8_tflops"] / value["bf16_tflops"] <= 4.4
    if {"mem_gib", "mem_gb_per_s"} <= value.keys():
        least = 1 if row["mem_type"].startswith("LPDDR") else 8
        assert least <= value["mem_gb_per_s"] / value["mem_gib"] <= 120
    if {"scaleup_gb_per_s", "mem_gb_per_s"} <= value.keys():
        assert value["scaleup_gb_per_s"] < value["mem_gb_per_s"]
    if {"scaleup_gb_per_s", "scaleout_gbit_per_s"} <= value.keys():
        assert value["scaleout_gbit_per_s"] / 8 <= 1.6 * value["scaleup_gb_per_s"]


def test_the_table_explains_its_columns() -> None:
    text = manual(TABLE)
    for column in ROWS[0]:
        stem = column.split("_")[0]
        assert (
            column in text
            or f"{stem}_*" in text
            or column.endswith(("_tflops", "_tops"))
            or (
                column in ("process_node", "die_area_mm2", "transistors_bn", "mem_type")
                or column in ("software_stack", "sources", "notes", "rental_usd_per_hour")
            )
        ), column


@pytest.mark.parametrize("name", sorted(IN_PUBLISHED_RUNS))
def test_every_accelerator_of_the_published_runs_is_known(name: str) -> None:
    device = load_device(name, IN_PUBLISHED_RUNS[name])
    assert device.id == name
    assert device.fraction == IN_PUBLISHED_RUNS[name]
    assert device.memory_bytes is not None
    assert device.memory_bytes_per_s is not None
    assert {"bf16", "fp16"} & device.peak_flops.keys()


@pytest.mark.parametrize("name", device_ids())
def test_a_whole_card_is_all_its_devices(name: str) -> None:
    one, card = load_device(name), load_device(name, 1.0)
    dies = card.dies_per_card
    assert one.fraction == 1 / dies
    for field in ("memory_bytes", "memory_bytes_per_s", "scale_up_bytes_per_s", "power_w"):
        part, whole = getattr(one, field), getattr(card, field)
        assert (part is None) == (whole is None)
        assert part is None or part * dies == pytest.approx(whole)
    for field in ("scale_up_domain", "devices_per_node"):
        part, whole = getattr(one, field), getattr(card, field)
        assert (part is None) == (whole is None)
        assert part is None or part == whole * dies
    for kind, peak in card.peak_flops.items():
        assert one.peak_flops[kind] * dies == pytest.approx(peak)
    assert (card.device_is == "card") == (dies == 1)


def test_units_of_one_row_by_hand() -> None:
    h800 = load_device("nvidia-h800-sxm")
    assert h800.peak_flops["bf16"] == pytest.approx(989.4e12)
    assert h800.memory_bytes_per_s == pytest.approx(3.35e12)
    assert h800.memory_bytes == pytest.approx(79.1 * 2**30)
    assert h800.scale_up_bytes_per_s == pytest.approx(200e9)
    assert h800.scale_out_bytes_per_s == pytest.approx(50e9)
    assert (h800.scale_up_domain, h800.devices_per_node) == (8, 8)
    assert h800.family == "nvidia-hopper"
    assert h800.software == "cuda"


def test_a_device_of_the_ascend_910c_is_a_die() -> None:
    die = load_device("910c")
    assert die.device_is == "one die of 2 on a card"
    assert die.scale_up_domain == 768
    assert die.devices_per_node == 16
    assert die.scale_up_bytes_per_s == pytest.approx(196e9)
    assert die.scale_out_bytes_per_s == pytest.approx(25e9)
    assert die.die_link_bytes_per_s == pytest.approx(224e9)
    assert "software sees apart" in load_device("910c", 1.0).device_is
    assert load_device("910c", 1.0).die_link_bytes_per_s is None


def test_unknown_cells_are_none_not_zero() -> None:
    device = load_device("huawei-ascend-970")
    assert device.memory_bytes is None
    assert device.scale_up_domain is None
    assert "bf16" not in device.peak_flops


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("h800", "nvidia-h800-sxm"),
        ("H800", "nvidia-h800-sxm"),
        ("h100", "nvidia-h100-sxm"),
        ("h100-pcie", "nvidia-h100-pcie"),
        ("a100", "nvidia-a100-sxm-80"),
        ("a100-40", "nvidia-a100-sxm-40"),
        ("a100-80gb", "nvidia-a100-sxm-80"),
        ("v100", "nvidia-v100-sxm2-32"),
        ("bi-v100", "iluvatar-bi-v100"),
        ("gb200", "nvidia-gb200"),
        ("b200", "nvidia-b200-sxm"),
        ("mi300x", "amd-mi300x"),
        ("910b", "huawei-ascend-910b"),
        ("910b2", "huawei-ascend-910b2"),
        ("910c", "huawei-ascend-910c"),
        ("ascend-910c", "huawei-ascend-910c"),
        ("Ascend 910C", "huawei-ascend-910c"),
        ("ascend_910c", "huawei-ascend-910c"),
        ("gaudi3", "intel-gaudi3"),
        ("tpu-v5p", "google-tpu-v5p"),
        ("v5p", "google-tpu-v5p"),
        ("trainium1", "aws-trainium1"),
        ("5090", "nvidia-rtx-5090"),
        ("c500", "metax-c500-oam"),
    ],
)
def test_short_names(short: str, full: str) -> None:
    assert find_id(short) == full


@pytest.mark.parametrize("name", ["rtx", "ascend", "nvidia", "80", "sxm"])
def test_ambiguous_names_list_the_candidates(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"any of (nvidia|huawei)-"):
        load_device(name)


@pytest.mark.parametrize("name", ["h8000", "910", "foo", "", " ", "-", "x" * 10_000])
def test_unknown_names_are_refused_with_a_next_step(name: str) -> None:
    with pytest.raises(UnknownNameError, match="krzem devices") as caught:
        load_device(name)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("miss", "meant"),
    [
        ("ascend-910cc", "huawei-ascend-910c"),
        ("h8000", "nvidia-h800-sxm"),
        ("mi300", "amd-mi300x"),
        ("trainium", "aws-trainium1"),
        ("nvidia-h100-smx", "nvidia-h100-sxm"),
    ],
)
def test_a_near_miss_offers_the_nearest(miss: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=meant):
        load_device(miss)


@pytest.mark.parametrize("fraction", [0.0, -1.0, 2.0, 0.3, 0.01, float("nan"), float("inf")])
def test_impossible_parts_of_a_card(fraction: float) -> None:
    with pytest.raises(InputError, match="one over a whole number"):
        load_device("910c", fraction)


def test_a_row_keeps_its_sources_and_notes() -> None:
    row = device_row("huawei-ascend-910c")
    assert "arXiv 2506.12708" in row["sources"]
    assert "752" in row["notes"]


@given(st.text(max_size=40))
def test_any_name_is_a_device_or_a_clear_error(name: str) -> None:
    try:
        device = load_device(name)
    except KrzemError:
        return
    assert device.id in device_ids()


def test_loading_is_quick() -> None:
    """Reading the table and making every device, in a fresh process."""
    script = (
        "import time; from krzem.hardware import device_ids, load_device;"
        "start = time.perf_counter(); [load_device(name) for name in device_ids()];"
        "print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", script]
    runs = [subprocess.run(command, capture_output=True, check=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.030
