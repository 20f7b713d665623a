"""Peaks against each other, and against the fastest rows that were ever published."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from krzem.accuracy.case import Case, UnusableRowError
from krzem.accuracy.reader import read_case
from krzem.errors import KrzemError
from krzem.facts.table import read_table
from krzem.hardware.catalogue import TABLE
from krzem.model.parameters import flops_per_token

ROWS = read_table(TABLE)
COLUMN = {
    "tf32": "tf32_tflops", "fp16": "fp16_tflops", "fp8": "fp8_tflops", "int8": "int8_tops",
    "fp4": "fp4_tflops",
}  # fmt: skip
USUAL = {"tf32": 0.5, "fp16": 1.0, "fp8": 2.0, "int8": 2.0, "fp4": 4.0}
"""A rate over that of bf16 (of fp16 where there is no bf16)."""
WITHIN = 0.04
"""Data sheets round."""
EXCEPTIONS: dict[tuple[str, str], tuple[float, str]] = {
    ("nvidia-rtx-4090", "int8"): (4, "16 bits with 32-bit accumulation at half rate"),
    ("nvidia-rtx-4090d", "int8"): (4, "16 bits with 32-bit accumulation at half rate"),
    ("nvidia-rtx-4070-ti-super", "int8"): (4, "16 bits with 32-bit accumulation at half rate"),
    ("nvidia-rtx-5090", "int8"): (4, "16 bits with 32-bit accumulation at half rate"),
    ("nvidia-rtx-3090", "int8"): (4, "16 bits with 32-bit accumulation at half rate"),
    ("nvidia-rtx-3090-ti", "int8"): (4, "16 bits with 32-bit accumulation at half rate"),
    ("nvidia-b300-sxm", "int8"): (0.07, "int8 given up for fp4: Blackwell Ultra datasheet"),
    ("nvidia-gb300", "int8"): (0.066, "int8 given up for fp4: Blackwell Ultra datasheet"),
    ("nvidia-vr200", "fp8"): (4.375, "NVIDIA Vera Rubin NVL72: 17.5 PF fp8, 4 PF bf16"),
    ("nvidia-vr200", "int8"): (0.0625, "NVIDIA Vera Rubin NVL72"),
    ("huawei-ascend-910b", "fp16"): (1.06, "Ascend 910B: bf16 at 0.94 of fp16"),
    ("huawei-ascend-910b", "int8"): (2.12, "twice fp16"),
    ("huawei-ascend-910b2", "fp16"): (1.06, "Ascend 910B: bf16 at 0.94 of fp16"),
    ("huawei-ascend-910b2", "int8"): (2.12, "twice fp16"),
    ("huawei-ascend-910b3", "fp16"): (1.06, "Ascend 910B: bf16 at 0.94 of fp16"),
    ("huawei-ascend-910b3", "int8"): (2.12, "twice fp16"),
    ("huawei-ascend-910b4", "fp16"): (1.14, "Ascend 910B4"),
    ("huawei-ascend-910b4", "int8"): (2.28, "twice fp16"),
    ("huawei-ascend-910c", "fp16"): (1.06, "Ascend 910C: bf16 at 0.94 of fp16"),
    ("huawei-ascend-910c", "int8"): (2.12, "twice fp16"),
    ("cambricon-mlu370-x8", "int8"): (2.67, "MLU370-X8 product page: 96 and 256"),
    ("amd-mi250x", "int8"): (1, "CDNA 2 white paper: int8 at the rate of bf16"),
    ("amd-mi250", "int8"): (1, "CDNA 2 white paper: int8 at the rate of bf16"),
    ("amd-mi210", "int8"): (1, "CDNA 2 white paper: int8 at the rate of bf16"),
    ("amd-mi455x", "int8"): (1, "AMD product page: int8 5 PO/s dense"),
    ("intel-gaudi3", "fp8"): (1, "Gaudi 3 white paper: fp8 at the rate of bf16"),
    ("intel-gaudi3", "tf32"): (0.274, "Gaudi 3 white paper: 459"),
    ("google-tpu-v4", "int8"): (1, "Cloud TPU v4"),
    ("google-tpu-v5p", "fp8"): (1, "fp8 runs at the rate of bf16"),
    ("google-tpu-v6e", "fp8"): (1, "fp8 runs at the rate of bf16"),
    ("aws-trainium1", "tf32"): (1, "Neuron documentation"),
    ("aws-trainium1", "fp8"): (1, "cFP8 at the rate of bf16"),
    ("aws-trainium3", "tf32"): (1, "Neuron documentation"),
    ("aws-trainium3", "fp8"): (3.75, "Neuron documentation: MXFP8 2,517, bf16 671"),
    ("nvidia-b300-sxm", "fp4"): (6.22, "fp4 raised alone: HGX B300 sheet, 14 PF"),
    ("nvidia-gb300", "fp4"): (6, "fp4 raised alone: Blackwell Ultra datasheet"),
    ("nvidia-b30a", "fp4"): (6.22, "half a B300"),
    ("nvidia-vr200", "fp4"): (8.75, "NVIDIA Vera Rubin NVL72: 35 PF dense, 4 PF bf16"),
    ("nvidia-rtx-5090", "fp4"): (8, "16 bits with 32-bit accumulation at half rate, fp4 at full"),
    ("nvidia-rtx-5090d", "fp4"): (8, "16 bits with 32-bit accumulation at half rate, fp4 at full"),
    ("nvidia-rtx-5090d-v2", "fp4"): (8, "16 bits with 32-bit accumulation at half rate"),
    ("aws-trainium3", "fp4"): (3.75, "Neuron documentation: MXFP4 at the rate of MXFP8"),
    ("meta-mtia-450", "fp4"): (6, "fp4 raised alone: Meta, 7 and 21 PF"),
    ("meta-mtia-500", "fp4"): (6, "fp4 raised alone: Meta, 10 and 30 PF"),
    ("hygon-k100-ai", "int8"): (2.04, "vendor figures: 192 and 392"),
}  # fmt: skip


def rates(row: dict[str, str]) -> dict[str, float]:
    base = float(row["bf16_tflops"] or row["fp16_tflops"] or 0)
    if not base:
        return {}
    return {kind: float(row[column]) / base for kind, column in COLUMN.items() if row[column]}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_rates_stand_to_each_other_as_matrix_units_have_them(row: dict[str, str]) -> None:
    for kind, ratio in rates(row).items():
        expected, why = EXCEPTIONS.get((row["id"], kind), (USUAL[kind], "usual"))
        assert ratio == pytest.approx(expected, rel=WITHIN), (kind, why)


def test_every_exception_is_one() -> None:
    by_id = {row["id"]: row for row in ROWS}
    for (name, kind), (ratio, why) in EXCEPTIONS.items():
        assert kind in rates(by_id[name]), name
        assert why
        assert abs(ratio / USUAL[kind] - 1) > WITHIN / 2, (name, kind)


def cases() -> Iterator[Case]:
    for table in ("runs.csv", "runs_more.csv", "runs_new.csv"):
        for row in read_table(table):
            try:
                case = read_case(row)
            except (UnusableRowError, KrzemError):
                continue
            if case.seconds and case.finetune not in ("lora", "qlora"):
                yield case


def test_no_published_run_is_faster_than_its_card() -> None:
    """Model FLOPs of the fastest rows over the dense peak of the arithmetic they name."""
    over = []
    for case in cases():
        kind = case.precision.arithmetic
        peaks = case.device.peak_flops
        peak = peaks.get("tf32" if kind == "fp32" else kind) or peaks.get("bf16") or peaks["fp16"]
        flops = flops_per_token(case.architecture, case.sequence)
        rate = flops * case.global_batch * case.sequence / case.seconds / case.devices
        if rate > peak:
            over.append((case.id, case.device.id, kind, round(rate / peak, 2)))
    assert not over
