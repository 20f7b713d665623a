"""A family of models of one shape: a config grown or shrunk.

``scaled(config, 8)`` has about eight times the parameters: depth and width grow by the cube root
each (parameters go with depth times width squared), so that their ratio stays.  Experts, experts
per token and the sizes of one attention head stay as they are; heads, ranks and inner widths grow
with the width.  Lists with one entry per layer are stretched.  Widths are rounded to 128, heads to
8; the true number of parameters is counted from the result, never from the factor.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm
from typing import Any

from krzem.errors import ModelError
from krzem.model.architecture import Architecture
from krzem.model.build import read_config

DEPTH = "num_hidden_layers"
WIDTHS = (
    "hidden_size", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size",
)  # fmt: skip
RANKS = ("q_lora_rank", "kv_lora_rank", "o_lora_rank")
HEADS = ("num_attention_heads", "index_n_heads")
WIDTH_STEP, RANK_STEP, HEAD_STEP = 128, 64, 8


def scaled(config: Mapping[str, Any], factor: float, name: str) -> Architecture:
    """The architecture of about ``factor`` times the parameters; raises ModelError.

    ``config`` is a Hugging Face ``config.json`` with the names of its usual fields.
    """
    if not 0 < factor < 1e6:
        raise ModelError(f"a model cannot be scaled by {factor:g}")
    if DEPTH not in config or "hidden_size" not in config:
        raise ModelError(
            f"{name} cannot be scaled: its config lacks {DEPTH} or hidden_size; give a config of"
            " the Llama or DeepSeek kind"
        )
    edge = factor ** (1.0 / 3.0)
    changed = dict(config)
    layers = int(config[DEPTH])
    depth = max(round(layers * edge), 2)
    for key in WIDTHS:
        _stretch(changed, key, edge, WIDTH_STEP)
    for key in RANKS:
        _stretch(changed, key, edge, RANK_STEP)
    for key in HEADS:
        _stretch(changed, key, edge, _head_step(config) if key == HEADS[0] else HEAD_STEP)
    if config.get("num_key_value_heads") == config.get("num_attention_heads"):
        changed["num_key_value_heads"] = changed["num_attention_heads"]
    if "head_dim" not in config and "qk_rope_head_dim" not in config and HEADS[0] in config:
        # The size of a head is not written down but follows from width over heads: keep it.
        changed["hidden_size"] = changed[HEADS[0]] * (config["hidden_size"] // config[HEADS[0]])
    for key, value in config.items():
        if isinstance(value, list) and layers <= len(value) <= layers + 1 and layers > 2:
            changed[key] = _resampled(value, depth + len(value) - layers)
    changed[DEPTH] = depth
    return read_config(changed, f"{name} x {factor:.3g}")


def _head_step(config: Mapping[str, Any]) -> int:
    """Heads come in multiples of their groups."""
    groups = [config.get("o_groups"), config.get("num_key_value_heads")]
    heads = config.get("num_attention_heads")
    return lcm(HEAD_STEP, *(g for g in groups if isinstance(g, int) and 0 < g != heads))


def _stretch(config: dict[str, Any], key: str, edge: float, step: int) -> None:
    value = config.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        config[key] = max(round(value * edge / step), 1) * step


def _resampled(values: list[Any], count: int) -> list[Any]:
    """The same pattern in another length; the ends stay."""
    return [values[min(int(i * len(values) / count), len(values) - 1)] for i in range(count)]
