"""Measured rates take the place of assumed ones, in the plan as in the machine."""

from pathlib import Path

import pytest

import krzem
from krzem.plan.price import Pricer
from krzem.plan.question import Question
from krzem.plan.request import settle

HEAD = 'device = "h100"\ndevices = 16\n[measured]\n'
ASKED = {"tokens": "10B", "batch": 64}


def pricer(tmp_path: Path, measured: str, precision: str = "bf16") -> Pricer:
    file = tmp_path / "cluster.toml"
    file.write_text(HEAD + measured)
    return Pricer(settle(Question(model="qwen3-0.6b", on=file, tokens="10B", global_batch=64,
                                  precision=precision)).task)  # fmt: skip


def test_each_measured_figure_reaches_its_place(tmp_path: Path) -> None:
    assumed = pricer(tmp_path, "").machine_of(())
    found = pricer(
        tmp_path,
        'bf16 = "500 TFLOP/s"\nmemory_bandwidth = "2 TB/s"\nscale_up_bandwidth = "300 GB/s"\n'
        'scale_out_bandwidth = "40 GB/s"\nscale_up_latency = "9us"\nscale_out_latency = "20us"\n'
        'launch_time = "1ms"\n',
    ).machine_of(())
    assert found.matmul_flops == found.matmul16_flops == 500e12
    assert found.attention_flops / assumed.attention_flops == pytest.approx(
        500e12 / assumed.matmul16_flops
    )
    assert found.memory_bytes_per_s == 2e12
    assert (found.up_bytes_per_s, found.out_bytes_per_s) == (300e9, 40e9)
    assert (found.up_latency, found.out_latency) == pytest.approx((9e-6, 20e-6))
    assert found.host_seconds == pytest.approx(1e-3)


def test_a_bare_launch_does_not_make_an_engine_faster(tmp_path: Path) -> None:
    assumed = pricer(tmp_path, "").machine_of(())
    found = pricer(tmp_path, 'launch_time = "1ns"').machine_of(())
    assert found.host_seconds == assumed.host_seconds


def test_narrow_products_keep_what_was_not_measured(tmp_path: Path) -> None:
    assumed = pricer(tmp_path, "", "fp8").machine_of(())
    found = pricer(tmp_path, 'bf16 = "500 TFLOP/s"', "fp8").machine_of(())
    assert found.matmul_flops == assumed.matmul_flops
    assert found.matmul16_flops == 500e12


def test_a_slower_machine_gives_a_longer_plan(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(HEAD + 'bf16 = "300 TFLOP/s"')
    slow = krzem.plan("qwen3-0.6b", on=file, **ASKED)  # type: ignore[arg-type]
    fast = krzem.plan("qwen3-0.6b", on="h100:16", **ASKED)  # type: ignore[arg-type]
    assert slow.whole_run.training_days.mid > 1.2 * fast.whole_run.training_days.mid


@pytest.mark.parametrize("device", ["rtx-pro-6000d", "enflame-t20", "huawei-ascend-960"])
def test_the_snippet_of_an_unknown_peak_makes_a_plan(tmp_path: Path, device: str) -> None:
    with pytest.raises(krzem.KrzemError) as caught:
        krzem.plan("qwen3-0.6b", on=f"{device}:16", **ASKED)  # type: ignore[arg-type]
    lines = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
    file = tmp_path / "cluster.toml"
    file.write_text("\n".join(lines))
    found = krzem.plan("qwen3-0.6b", on=file, **ASKED)  # type: ignore[arg-type]
    assert 0 < found.best.mfu.mid < 1
    given = [fact for fact in found.as_dict()["facts"] if fact["confidence"] == "given"]
    assert "bf16 peak flops per device" in [fact["what"] for fact in given]
