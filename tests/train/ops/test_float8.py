"""Block-scaled float8: what is rounded, how far products are off, and where it is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.configs import ALL
from torch._subclasses.fake_tensor import FakeTensorMode

from krzem.errors import InputError
from krzem.layout.layout import Layout
from krzem.train import device
from krzem.train.config import model_spec
from krzem.train.engine import Engine
from krzem.train.ops import Groups, cuda, float8_grouped_linear, float8_linear, float8_product
from krzem.train.ops.cuda import float8_product_cuda
from krzem.train.ops.float8 import (
    Quantised,
    float8_rows_linear,
    quantised,
    restored,
    rows_quantised,
    tokens_quantised,
)
from krzem.train.optim import Optimizer, OptimizerConfig

STEP = 2.0**-4
"""Half the distance of neighbours in e4m3, relative: three bits behind the point."""


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=25)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 128]), st.floats(-30, 30))
def test_each_value_is_rounded_within_its_block(r: int, c: int, rows: int, power: float) -> None:
    x = draw(r, c, seed=r + c) * 2.0**power
    x[0, :5] *= 2**12  # An outlier costs its own block, no other.
    back = restored(*quantised(x, rows, 128), rows, 128)
    blocks = -(-r // rows), -(-c // 128)
    scale = quantised(x, rows, 128)[1]
    assert scale.shape == blocks
    smallest = scale.repeat_interleave(rows, 0)[:r].repeat_interleave(128, 1)[:, :c] * 2.0**-10
    assert ((back - x).abs() <= x.abs() * STEP + smallest).all()


def test_zeros_stay_zero() -> None:
    packed, scale = quantised(torch.zeros(3, 200), 1, 128)
    assert not packed.float().any()
    assert torch.equal(scale, torch.ones(3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_gradients_against_float64(dtype: torch.dtype) -> None:
    # Two operands, each uniformly off by up to a sixteenth: 3.7 % of the norm.
    x, w, g = (t.to(dtype) for t in (draw(2, 150, 300), draw(200, 300, seed=1), draw(2, 150, 200)))
    low = [t.clone().requires_grad_() for t in (x, w)]
    high = [t.double().requires_grad_() for t in (x, w)]
    got, expected = float8_linear(*low), high[0] @ high[1].T
    got.backward(g)
    expected.backward(g.double())
    for a, b in ((got, expected), (low[0].grad, high[0].grad), (low[1].grad, high[1].grad)):
        assert a is not None
        assert b is not None
        error = ((a.detach().double() - b.detach()).norm() / b.detach().norm()).item()
        assert 0.01 < error < 0.05


def test_groups_are_linear_layers_of_their_own() -> None:
    sizes = (128, 0, 64)
    groups = Groups(ends=torch.tensor(sizes).cumsum(0).int(), sizes=sizes)
    x, w = draw(192, 130).requires_grad_(), draw(3, 40, 130, seed=1).requires_grad_()
    out = float8_grouped_linear(x, w, groups)
    assert torch.equal(out[128:], float8_linear(x[128:], w[2]))
    out.sum().backward()
    assert w.grad is not None
    assert not w.grad[1].any()
    assert w.grad[2].any()


def test_a_model_in_float8_follows_the_one_in_bfloat16() -> None:
    tokens = torch.randint(0, 96, (4, 17), generator=torch.Generator().manual_seed(1))
    last = []
    for float8 in (False, True):
        run = Engine(
            model_spec(ALL["deepseek_v3"]),
            Layout(micro_batch=4),
            device=torch.device("cpu"),
            dtype=torch.bfloat16,
            float8=float8,
        )
        optimizer = Optimizer(run.held, OptimizerConfig())
        losses = []
        for _ in range(3):
            result = run.step(tokens, sequences=4)
            optimizer.step(3e-3, result.gradient_norm)
            losses.append(result.losses["loss"])
        assert losses[-1] < losses[0]
        last.append(losses)
    assert last[0] != last[1]
    assert max(abs(a - b) for a, b in zip(*last, strict=True)) < 0.1


def test_devices_without_such_products_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    device.check_precision(torch.device("cpu"), "fp8-block")
    monkeypatch.setattr(device, "_name", lambda _: "Ascend 910B")
    with pytest.raises(InputError, match="Ascend 910B has none that torch can call: use bf16"):
        device.check_precision(torch.device("xpu"), "fp8-block")
    device.check_precision(torch.device("xpu"), "bf16")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 600), st.integers(1, 1200), st.booleans())
def test_the_products_of_devices_pass_torchs_checks(m: int, n: int, k: int, whole: bool) -> None:
    """Shapes, strides and types of every operand, for any size, on tensors without memory."""
    with FakeTensorMode():
        a, b = torch.randn(m, k, dtype=torch.bfloat16), torch.randn(n, k, dtype=torch.bfloat16)
        out = float8_product_cuda(a, b, whole)
        assert (out.shape, out.dtype) == ((m, n), torch.bfloat16)
        turned = Quantised(*(t.t() for t in quantised(torch.randn(k, n), 128, 128)))
        assert float8_product_cuda(a, turned, True, torch.float32).shape == (m, n)


def test_padding_for_devices_changes_no_result() -> None:
    """What is added to operands and scales stands for zeros."""
    x, w = draw(37, 300), draw(150, 300, seed=1)
    for whole in (True, False):
        rows = 128 if whole else 1
        a, b = quantised(x, 1, 128), quantised(w, rows, 128)
        wide_a, wide_b = cuda._padded(a.packed, 16), cuda._padded(b.packed, 128 if whole else 16)
        scale_a = cuda._scales_of_rows(a.scale, len(wide_a))
        scale_b = cuda._scales_of_rows(b.scale, len(wide_b))
        if whole:
            scale_b = cuda._scales_of_blocks(b.scale).t()[:, : scale_a.shape[1]]
        long = restored(wide_a, scale_a, 1, 128) @ restored(wide_b, scale_b, rows, 128).t()
        short = float8_product(a, b, whole, torch.float32)
        torch.testing.assert_close(long[:37, :150], short, atol=1e-4, rtol=1e-4)


def test_a_byte_is_kept_for_each_entry_of_an_operand() -> None:
    kept: list[torch.Tensor] = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept.append(t)
        return t

    x = draw(256, 512).bfloat16().requires_grad_()
    w = draw(384, 512, seed=1).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        float8_linear(x, w)
    assert sum(t.nbytes for t in kept) <= 1.04 * (x.numel() + w.numel())


@pytest.mark.parametrize("sizes", [(128, 0, 256), (0, 0, 128), (256, 128, 64)])
@pytest.mark.parametrize("outputs", [40, 128, 200])
def test_rounding_all_groups_at_once_rounds_as_each_alone(
    sizes: tuple[int, ...], outputs: int
) -> None:
    """Results and both gradients, to the bit."""
    x, w = draw(sum(sizes), 130), draw(3, outputs, 130, seed=1)
    g = draw(sum(sizes), outputs, seed=2)
    groups = Groups(ends=torch.tensor(sizes).cumsum(0).int(), sizes=sizes)
    together, alone = ([t.clone().requires_grad_() for t in (x, w)] for _ in range(2))
    out = float8_grouped_linear(*together, groups)
    parts = zip(alone[0].split(sizes), alone[1].unbind(0), strict=True)
    expected = torch.cat([float8_linear(rows, matrix) for rows, matrix in parts])
    out.backward(g)
    expected.backward(g)
    assert torch.equal(out, expected)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(together, alone, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(128, 128, 256), (256, 128, 128)])
@pytest.mark.parametrize("known", [True, False], ids=["sizes known", "ends alone"])
def test_scales_of_rows_against_float64(sizes: tuple[int, ...], known: bool) -> None:
    """As far off as scales of blocks are, on even values; rows behind all groups count nowhere."""
    ends = torch.tensor(sizes).cumsum(0).int()
    groups = Groups(ends=ends, sizes=sizes if known else None, room=sum(sizes) + 128)
    rows = groups.rows
    x, w, g = draw(rows, 256), draw(3, 160, 256, seed=1), draw(rows, 160, seed=2)
    x[sum(sizes) :], g[sum(sizes) :] = torch.nan, torch.nan
    low = [t.clone().requires_grad_() for t in (x, w)]
    high = [t.double().requires_grad_() for t in (x[: sum(sizes)], w)]
    out = float8_rows_linear(*low, groups)[: sum(sizes)]
    parts = zip(high[0].split(sizes), high[1].unbind(0), strict=True)
    expected = torch.cat([r @ m.T for r, m in parts])
    out.backward(g[: sum(sizes)])
    expected.backward(g[: sum(sizes)].double())
    assert low[0].grad is not None
    for a, b in (
        (out, expected),
        (low[0].grad[: sum(sizes)], high[0].grad),
        (low[1].grad, high[1].grad),
    ):
        assert a is not None
        assert b is not None
        error = ((a.detach().double() - b.detach()).norm() / b.detach().norm()).item()
        assert 0.01 < error < 0.05


def test_an_outlier_costs_its_own_row() -> None:
    x = draw(4, 512)
    x[1, 7] = 2.0**14
    packed, scale = rows_quantised(x)
    assert scale.shape == (4,)
    back = packed.float() * scale[:, None]
    for row in (0, 2, 3):
        assert ((back[row] - x[row]).abs() <= x[row].abs() * STEP + scale[row] * 2.0**-9).all()


def test_the_device_s_grouped_products_pass_torch_s_checks() -> None:
    """Shapes, strides, types and scales, on tensors without memory (written for NVIDIA)."""
    ends = torch.tensor([128, 384]).int()
    with FakeTensorMode() as mode:
        groups = Groups(ends=mode.from_tensor(ends), sizes=None, room=512)
        x, w = torch.empty(512, 256), torch.empty(2, 160, 256)
        a, b = rows_quantised(x), rows_quantised(w)
        assert cuda.float8_rows_product_cuda(a, b, groups, torch.bfloat16).shape == (512, 160)
        turned = rows_quantised(w.mT)
        g = rows_quantised(torch.empty(512, 160))
        assert cuda.float8_rows_product_cuda(g, turned, groups, torch.float32).shape == (512, 256)
        left, right = (tokens_quantised(t, groups.ends) for t in (torch.empty(512, 160), x))
        dw = cuda.float8_tokens_product_cuda(left, right, groups, torch.bfloat16)
        assert dw.shape == (2, 160, 256)
        with pytest.raises(RuntimeError, match="column major"):
            torch._scaled_grouped_mm(
                a.packed, w.mT.contiguous().to(a.packed.dtype), a.scale, b.scale, offs=groups.ends
            )
