"""Compiled layers compute what the same layers compute as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.train.configs import DEEPSEEK_V3, DEEPSEEK_V4, LLAMA, QWEN3

from krzem.errors import RunError
from krzem.layout.layout import parse_layout
from krzem.train.build import check_compiler, compile_layers
from krzem.train.config import model_spec
from krzem.train.engine import Engine

CPU = torch.device("cpu")
# torch's compiler uses what torch has deprecated, and warns of it.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def generated() -> str:
    """The backend that makes code."""
    try:
        check_compiler(CPU)
    except RunError as error:
        pytest.skip(str(error))
    return "inductor"


def engine(
    config: dict[str, Any], dtype: torch.dtype, backend: str | None, layout: str = "mbs=4"
) -> Engine:
    made = Engine(model_spec(config), parse_layout(layout), device=CPU, dtype=dtype, seed=3)
    if backend is not None:
        compile_layers(made.stages, backend)
    return made


def tokens(config: dict[str, Any], seed: int = 1) -> torch.Tensor:
    """Skewed ids, so that experts are loaded unevenly."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(4, 17, generator=generator) ** 3 * config["vocab_size"]).long()


def assert_alike(config: dict[str, Any], dtype: torch.dtype, backend: str, layout: str) -> None:
    """Loss and every gradient of a step agree, and so do the loads of experts."""
    plain, compiled = engine(config, dtype, None, layout), engine(config, dtype, backend, layout)
    results = [e.step(tokens(config), sequences=4) for e in (plain, compiled)]
    tolerance = 2e-6 if dtype is torch.float32 else 3e-2
    assert results[1].losses == pytest.approx(results[0].losses, rel=tolerance)
    for a, b in zip(plain.held, compiled.held, strict=True):
        assert (a.grad is None) == (b.grad is None), a.name
        if a.grad is None or b.grad is None:
            continue
        apart = float((a.grad - b.grad).norm())
        assert apart <= 5 * tolerance * float(a.grad.norm()) + 1e-7, a.name
    loads = [e.loads() for e in (plain, compiled)]
    for name, load in loads[0].items():
        if dtype is torch.float32:
            torch.testing.assert_close(loads[1][name], load)


@pytest.mark.long
def test_generated_code_computes_the_same(generated: str) -> None:
    only = {"num_hidden_layers": 1, "first_k_dense_replace": 0, "num_nextn_predict_layers": 0}
    assert_alike({**DEEPSEEK_V3, **only}, torch.float32, generated, "mbs=4")


def test_in_bfloat16() -> None:
    assert_alike(DEEPSEEK_V3, torch.bfloat16, "aot_eager", "mbs=4")


@pytest.mark.parametrize("recompute", ["none", "attention", "modules", "full"])
def test_with_recomputation(recompute: str) -> None:
    config = {**DEEPSEEK_V3, "num_hidden_layers": 2, "num_nextn_predict_layers": 0}
    assert_alike(config, torch.float32, "aot_eager", f"mbs=2,recompute={recompute}")


SHORT_V4 = {
    **DEEPSEEK_V4,
    "num_hidden_layers": 2,
    "layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"],
    "mlp_layer_types": ["hash_moe", "moe"],
    "num_nextn_predict_layers": 0,
}


@pytest.mark.parametrize("config", [SHORT_V4, LLAMA, QWEN3], ids=["v4", "llama", "qwen3"])
def test_other_models(config: dict[str, Any]) -> None:
    assert_alike(config, torch.float32, "aot_eager", "mbs=4")


def test_changing_routes_compile_nothing_again() -> None:
    torch._dynamo.reset()
    trained = engine(DEEPSEEK_V3, torch.float32, "aot_eager")
    counted = torch._dynamo.utils.counters["stats"]
    graphs = []
    for seed in range(20):
        trained.step(tokens(DEEPSEEK_V3, seed), sequences=4)
        graphs.append(counted["unique_graphs"])
    assert graphs[0] > 0
    assert len(set(graphs)) == 1


def test_without_a_compiler_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here\nmore")

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.raises(RunError, match=r"CXX .*'no compiler here'; .* set compile = false"):
        check_compiler(CPU)
