"""Updates and learning rates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.train.configs import ALL

from krzem.errors import GoalError
from krzem.layout.layout import Layout
from krzem.train.config import model_spec
from krzem.train.engine import Engine
from krzem.train.optim import Optimizer, OptimizerConfig, Schedule, update_biases
from krzem.train.optim.muon import is_matrix, newton_schulz

CPU = torch.device("cpu")


def engine(name: str = "deepseek_v3") -> Engine:
    return Engine(model_spec(ALL[name]), Layout(micro_batch=4), device=CPU)


def tokens() -> torch.Tensor:
    return torch.randint(0, 96, (4, 17), generator=torch.Generator().manual_seed(1))


def test_adamw_is_torch_s_with_clipping() -> None:
    ours, theirs = engine("llama"), engine("llama")
    config = OptimizerConfig(clip=0.1)
    optimizer = Optimizer(ours.held, config)
    model = theirs.stages[0]
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.1)
    for rate in (1e-2, 5e-3, 1e-3):
        optimizer.step(rate, ours.step(tokens(), sequences=4).gradient_norm)
        theirs.step(tokens(), sequences=4)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        assert norm > 0.1
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
    for a, b in zip(ours.stages[0].parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "kind"), [("deepseek_v3", "adamw"), ("deepseek_v4", "muon")], ids=["v3", "v4"]
)
def test_both_learn(name: str, kind: str) -> None:
    """The other two pairs learn in ``tests/train/loop/test_learning.py``, on held-out text."""
    run = engine(name)
    optimizer = Optimizer(run.held, OptimizerConfig(kind=kind), groups=2)
    first = run.step(tokens(), sequences=4)
    result = first
    for _ in range(15):
        optimizer.step(1e-2, result.gradient_norm)
        result = run.step(tokens(), sequences=4)
    assert result.losses["loss"] < first.losses["loss"] - 1.5
    assert result.losses["mtp_1"] < first.losses["mtp_1"] - 0.5


@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 5))
def test_newton_schulz_pushes_singular_values_towards_one(rows: int, cols: int, seed: int) -> None:
    x = torch.randn(3, rows, cols, generator=torch.Generator().manual_seed(seed))
    u, values, v = torch.linalg.svd(x, full_matrices=False)
    x = u @ torch.diag_embed(values.clamp(min=0.1 * float(values.max()))) @ v
    out = newton_schulz(x)
    after = torch.linalg.svdvals(out)
    assert after.min() > 0.5
    assert after.max() < 1.3
    # Singular vectors stay: the product with the polar factor is symmetric.
    polar = u @ v
    product = out.mT @ polar
    assert (product - product.mT).abs().max() < 1e-3


def test_muon_takes_matrices_and_leaves_the_rest() -> None:
    spec = Engine(model_spec(ALL["deepseek_v4"]), Layout(), device=CPU)
    muon = {h.name for h in spec.held if is_matrix(h.name, h.parameter)}
    assert "layers.0.self_attn.q_b_proj.weight" in muon
    assert "layers.1.mlp.experts.gate_up_proj" in muon
    assert "layers.0.attn_hc.fn" in muon
    left = {h.name for h in spec.held} - muon
    assert {"embed_tokens.weight", "lm_head.weight", "layers.0.self_attn.sinks"} <= left
    assert "layers.1.self_attn.compressor.position_bias" in left


def test_experts_are_orthogonalised_one_by_one() -> None:
    run = engine()
    held = next(h for h in run.held if h.name == "layers.1.mlp.experts.gate_up_proj")
    optimizer = Optimizer(run.held, OptimizerConfig(kind="muon", weight_decay=0.0, clip=0.0))
    before = held.part.detach().clone()
    optimizer.step(1.0, run.step(tokens(), sequences=4).gradient_norm)
    update = before - held.part.detach()
    values = torch.linalg.svdvals(update) / (0.2 * 32**0.5)
    assert values.shape == (8, 2, 16)
    assert values.max() < 1.3


def test_biases_move_against_the_load() -> None:
    run = engine()
    run.step(tokens(), sequences=4)
    routers, loads = run.routers(), run.loads()
    report = update_biases(routers, loads, 0.01)
    for name, router in routers.items():
        load = loads[name]
        assert load.sum() == 4 * 16 * 2
        expected = 0.01 * torch.sign(load.mean() - load)
        torch.testing.assert_close(router.e_score_correction_bias, expected)
        assert router.load.sum() == 0
    assert {r.layer for r in report} == set(routers)
    assert all(r.peak >= 1 for r in report)


def test_balancing_evens_the_load() -> None:
    def peak(rate: float) -> float:
        run = engine()
        optimizer = Optimizer(run.held, OptimizerConfig())
        last = 0.0
        skewed = (torch.rand(4, 17, generator=torch.Generator().manual_seed(2)) ** 4 * 96).long()
        for _ in range(40):
            optimizer.step(3e-3, run.step(skewed, sequences=4).gradient_norm)
            last = max(r.peak for r in update_biases(run.routers(), run.loads(), rate))
        return last

    assert peak(0.02) < 0.8 * peak(0.0)


def test_schedules_by_tokens() -> None:
    wsd = Schedule(tokens=1000, peak=1.0, warmup_tokens=100, decay_share=0.2, final_share=0.1)
    assert [wsd.at(t) for t in (0, 50, 100, 800)] == [0.0, 0.5, 1.0, 1.0]
    assert wsd.at(900) == pytest.approx(0.55)
    assert wsd.at(1000) == pytest.approx(0.1)
    cosine = Schedule(tokens=1000, peak=2.0, kind="cosine", final_share=0.0)
    assert cosine.at(500) == pytest.approx(1.0)
    assert cosine.at(1000) == pytest.approx(0.0)
    assert Schedule(tokens=10, peak=3.0, kind="constant").at(10) == 3.0


@given(st.integers(1, 10**6), st.sampled_from(["wsd", "cosine", "constant"]), st.data())
def test_rates_stay_between_zero_and_peak(tokens: int, kind: str, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, tokens))
    schedule = Schedule(tokens=tokens, peak=1.0, kind=kind, warmup_tokens=warmup)
    at = data.draw(st.integers(0, 2 * tokens))
    assert 0 <= schedule.at(at) <= 1 + 1e-12


def test_wrong_constants_say_so() -> None:
    with pytest.raises(GoalError, match="not one of wsd, cosine, constant"):
        Schedule(tokens=1, peak=1.0, kind="linear")
    with pytest.raises(GoalError, match="longer than the run"):
        Schedule(tokens=1, peak=1.0, warmup_tokens=2)
    with pytest.raises(GoalError, match="not one of adamw, muon"):
        OptimizerConfig(kind="sgd")
