"""The loss whose gradient is computed on the way, against torch's in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from krzem.train.model import transformer as loss
from krzem.train.parallel.collectives import ALONE


def exact(x: Tensor, matrix: Tensor, target: Tensor, z: float) -> tuple[Tensor, Tensor]:
    logits = F.linear(x, matrix)
    plain = F.cross_entropy(logits, target, ignore_index=loss.IGNORE, reduction="sum")
    kept = target != loss.IGNORE
    return plain, plain + z * (logits.logsumexp(-1).square() * kept).sum()


@pytest.mark.parametrize("rows", [2**20, 4], ids=["whole", "pieces"])
@pytest.mark.parametrize("z", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch, rows: int, z: float, dtype: torch.dtype, tolerance: float
) -> None:
    monkeypatch.setattr(loss, "_ROWS", rows)
    monkeypatch.setattr(loss, "_LOGITS", {"cpu": 1})
    generator = torch.Generator().manual_seed(3)
    x, matrix = (torch.randn(n, 16, generator=generator).to(dtype) for n in (11, 37))
    target = torch.randint(0, 37, (11,), generator=generator)
    target[[2, 7]] = loss.IGNORE
    low = [t.clone().requires_grad_() for t in (x, matrix)]
    high = [t.double().requires_grad_() for t in (x, matrix)]
    got = loss.token_losses(low[0], low[1], target, ALONE, z)
    expected = exact(high[0], high[1], target, z)
    (got[1] / 3).backward()
    (expected[1] / 3).backward()
    assert not got[0].requires_grad
    pairs = [*zip(got, expected, strict=True)]
    pairs += [(a.grad, b.grad) for a, b in zip(low, high, strict=True)]  # type: ignore[misc]
    for a, b in pairs:
        assert ((a.double() - b).norm() / b.norm()).item() <= tolerance


def test_without_gradients_only_values_are_computed() -> None:
    x, matrix = torch.randn(5, 8), torch.randn(9, 8)
    with torch.no_grad():
        plain, full = loss.token_losses(x, matrix, torch.arange(5), ALONE, 0.0)
    assert torch.equal(plain, full)
    assert not full.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_scales_the_loss_and_both_gradients_once(dtype: torch.dtype) -> None:
    """What waits for the backward pass has the type of the matrix, and no more."""
    generator = torch.Generator().manual_seed(4)
    x, matrix = (torch.randn(n, 16, generator=generator).to(dtype) for n in (11, 37))
    target = torch.randint(0, 37, (11,), generator=generator)
    share, kept = 1 / 48_000, []
    low = [t.clone().requires_grad_() for t in (x, matrix)]
    high = [t.double().requires_grad_() for t in (x, matrix)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        _, full = loss.token_losses(low[0], low[1], target, ALONE, 0.1, share)
    full.backward()
    expected = exact(high[0], high[1], target, 0.1)[1] * share
    expected.backward()
    assert sum(t.nbytes for t in kept) == x.nbytes + matrix.nbytes
    tolerance = 1e-6 if dtype is torch.float32 else 1e-2
    pairs = [(full, expected), *((a.grad, b.grad) for a, b in zip(low, high, strict=True))]
    for a, b in pairs:
        assert a is not None
        assert b is not None
        assert ((a.double() - b).norm() / b.norm()).item() <= tolerance
