import tomllib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from krzem.errors import LaunchError
from krzem.hardware import cluster_of
from krzem.run import measure
from krzem.run.command.probing import probe_lines
from krzem.run.probe.backend import Array, Doubles, NumpyBackend
from krzem.run.probe.judge import judge
from krzem.run.probe.numerics import Grade, check_operators, compare, keeps_float32
from krzem.run.probe.rates import soak
from krzem.run.profile import Profile, profile_text, read_profile


@pytest.mark.parametrize("precision", ["fp32"])
def test_numpy_passes_its_own_numerics(precision: str) -> None:
    grades = {n.operator: n.grade for n in check_operators(NumpyBackend(), precision)}
    assert set(grades) == {
        "matmul", "softmax", "rms_norm", "silu", "log_sum_exp", "sum", "attention",
    }  # fmt: skip
    assert set(grades.values()) == {Grade.PASS}


def shifted_mask(q: Any, k: Any, v: Any) -> Any:
    scores = q @ np.swapaxes(k, -1, -2) / np.float32(np.sqrt(q.shape[-1]))
    mask = np.triu(np.ones(scores.shape[-2:], dtype=bool), 2)
    powers = np.exp(np.where(mask, np.float32(-1e30), scores - scores.max(-1, keepdims=True)))
    return powers / powers.sum(-1, keepdims=True) @ v


PLANTED: dict[str, tuple[str, Callable[..., Any]]] = {
    "a wrong epsilon": (
        "rms_norm",
        lambda x: x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(0.1)),
    ),
    "a mask off by one": ("attention", shifted_mask),
    "products in sixteen bits": (
        "matmul",
        lambda a, b: (a.astype(np.float16) @ b.astype(np.float16)).astype(np.float32),
    ),
    "a NaN": ("silu", lambda x: np.where(x > 8, np.float32(np.nan), x / (1 + np.exp(-x)))),
    "a missing term": ("sum", lambda x: x[..., 1:].sum(-1)),
}


@pytest.mark.parametrize("plant", PLANTED)
def test_planted_faults_of_operators_are_errors(plant: str) -> None:
    operator, wrong = PLANTED[plant]
    backend = NumpyBackend()
    operators = {**backend.operators(), operator: wrong}
    bad = [n for n in check_operators(backend, "fp32", operators) if n.grade is Grade.ERROR]
    assert [n.operator for n in bad] == [operator]
    assert bad[0].reason


def test_the_dual_rules_in_order() -> None:
    truth: Doubles = np.full(10_000, 10.0)
    few, some = truth.copy(), truth.copy()
    few[:5] *= 1.002
    some[:50] *= 1.002
    assert compare("x", "fp32", truth + 1e-4, truth).grade is Grade.PASS
    assert compare("x", "fp32", few, truth).grade is Grade.WARNING
    assert compare("x", "fp32", some, truth).grade is Grade.ERROR
    assert compare("x", "bf16", some, truth).grade is Grade.WARNING
    assert compare("x", "bf16", -truth, truth).reason.startswith("cosine -1")
    assert compare("x", "bf16", truth * 0, truth * 0).grade is Grade.PASS


def test_a_soak_counts_wrong_bits() -> None:
    class Flaky(NumpyBackend):
        calls = 0

        def digest(self, array: Any) -> str:
            self.calls += 1
            return "other" if self.calls == 3 else "same"

    assert soak(NumpyBackend(), "fp32", 64, 0.05).different == 0
    assert soak(Flaky(), "fp32", 64, 0.05).different == 1


