"""Exports hold what vLLM and SGLang take: class, type, names and shapes as their loaders state.

``loaders.toml`` has the facts, read in the engines' sources.  Shapes of parts that are joined into
one parameter are worked out from the config here, apart from the trainer's own.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from tests.train.configs import ALL
from tests.train.hf.test_roundtrip import engine

from krzem.train.checkpoint.names import correspondence
from krzem.train.checkpoint.transfer import exported_config, generation_config
from krzem.train.config import TRAINABLE
from krzem.train.hf import export_model

FACTS = tomllib.loads(Path(__file__).with_name("loaders.toml").read_text())
BY_TRANSFORMERS = {"Olmo3ForCausalLM"}
"""Neither engine has a class of its own for it; both take it by that of transformers."""


def facts_of(config: dict[str, Any]) -> dict[str, Any]:
    """What is known of the class that an export of ``config`` names."""
    (name,) = exported_config(config, "bfloat16")["architectures"]
    if name in BY_TRANSFORMERS:
        pytest.skip(f"{name} is loaded by transformers' class, which test_roundtrip loads")
    return dict(FACTS["class"][name])


def tensors_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of everything in an export."""
    pairs = correspondence(config)
    return {**pairs.theirs, **dict.fromkeys(pairs.constants, ())}


class Loader:
    """Where a published tensor goes by the facts of its class."""

    def __init__(self, config: dict[str, Any]) -> None:
        facts = facts_of(config)
        self.layers = facts.get("layers", "model.layers")
        self.top = set(facts.get("top", FACTS["top"]["modules"]))
        self.inside = {m for part in facts["parts"] for m in FACTS["parts"][part]}
        self.inside |= set(facts.get("modules", []))
        self.joined: dict[str, list[str]] = facts.get("joined", FACTS["joined"])
        self.expert = facts.get("expert", ["gate_proj", "down_proj", "up_proj"])
        self.skipped = tuple(facts.get("skipped", []))
        count = config["num_hidden_layers"]
        self.modules = [f"{self.layers}.{n}." for n in range(count, count + 4)]

    def target(self, name: str) -> tuple[str, str] | None:
        """The parameter, and which part of it ``name`` is; None for what the model leaves out."""
        if name.startswith((*self.skipped, *self.modules)):
            return None  # prediction modules, which a drafting model loads
        found = re.fullmatch(rf"{re.escape(self.layers)}\.(\d+)\.(.+)", name)
        layer, inner = (f"{self.layers}.{found[1]}.", found[2]) if found else ("", name)
        known = self.inside if found else self.top
        expert = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", inner)
        if expert and expert[1] in known:
            assert expert[3] in self.expert, name
            return f"{layer}{expert[1]}.{expert[2]}", expert[3]
        stem = re.sub(r"\.(weight|bias|e_score_correction_bias|alpha_[pn]|beta|eps)$", "", inner)
        for whole, parts in self.joined.items():
            for part in parts:
                place = re.sub(rf"{re.escape(part)}$", whole, stem)
                if place != stem and place in known:
                    return f"{layer}{place}{inner[len(stem) :]}", part
        assert stem in known or inner in known, f"no place for {name}"
        return f"{layer}{inner}", ""


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_tensor_has_a_place_and_no_joined_one_is_half(name: str) -> None:
    loader, held = Loader(ALL[name]), defaultdict(set)
    for tensor in tensors_of(ALL[name]):
        if (target := loader.target(tensor)) is not None:
            assert target[1] not in held[target[0]], tensor
            held[target[0]].add(target[1])
    parts = {frozenset(p) for p in loader.joined.values()} | {frozenset(loader.expert)}
    for parameter, found in held.items():
        assert found == {""} or frozenset(found) in parts, (parameter, found)
    assert {t.rpartition(".")[0] or t for t in held} >= {
        m for m in loader.top if m != "lm_head" and not m.startswith("hc_")
    }


@pytest.mark.parametrize("name", sorted(ALL))
def test_shapes_are_those_that_engines_make_of_the_config(name: str) -> None:
    c = ALL[name]
    facts_of(c)
    hidden, heads = c["hidden_size"], c["num_attention_heads"]
    head, kv = c.get("head_dim") or hidden // heads, c["num_key_value_heads"]
    gated = 2 if name == "qwen3_next" else 1
    expected = {
        r"embed_tokens\.weight|embed\.weight|lm_head\.weight|head\.weight": (
            c["vocab_size"], hidden,
        ),
        r"(input_layernorm|attn_norm|model\.norm|norm)\.weight": (hidden,),
        r"mlp\.experts\.\d+\.(gate|up)_proj\.weight": (
            c.get("moe_intermediate_size") or c.get("intermediate_size"), hidden,
        ),
        r"mlp\.(gate|up)_proj\.weight": (c.get("intermediate_size"), hidden),
        r"mlp\.down_proj\.weight": (hidden, c.get("intermediate_size")),
        r"block_sparse_moe\.gate\.weight": (c.get("num_local_experts"), hidden),
        r"experts\.\d+\.w2\.weight": (
            hidden, c.get("moe_intermediate_size") or c.get("intermediate_size"),
        ),
    }  # fmt: skip
    if "kv_lora_rank" not in c and name != "deepseek_v4":
        expected |= {
            r"self_attn\.q_proj\.weight": (heads * head * gated, hidden),
            r"self_attn\.[kv]_proj\.weight": (kv * head, hidden),
            r"self_attn\.o_proj\.weight": (hidden, heads * head),
        }
    if "kv_lora_rank" in c:
        rank, rope, value = c["kv_lora_rank"], c["qk_rope_head_dim"], c["v_head_dim"]
        plain = c["qk_nope_head_dim"]
        expected |= {
            r"self_attn\.kv_a_proj_with_mqa\.weight": (rank + rope, hidden),
            r"self_attn\.kv_b_proj\.weight": (heads * (plain + value), rank),
            r"self_attn\.q_b_proj\.weight": (heads * (plain + rope), c["q_lora_rank"]),
            r"self_attn\.o_proj\.weight": (hidden, heads * value),
        }
    tried = 0
    for tensor, shape in tensors_of(c).items():
        for pattern, wanted in expected.items():
            if re.fullmatch(rf"((model\.)?layers\.\d+\.)?(model\.)?({pattern})", tensor):
                assert shape == wanted, tensor
                tried += 1
    assert tried >= 7


def test_configs_say_class_and_type_and_nothing_that_is_not_there(tmp_path: Path) -> None:
    published = {
        **ALL["deepseek_v3"],
        "architectures": ["DeepseekV3Model"],
        "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
        "torch_dtype": "float16",
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "bos_token_id": 0,
        "eos_token_id": [1, 2],
    }
    export_model(engine(ALL["deepseek_v3"]), tmp_path / "out", published)
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["architectures"] == ["DeepseekV3ForCausalLM"]
    assert told["dtype"] == "bfloat16"
    assert not {"auto_map", "torch_dtype", "quantization_config"} & told.keys()
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == generation_config(published)
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (0, [1, 2])


def test_every_family_that_is_trained_is_known_to_an_engine() -> None:
    for name in TRAINABLE:
        (called,) = exported_config({"model_type": name}, "bfloat16")["architectures"]
        assert called in FACTS["class"] or called in BY_TRANSFORMERS, name
