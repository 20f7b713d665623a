"""Fields that one side might read and the other not: equal to ``transformers``, or refused by name.

Each case is a config of a family with one thing changed.  Either the trainer's logits are those of
the ``transformers`` class for the same config, or the config is refused and the message names the
field.  Silence about a field that ``transformers`` reads is the fault that is looked for.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.train.configs import ALL
from tests.train.model.test_parity import oracle, ours

from krzem.errors import ModelError

YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32, "beta_slow": 1,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
PLAIN = ("llama", "qwen3", "qwen3_moe")
ROPES = [
    {"rope_parameters": {**DEFAULT, "rope_theta": 500.0}},
    {"rope_theta": 500.0, "rope_parameters": {"rope_type": "default"}},
    {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 3.0}},
    {"rope_parameters": DEFAULT, "rope_scaling": LINEAR},
    {"rope_parameters": YARN, "rope_scaling": LINEAR},
    {"rope_parameters": LINEAR},
    {"rope_parameters": YARN},
    {"rope_parameters": LLAMA3},
    {"rope_parameters": {**YARN, "attention_factor": 1.5}},
    {"rope_parameters": {**YARN, "truncate": False}},
    {"rope_parameters": {**YARN, "beta_fast": None, "beta_slow": None}},
    {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
    {"rope_parameters": {**DEFAULT, "partial_rotary_factor": 0.5}},
    {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}},
    {"rope_parameters": {**YARN, "partial_rotary_factor": 0.5}},
    {"partial_rotary_factor": 0.5},
    {"partial_rotary_factor": 1.0},
    {"rope_theta": None},
]
CASES: list[tuple[str, dict[str, Any]]] = [(n, change) for n in PLAIN for change in ROPES]
CASES += [("deepseek_v3", change) for change in ROPES if "partial" not in str(change)]
CASES += [
    ("deepseek_v3", {"partial_rotary_factor": 0.5}),
    ("deepseek_v3", {"rope_interleave": None}),
    ("deepseek_v3", {"rope_interleave": False}),
    ("deepseek_v3", {"norm_topk_prob": None}),
    ("deepseek_v3", {"norm_topk_prob": False}),
    ("deepseek_v3", {"scoring_func": "softmax"}),
    ("deepseek_v3", {"scoring_func": None}),
    ("deepseek_v3", {"topk_method": "greedy"}),
    ("deepseek_v3", {"topk_method": "noaux_tc"}),
    ("deepseek_v3", {"moe_layer_freq": 2}),
    ("deepseek_v3", {"moe_layer_freq": 1}),
    ("deepseek_v3", {"n_shared_experts": 2}),
    ("deepseek_v3", {"routed_scaling_factor": 1.0}),
    ("deepseek_v3", {"n_group": 1, "topk_group": 1}),
    ("deepseek_v3", {"head_dim": 16}),
    ("deepseek_v3", {"num_key_value_heads": 2}),
    ("deepseek_v3", {"attention_bias": True}),
    ("deepseek_v3", {"hidden_act": "gelu"}),
    ("qwen3_moe", {"norm_topk_prob": None}),
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": []}),
    ("qwen3_moe", {"scoring_func": "sigmoid"}),
    ("qwen3_moe", {"routed_scaling_factor": 2.0}),
    ("deepseek_v4", {"scoring_func": "sigmoid"}),
    ("deepseek_v4", {"scoring_func": "softmax"}),
    ("deepseek_v4", {"norm_topk_prob": False}),
    ("deepseek_v4", {"n_shared_experts": 2}),
    ("deepseek_v4", {"n_shared_experts": 0}),
    ("deepseek_v4", {"routed_scaling_factor": 1.0}),
    ("deepseek_v4", {"topk_method": "greedy"}),
    ("deepseek_v4", {"partial_rotary_factor": 0.25}),
    ("deepseek_v4", {"partial_rotary_factor": None}),
    ("deepseek_v4", {"swiglu_limit": None}),
]
TOLERANCE = 2e-4


def verdict(name: str, change: dict[str, Any]) -> str:
    """``equal``, the refusal, or what is apart."""
    config = {**copy.deepcopy(ALL[name]), **copy.deepcopy(change)}
    tokens = torch.randint(0, 96, (2, 23), generator=torch.Generator().manual_seed(3))
    try:
        ours(config, None)
    except ModelError as error:
        return str(error)
    try:
        source = oracle(name, copy.deepcopy(config))
        with torch.no_grad():
            theirs = source(tokens).logits
    except Exception as error:  # whatever its own checks and classes raise
        return f"transformers refuses it and the trainer does not: {error!r:.80}"
    with torch.no_grad():
        apart = float((ours(config, source).logits(tokens) - theirs).abs().max())
    return "equal" if apart <= TOLERANCE else f"logits apart by {apart:.2g}"


@pytest.mark.parametrize(("name", "change"), CASES, ids=str)
def test_read_as_transformers_reads_it_or_refused_by_name(
    name: str, change: dict[str, Any]
) -> None:
    found = verdict(name, change)
    names = [*change, *(k for v in change.values() if isinstance(v, dict) for k in v)]
    names += ["rope type"] if "rope" in str(change) else []
    assert found == "equal" or any(n in found for n in names), found
    assert not found.startswith(("logits", "transformers")), found
