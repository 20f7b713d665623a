"""Block-scaled float8: what is rounded, how far products are off, and where it is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.configs import ALL

from krzem.errors import InputError
from krzem.layout.layout import Layout
from krzem.train import device
from krzem.train.config import model_spec
from krzem.train.engine import Engine
from krzem.train.ops import Groups, float8_grouped_linear, float8_linear
from krzem.train.ops.float8 import quantised, restored
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
