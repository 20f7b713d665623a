"""The same weights give the same logits and gradients as the ``transformers`` classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.train.configs import ALL

from krzem.train.build import build_model
from krzem.train.config import model_spec
from krzem.train.model import Transformer

transformers = pytest.importorskip("transformers")

CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
    "deepseek_v4": ("DeepseekV4Config", "DeepseekV4ForCausalLM"),
}


def oracle(name: str, config: dict[str, Any]) -> Any:
    """The ``transformers`` model, with parameters that leave no feature at a neutral value."""
    torch.manual_seed(1)
    config_class, model_class = (getattr(transformers, n) for n in CLASSES[name])
    fields = {
        k: v for k, v in config.items() if k not in ("model_type", "num_nextn_predict_layers")
    }
    model = model_class._from_config(config_class(**fields), attn_implementation="eager")
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.1 + (1.0 if parameter.dim() == 1 else 0.0))
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
            if key.endswith("tid2eid"):
                buffer.copy_(torch.rand(len(buffer), 8, generator=generator).topk(2).indices)
    return model


def ours(config: dict[str, Any], source: Any) -> Transformer:
    """Our model with the weights of ``source``; None leaves the initial ones."""
    model = build_model(model_spec({**config, "num_nextn_predict_layers": 0}))
    if source is None:
        return model
    target = model.state_dict()
    for key, value in source.state_dict().items():
        name = key.removeprefix("model.")
        if name in target:
            target[name].copy_(value.reshape(target[name].shape))
        else:
            assert name == "lm_head.weight"
            assert config["tie_word_embeddings"]
    return model


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_logits_and_gradients_equal_transformers(name: str) -> None:
    source = oracle(name, ALL[name])
    model = ours(ALL[name], source)
    tokens = torch.randint(0, 96, (2, 23), generator=torch.Generator().manual_seed(3))
    theirs = source(tokens[:, :-1]).logits
    torch.testing.assert_close(model.logits(tokens[:, :-1]), theirs, atol=1e-4, rtol=0)
    loss = F.cross_entropy(theirs.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    own = model(tokens)
    torch.testing.assert_close(own, loss, atol=1e-5, rtol=0)
    model.weights = type(model.weights)(balance=0.0)
    model(tokens).backward()
    compare_gradients(dict(source.named_parameters()), dict(model.named_parameters()))


def compare_gradients(theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    """Every parameter's gradient within 1e-3 of its norm; none missing on one side only.

    Indexers learn here and not there; that must leave every other gradient as it is.
    """
    for name, parameter in theirs.items():
        if name == "lm_head.weight" and "lm_head.weight" not in mine:
            continue
        own = mine[name.removeprefix("model.")].grad
        if parameter.grad is None:
            assert (own is not None) == (".indexer." in name), name
            continue
        difference = (own.reshape(parameter.shape) - parameter.grad).norm()
        assert difference <= 1e-3 * parameter.grad.norm() + 1e-7, name
