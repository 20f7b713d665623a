"""The same weights give the same logits and gradients as the ``transformers`` classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.train.configs import ALL

from krzem.errors import ModelError
from krzem.model.catalogue import load_model_config
from krzem.train.build import build_model
from krzem.train.checkpoint.transfer import exported_config
from krzem.train.config import TRAINABLE, model_spec
from krzem.train.model import Transformer

transformers = pytest.importorskip("transformers")

CONFIGS = transformers.models.auto.configuration_auto.CONFIG_MAPPING
MODELS = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
UNHELD = (".act_fn.beta", ".act_fn.eps")
"""Constants that the class of xIELU keeps beside its weights."""


def test_every_family_is_tried_named_and_called_as_its_class() -> None:
    page = (Path(__file__).parents[3] / "docs" / "trainer.md").read_text()
    assert {*ALL, "kimi_k2"} == set(TRAINABLE)  # Kimi's type is not one of transformers' own
    for name in TRAINABLE:
        assert f"`{name}`" in page
        called = exported_config({"model_type": name}, "bfloat16")["architectures"]
        theirs = MODELS[CONFIGS["deepseek_v3" if name == "kimi_k2" else name]].__name__
        assert called == [theirs], name


@pytest.mark.parametrize(
    ("model", "lacks"),
    [
        ("kimi-linear-48b-a3b", "a recurrence (key-gated-delta)"),
        ("gpt3-175b", "learned positions"),
    ],
)
def test_other_models_are_refused_by_what_they_hold(model: str, lacks: str) -> None:
    with pytest.raises(ModelError, match=re.escape(lacks)):
        model_spec(load_model_config(model)[0])


def oracle(name: str, config: dict[str, Any]) -> Any:
    """The ``transformers`` model, with parameters that leave no feature at a neutral value."""
    torch.manual_seed(1)
    fields = {
        k: v for k, v in config.items() if k not in ("model_type", "num_nextn_predict_layers")
    }
    theirs = CONFIGS[config["model_type"]](**fields, dtype="float32", pad_token_id=None)
    model = MODELS[type(theirs)]._from_config(theirs, attn_implementation="eager")
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
        name = ours_of(config, key)
        if name in target:
            target[name].copy_(value.reshape(target[name].shape))
        else:
            assert name.endswith(UNHELD) or (
                name == "lm_head.weight" and config["tie_word_embeddings"]
            )
    return model


def ours_of(config: dict[str, Any], key: str) -> str:
    """Our name of a parameter of the ``transformers`` class."""
    renamed = {
        "qwen2_moe": [("shared_expert.", "shared_experts.")],
        "qwen3_next": [
            ("shared_expert.", "shared_experts."),
            ("linear_attn.norm.weight", "self_attn.gain"),
            ("linear_attn.", "self_attn."),
        ],
        "gpt_oss": [("mlp.router.", "mlp.gate.")],
        "apertus": [
            ("attention_layernorm", "input_layernorm"),
            ("feedforward_layernorm", "post_attention_layernorm"),
        ],
    }
    for theirs, own in renamed.get(config["model_type"], []):
        key = key.replace(theirs, own)
    return key.removeprefix("model.")


@pytest.mark.parametrize("name", sorted(ALL))
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
    compare_gradients(ALL[name], dict(source.named_parameters()), dict(model.named_parameters()))


def compare_gradients(config: dict[str, Any], theirs: dict[str, Any], mine: dict[str, Any]) -> None:
    """Every parameter's gradient within 1e-3 of its norm; none missing on one side only.

    Indexers learn here and not there; that must leave every other gradient as it is.
    """
    seen = set()
    for key, parameter in theirs.items():
        name = ours_of(config, key)
        if name == "lm_head.weight" and name not in mine:
            continue
        seen.add(name)
        own = mine[name].grad
        if parameter.grad is None:
            assert (own is not None) == (".indexer." in name), name
            continue
        difference = (own - parameter.grad.reshape(own.shape)).norm()
        assert difference <= 1e-3 * parameter.grad.norm() + 1e-7, name
    assert seen == mine.keys()
