"""What layers of newer families hold, what is noted of a config, and names of models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from krzem.engine.legal import check_engine
from krzem.engine.setup import Setup
from krzem.errors import ModelError, UnknownNameError
from krzem.model import Architecture, count, flops_per_token, load_model, mean_keys, read_config
from krzem.model.architecture import AttentionKind, Layer, RecurrenceKind
from krzem.model.parameters import computed_experts, state_flops

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 128,
}


def layers(arch: Architecture) -> list[Layer]:
    return [run.layer for run in arch.runs for _ in range(run.count)]


def test_five_layers_of_gemma_3_look_at_a_window_and_one_at_all() -> None:
    windows = [layer.attention.window for layer in layers(load_model("gemma-3-27b"))]
    assert windows[:12] == [1024] * 5 + [None] + [1024] * 5 + [None]


def test_chunked_attention_reads_half_a_block() -> None:
    chunked, *_ = layers(load_model("llama-4-scout"))
    assert chunked.attention.chunk == 8192
    assert mean_keys(chunked.attention, 8192) == (8192 + 1) / 2
    assert mean_keys(chunked.attention, 3 * 8192) == (8192 + 1) / 2
    assert mean_keys(chunked.attention, 4096) == (4096 + 1) / 2
    longer = (8192 * 8193 / 2 + 1000 * 1001 / 2) / 9192
    assert math.isclose(mean_keys(chunked.attention, 9192), longer)


def test_a_layer_of_nemotron_holds_one_thing() -> None:
    for layer in layers(load_model("nemotron-3-nano-30b-a3b")):
        attends = layer.attention.kind is not AttentionKind.NONE
        computes = layer.feed_forward.is_moe or layer.feed_forward.width > 0
        assert [attends, layer.recurrence is not None, computes].count(True) == 1


def test_delta_nets_and_attention_take_turns() -> None:
    kinds = [layer.recurrence for layer in layers(load_model("qwen3-next-80b-a3b"))]
    assert [r is None for r in kinds[:8]] == [False, False, False, True] * 2
    assert kinds[0] is not None
    assert kinds[0].kind is RecurrenceKind.DELTA
    # Read, correct, write: three products with a state of 128 x 128 for each of 32 heads.
    assert state_flops(kinds[0]) == 3 * 2 * 32 * 128 * 128


def test_a_recurrence_costs_the_same_at_any_length() -> None:
    arch = load_model("kimi-linear-48b-a3b")
    recurrent = next(layer for layer in layers(arch) if layer.recurrence)
    assert mean_keys(recurrent.attention, 1 << 20) * recurrent.attention.heads == 0
    dense = load_model("qwen3-30b-a3b")
    growth = [
        flops_per_token(model, 1 << 17) / flops_per_token(model, 1 << 12) for model in (arch, dense)
    ]
    assert growth[0] < growth[1]


def test_zero_experts_compute_nothing() -> None:
    sparse = next(
        x.feed_forward for x in layers(load_model("longcat-flash")) if x.feed_forward.is_moe
    )
    assert sparse.zero_experts == 256
    assert computed_experts(sparse) == 12 * 512 / (512 + 256)


def test_a_wrapper_is_unwrapped_and_its_tower_named() -> None:
    inner = LLAMA | {"model_type": "mistral", "num_key_value_heads": 2}
    wrapped = {"model_type": "mistral3", "text_config": inner, "vision_config": {"hidden_size": 32}}
    found = read_config(wrapped)
    assert count(found).total == count(read_config(inner)).total
    assert any("vision_config" in note and "left out" in note for note in found.notes)


def test_fields_that_are_not_read_are_named() -> None:
    assert read_config(LLAMA).notes == ()
    given = {"hidden_act": "relu", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    function, unknown = read_config(LLAMA | given | {"surprise": 3}).notes
    assert "not what a step costs" in function
    assert "hidden_act = 'relu'" in function
    assert "rope_scaling" in function
    assert "not a field that krzem knows" in unknown
    assert "surprise = 3" in unknown


def test_attention_in_both_directions_is_said_to_be_priced_as_causal() -> None:
    given = {"num_key_value_heads": 4, "head_dim": 16, "use_bidirectional_attention": True}
    notes = read_config(LLAMA | given | {"model_type": "gemma3_text"}).notes
    assert any("causal" in note for note in notes)


def test_two_statements_of_the_positions_may_not_disagree() -> None:
    ropes = {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        "rope_parameters": {"rope_type": "yarn", "factor": 8.0},
    }
    with pytest.raises(ModelError, match=r"disagree on 'factor': 8\.0 and 4\.0"):
        read_config(LLAMA | ropes)


def test_a_config_may_hold_infinity_as_transformers_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA | {"swiglu_limit": float("inf")}))
    assert "Infinity" in path.read_text()
    assert load_model(path).layers == 2


def test_an_engine_says_which_layers_it_does_not_have() -> None:
    with pytest.raises(ModelError, match="lightning-attention"):
        check_engine(Setup(engine="megatron-lm", year=2026.5), lightning(), "hopper")
    check_engine(Setup(engine="fsdp", year=2026.5), lightning(), "hopper")


def lightning() -> Architecture:
    return read_config(
        LLAMA
        | {
            "model_type": "minimax", "num_key_value_heads": 4, "num_local_experts": 4,
            "num_experts_per_tok": 2, "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Qwen/Qwen3-235B-A22B", "qwen3-235b-a22b"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "qwen3-235b-a22b"),
        ("QWEN3_235B_a22b", "qwen3-235b-a22b"),
        ("qwen35-397b-a17b", "qwen3.5-397b-a17b"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("mistralai/Mixtral-8x7B-v0.1", "mixtral-8x7b"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek-v3"),
        ("moonshotai/Kimi-K2.5", "kimi-k2"),
        ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "nemotron-3-nano-30b-a3b"),
        ("swiss-ai/Apertus-70B-Instruct-2509", "apertus-70b"),
        ("google/gemma-3-27b-it", "gemma-3-27b"),
    ],
)
def test_hub_ids_name_the_built_in_models(typed: str, meant: str) -> None:
    assert load_model(typed).name == meant


@pytest.mark.parametrize("typed", ["Qwen/Qwen9-1B", "someone/DeepSeek-V9-Base", "a/instruct"])
def test_another_hub_id_is_unknown_and_the_way_to_it_is_told(typed: str) -> None:
    with pytest.raises(UnknownNameError, match=f"hf download {typed} config.json"):
        load_model(typed)
