"""What an indexer learns from: the attention of all heads on the entries that it chose."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tests.train.configs import DEEPSEEK_V4
from torch.utils.flop_counter import FlopCounterMode

from krzem.layout.layout import Recompute
from krzem.train.build import build_model
from krzem.train.config import model_spec
from krzem.train.model import LossWeights, compressor, shared_kv
from krzem.train.model.compressor import index_scores
from krzem.train.model.hyper import _project
from krzem.train.model.recompute import not_kept, recomputed
from krzem.train.model.shared_kv import attention_on_entries, indexer_loss


def test_attention_on_entries_is_what_the_softmax_gives_them() -> None:
    g = torch.Generator().manual_seed(1)
    q, keys = torch.randn(2, 3, 5, 4, generator=g), torch.randn(2, 7, 4, generator=g)
    sinks = torch.randn(3, generator=g)
    mask = torch.rand(2, 5, 7, generator=g) < 0.7
    found = attention_on_entries(q, keys, sinks, mask, 2, 0.5)
    for b, s, e in ((0, 0, 0), (1, 4, 1), (1, 2, 0)):
        expected = 0.0
        for h in range(3):
            weights = [sinks[h].exp().item()]
            weights += [
                (q[b, h, s] @ keys[b, k] * 0.5).exp().item() * bool(mask[b, s, k]) for k in range(7)
            ]
            expected += weights[1 + 5 + e] / sum(weights)
        assert abs(found[b, s, e].item() - expected) < 1e-6


def test_the_loss_is_a_divergence() -> None:
    chosen = torch.tensor([[[True, True, False], [False, False, False]]])
    attention = torch.tensor([[[0.6, 0.2, 0.9], [0.0, 0.0, 0.0]]])
    scores = torch.tensor([[[3.0, 1.0, 9.0], [1.0, 2.0, 3.0]]], requires_grad=True)
    loss = indexer_loss(scores, chosen, attention)
    p, q = torch.tensor([0.75, 0.25]), torch.tensor([3.0, 1.0]).softmax(0)
    torch.testing.assert_close(loss, (p * (p / q).log()).sum())
    loss.backward()
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad[0, 0], torch.tensor([*(q - p), 0.0]))
    assert not scores.grad[0, 1].any()
    equal = indexer_loss(torch.tensor([0.75, 0.25, 5.0]).log()[None, None], chosen[:, :1],
                         attention[:, :1])  # fmt: skip
    assert abs(equal.item()) < 1e-6


def test_an_indexer_learns_to_score_what_attention_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own training alone: everything else is held still."""
    losses: list[float] = []

    def noted(*tensors: torch.Tensor) -> torch.Tensor:
        loss = indexer_loss(*tensors)
        losses.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(shared_kv, "indexer_loss", noted)
    torch.manual_seed(1)
    model = build_model(model_spec({**DEEPSEEK_V4, "num_nextn_predict_layers": 0}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter) + (parameter.dim() == 1))
    model.weights = LossWeights(balance=0.0, indexer=1.0)
    own = [p for name, p in model.named_parameters() if ".indexer." in name]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." in name)
    optimizer = torch.optim.AdamW(own, lr=5e-2)
    tokens = torch.randint(0, 96, (2, 33))
    for _ in range(8):
        optimizer.zero_grad()
        model(tokens).backward()
        optimizer.step()
    layers = len(losses) // 8
    assert layers >= 1
    assert sum(losses[-layers:]) < 0.6 * sum(losses[:layers])


def test_scores_formed_some_heads_at_a_time_are_those_of_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compressor, "AT_ONCE", 150)  # Two heads of six.
    g = torch.Generator().manual_seed(2)
    q, k, w = (
        torch.randn(*shape, generator=g, requires_grad=True)
        for shape in ((2, 5, 6, 4), (2, 7, 4), (2, 5, 6))
    )
    products = torch.einsum("bqhn,btn->bqht", q, k).relu() * 4**-0.5
    plain = torch.einsum("bqht,bqh->bqt", products, w * 6**-0.5)
    found = index_scores(q, k, w)
    torch.testing.assert_close(found, plain)
    above = torch.randn(plain.shape, generator=g)
    for own, other in zip(
        torch.autograd.grad((found * above).sum(), (q, k, w)),
        torch.autograd.grad((plain * above).sum(), (q, k, w)),
        strict=True,
    ):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_streams_are_projected_without_a_copy_that_is_kept(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(3)
    streams = torch.randn(2, 5, 4, 6, generator=g).to(dtype).requires_grad_()
    before = streams.detach().clone()
    matrix = torch.randn(8, 24, generator=g, requires_grad=True)
    flat = streams.flatten(2).float()
    plain = (flat @ matrix.t()) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + 1e-6)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = _project(streams, matrix, 1e-6)
    assert [t for t in kept if t.numel() == streams.numel()] == [streams]
    torch.testing.assert_close(found, plain)
    above = torch.randn(plain.shape, generator=g)
    for own, other in zip(
        torch.autograd.grad((found * above).sum(), (streams, matrix)),
        torch.autograd.grad((plain * above).sum(), (streams, matrix)),
        strict=True,
    ):
        torch.testing.assert_close(own, other)
    assert torch.equal(streams, before)


def test_products_for_now_are_not_kept_by_modules() -> None:
    """They are formed again, where others are taken from what was kept."""

    def products(passing: bool) -> int:
        x, w = torch.randn(4, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)

        def twice(x: torch.Tensor) -> torch.Tensor:
            with not_kept() if passing else nullcontext():
                inner = x @ w
            return (inner * inner).sin()

        with FlopCounterMode(display=False) as counter:
            recomputed(twice, Recompute.MODULES, x).sum().backward()
        return counter.get_total_flops() // (2 * 4 * 8 * 8)

    assert (products(False), products(True)) == (3, 4)