def test_a_device_without_true_float32_is_told() -> None:
    class Rounding(NumpyBackend):
        """Products of float32 keep the ten bits of TF32."""

        def operators(self) -> dict[str, Callable[..., Array]]:
            def product(a: Array, b: Array) -> Array:
                bits = np.ascontiguousarray(a).view(np.int32)
                return ((bits + 0x1000) & ~0x1FFF).view(np.float32) @ b

            return super().operators() | {"matmul": product}

    assert keeps_float32(NumpyBackend()) is True
    assert keeps_float32(Rounding()) is False
    soaked = rank(0)["soak"] | {"products": 9, "seconds": 1.0}
    told = dict(probe_lines(rank(0, attention=[], soak=soaked, true_float32=False)))
    assert "fewer bits" in told["float32"]


def rank(number: int, **changes: Any) -> dict[str, Any]:
    rates = [{"precision": "bf16", "size": 4096, "value": 600e12, "best": 610e12}]
    made = {
        "rank": number, "host": f"n{number // 2}", "device": f"npu:{number % 2}",
        "memory_bytes": 64e9, "matmul": rates, "memory": {"value": 1.2e12},
        "launch": {"value": 5e-6}, "numerics": [], "collectives": [],
        "soak": {"different": 0, "digest": "a", "side": 4096, "first_rate": 1.0, "last_rate": 1.0},
    }  # fmt: skip
    return made | changes


def test_slow_and_wrong_devices_are_named_and_their_hosts_left_out() -> None:
    slow = [{"precision": "bf16", "size": 4096, "value": 400e12, "best": 410e12}]
    soaked = rank(0)["soak"]
    ranks = [
        rank(0), rank(1), rank(2), rank(3, matmul=slow), rank(4, soak=soaked | {"different": 2}),
        rank(5), rank(6), rank(7, soak=soaked | {"digest": "b"}),
    ]  # fmt: skip
    probed = judge(ranks, spread=0.15)
    assert probed.bad_ranks == (3, 4, 7)
    assert probed.bad_hosts() == ("n1", "n2", "n3")
    assert "device 3 (n1, npu:1) is slow: 67% of the median device" in probed.faults
    assert any("gave other bits in 2 repeats" in fault for fault in probed.faults)
    assert any("computes other bits than most" in fault for fault in probed.faults)
    assert judge(ranks[:3], spread=0.15).passed


def test_processors_that_share_a_host_are_not_called_slow() -> None:
    slow = [{"precision": "bf16", "size": 512, "value": 1e10, "best": 1e10}]
    ranks = [rank(0, device="cpu"), rank(1, device="cpu", matmul=slow)]
    probed = judge(ranks, spread=0.15)
    assert probed.passed
    assert "is slow" in probed.warnings[0]


def test_collectives_within_a_host_and_between_hosts() -> None:
    links = [{"what": "all_reduce", "bytes": 1, "seconds": 1e-5, "bus_bytes_per_s": 2e11}]
    inside = judge([rank(0, collectives=links), rank(1, collectives=links)], spread=0.1).measured
    across = judge([rank(0, collectives=links), rank(2, collectives=links)], spread=0.1).measured
    assert inside["scale_up_bytes_per_s"] == 2e11
    assert across["scale_out_bytes_per_s"] == 2e11
    assert "scale_up_bytes_per_s" not in across, "what was not measured is absent"


def test_a_profile_is_a_cluster_file(tmp_path: Any) -> None:
    measured = {
        "bf16_flops": 6.5e14, "memory_bytes_per_s": 2.9e12, "scale_up_latency_seconds": 5e-6,
    }  # fmt: skip
    text = profile_text(
        Profile(device="h800", devices=8, measured=measured),
        verdict="8 devices passed", when="2026-11-23", evidence={"a": 1},
    )  # fmt: skip
    path = tmp_path / "profile.toml"
    path.write_text(text)
    assert read_profile(path).measured == pytest.approx(measured)
    assert cluster_of(tomllib.loads(text)).measured["bf16_flops"] == pytest.approx(6.5e14)


def test_a_probe_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.sys, "executable", "/bin/false")
    with pytest.raises(LaunchError, match="the probe failed: it says nothing"):
        measure.probe_here(seconds=1, processes=1, use="numpy")
