"""Dense peaks: ratios between formats, and no measured run above its card's peak."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from krzem.facts.table import read_table
from krzem.hardware.catalogue import device_ids, device_row

RULE = {"bf16/fp16": 1.0, "fp16/tf32": 2.0, "fp8/bf16": 2.0, "int8/16": 2.0, "fp4/fp8": 2.0}
COLUMNS = {
    "tf32": "tf32_tflops", "fp16": "fp16_tflops", "bf16": "bf16_tflops", "fp8": "fp8_tflops",
    "int8": "int8_tops", "fp4": "fp4_tflops",
}  # fmt: skip
TEXT = Path(__file__).with_name("peak_ratios.csv").read_text(encoding="utf-8")
STATED = {
    (row["id"], row["formats"]): float(row["ratio"])
    for row in csv.DictReader(line for line in TEXT.splitlines() if not line.startswith("#"))
}


def peak(name: str, fmt: str) -> float | None:
    row = device_row(name)
    if fmt == "16":
        return peak(name, "bf16") or peak(name, "fp16")
    cell = row[COLUMNS[fmt]]
    return float(cell) if cell else None


def ratios() -> Iterator[tuple[str, str, float]]:
    for name in device_ids():
        for formats in RULE:
            above, below = (peak(name, fmt) for fmt in formats.split("/"))
            if above and below:
                yield name, formats, above / below


@pytest.mark.parametrize(("name", "formats", "ratio"), list(ratios()))
def test_a_peak_follows_the_rule_or_what_is_stated(name: str, formats: str, ratio: float) -> None:
    expected = STATED.get((name, formats), RULE[formats])
    assert ratio == pytest.approx(expected, rel=0.02)


def test_every_stated_ratio_is_a_real_exception() -> None:
    found = {(name, formats): ratio for name, formats, ratio in ratios()}
    for key, ratio in STATED.items():
        assert key in found
        assert ratio != pytest.approx(RULE[key[1]], rel=0.02)


def measured() -> Iterator[tuple[str, str, str, float]]:
    """Row, card, format and TFLOP/s of a whole card, of every packaged row that states them."""
    known = set(device_ids())
    for table in ("runs.csv", "runs_new.csv", "runs_more.csv"):
        for row in read_table(table):
            stated, card = row.get("metric_tflops_per_device"), row["accelerator_id"]
            fmt = next((f for f in ("fp4", "fp8", "bf16", "fp16") if f in row["precision"]), None)
            if stated and fmt and card in known:
                yield row["id"], card, fmt, float(stated) / float(row["device_fraction"] or 1)


def test_no_measured_run_is_above_the_peak() -> None:
    rows = list(measured())
    assert len(rows) > 500
    above = [r for r in rows if (most := peak(r[1], r[2])) is not None and r[3] > most]
    assert above == []


@pytest.mark.parametrize(
    ("name", "fmt", "least", "most"),
    [("nvidia-rtx-pro-6000", "bf16", 495, 512), ("amd-mi355x", "bf16", 2500, 2530)],
)
def test_peaks_that_were_once_wrong(name: str, fmt: str, least: float, most: float) -> None:
    found = peak(name, fmt)
    assert found is not None
    assert least <= found <= most


def test_memory_bandwidth_that_was_once_wrong() -> None:
    assert device_row("amd-mi455x")["mem_gb_per_s"] == "19600"
