"""What each family reads from its fields: kinds, windows, experts, and contradictions."""

from __future__ import annotations

import pytest
from model_configs import TRANSFORMERS, small

from krzem.errors import ModelError
from krzem.model import Architecture, AttentionKind, Layer, RouterKind, read_config

CSA = "compressed_sparse_attention"
HCA = "heavily_compressed_attention"


def windows(arch: Architecture) -> list[int | None]:
    return [layer.attention.window for layer in arch.expanded()]


def routed(arch: Architecture) -> list[bool]:
    return [layer.feed_forward.is_moe for layer in arch.expanded()]


def only(arch: Architecture) -> Layer:
    ((layer, count),) = arch.kinds()
    assert count == arch.layers
    return layer


def test_gpt2_has_learned_positions_biases_and_four_times_the_width() -> None:
    arch = read_config(small("gpt2"))
    layer = only(arch)
    assert arch.learned_positions == arch.max_positions == 64
    assert arch.tied_embeddings
    assert arch.norm_bias
    assert layer.feed_forward.width == 4 * arch.hidden
    assert not layer.feed_forward.gated
    assert layer.attention.qkv_bias
    assert layer.attention.out_bias
    assert layer.attention.head_dim * layer.attention.heads == arch.hidden


def test_gpt2_refuses_cross_attention() -> None:
    with pytest.raises(ModelError, match="cross_attention"):
        read_config(small("gpt2", add_cross_attention=True))


def test_gpt_neox_has_rotary_positions_and_its_own_head() -> None:
    arch = read_config(small("gpt_neox"))
    assert arch.learned_positions == 0
    assert not arch.tied_embeddings


def test_llama_without_kv_heads_is_multi_head() -> None:
    attention = only(read_config(small("llama-biases", num_key_value_heads=...))).attention
    assert attention.kv_heads == attention.heads == 8
    assert attention.kind is AttentionKind.GROUPED


def test_mistral_window_defaults_as_the_class_does() -> None:
    assert windows(read_config(small("mistral"))) == [None] * 4
    assert windows(read_config(small("mistral", sliding_window=...))) == [4096] * 4


def test_qwen_windows_count_only_when_switched_on() -> None:
    switched = {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 3}
    assert windows(read_config(small("qwen2", sliding_window=16))) == [None] * 4
    assert windows(read_config(small("qwen2", **switched))) == [None, None, None, 16]
    # Qwen2-MoE alternates below max_window_layers instead.
    assert windows(read_config(small("qwen2_moe", **switched))) == [16, None, 16, None]
    assert windows(read_config(small("qwen3_moe", **switched))) == [16] * 4


def test_layer_types_rule_over_the_pattern() -> None:
    kinds = ["full_attention", "sliding_attention"] * 2
    arch = read_config(
        small("qwen3-biases", layer_types=kinds, sliding_window=16, use_sliding_window=True)
    )
    assert windows(arch) == [None, 16, None, 16]
    with pytest.raises(ModelError, match="'sliding_window' is not given"):
        read_config(small("qwen3-biases", layer_types=kinds))


def test_gpt_oss_alternates_windows_and_has_sinks() -> None:
    arch = read_config(small("gpt_oss"))
    assert windows(arch) == [64, None, 64, None]
    assert all(layer.attention.sinks for layer, _ in arch.kinds())


def test_qwen2_moe_routes_every_other_layer_beside_a_gated_shared_expert() -> None:
    arch = read_config(small("qwen2_moe"))
    # decoder_sparse_step 2 picks layers 1 and 3; mlp_only_layers takes 3 out.
    assert routed(arch) == [False, True, False, False]
    mlp = arch.expanded()[1].feed_forward
    assert mlp.shared_width == 72
    assert mlp.shared_gate
    assert mlp.router is RouterKind.SOFTMAX


def test_a_fully_routed_qwen_needs_no_dense_width() -> None:
    arch = read_config(small("qwen3_moe", mlp_only_layers=[], intermediate_size=...))
    assert routed(arch) == [True] * 4
    with pytest.raises(ModelError, match="'intermediate_size' is missing"):
        read_config(small("qwen3_moe", mlp_only_layers=[1], intermediate_size=...))


def test_glm_has_leading_dense_layers_and_one_mtp_module_by_default() -> None:
    arch = read_config(small("glm4_moe"))
    assert routed(arch) == [False, False, True, True]
    assert arch.mtp_layers == 1
    assert arch.mtp_layer == arch.expanded()[-1]
    assert read_config(small("glm4_moe", num_nextn_predict_layers=0)).mtp_layer is None


def test_latent_attention_widths() -> None:
    attention = read_config(small("deepseek_v3-biases")).expanded()[0].attention
    assert attention.kind is AttentionKind.LATENT
    assert (attention.head_dim, attention.value_dim, attention.rope_dim) == (12, 12, 4)
    assert (attention.q_lora_rank, attention.kv_lora_rank) == (24, 16)


def test_routers_of_the_deepseek_line() -> None:
    v2 = read_config(small("deepseek_v2-no-q-lora")).expanded()[-1].feed_forward
    v3 = read_config(small("deepseek_v3-biases")).expanded()[-1].feed_forward
    assert (v2.router, v2.router_bias) == (RouterKind.SOFTMAX, False)
    assert (v3.router, v3.router_bias) == (RouterKind.SIGMOID, True)
    assert (v3.expert_groups, v3.groups_per_token) == (2, 2)


def test_expert_groups_default_as_the_class_does() -> None:
    mlp = read_config(small("deepseek_v3-biases", n_group=..., topk_group=...))
    assert mlp.expanded()[-1].feed_forward.expert_groups == 8
    v2 = read_config(small("deepseek_v2-no-q-lora", n_group=None, topk_group=None))
    assert v2.expanded()[-1].feed_forward.groups_per_token == 1


def test_mlp_layer_types_rule_and_a_number_that_disagrees_is_named() -> None:
    kinds = ["dense", "sparse", "dense", "sparse"]
    arch = read_config(small("deepseek_v32", mlp_layer_types=kinds))
    assert routed(arch) == [False, True, False, True]
    both = read_config(small("deepseek_v32", mlp_layer_types=kinds, first_k_dense_replace=2))
    assert routed(both) == routed(arch)
    assert any("which is followed" in note for note in both.notes)


def test_moe_layer_freq_leaves_layers_dense() -> None:
    arch = read_config(small("deepseek_v3-biases", moe_layer_freq=2))
    assert routed(arch) == [False, False, True, False]


def test_indexers_are_owned_or_shared() -> None:
    v32 = read_config(small("deepseek_v32"))
    glm = read_config(small("glm_moe_dsa-shared"))
    frequency = read_config(
        small("glm_moe_dsa-shared", indexer_types=..., index_topk_freq=3, index_skip_topk_offset=2)
    )
    pattern = read_config(small("glm_moe_dsa-shared", indexer_types=..., index_topk_pattern="FSSS"))

    def shared(arch: Architecture) -> list[bool]:
        return [bool(i and i.shared) for i in (x.attention.indexer for x in arch.expanded())]

    assert shared(v32) == [False] * 4
    assert shared(glm) == [False, True, False, True]
    assert shared(frequency) == [False, False, True, True]
    assert shared(pattern) == [False, True, True, True]


def test_a_first_indexer_cannot_be_shared() -> None:
    with pytest.raises(ModelError, match="no earlier layer made a choice"):
        read_config(small("glm_moe_dsa-shared", indexer_types=["shared"] * 4))


def test_v4_layers_hold_window_compression_and_indexer() -> None:
    arch = read_config(small("deepseek_v4"))
    attentions = [layer.attention for layer in arch.expanded()]
    assert [a.compression for a in attentions] == [None, 4, 16, 4, 16, 4]
    assert [a.indexer is not None for a in attentions] == [False, True, False, True, False, True]
    assert {a.window for a in attentions} == {64}
    assert arch.hyper_connections == 4
    routers = [layer.feed_forward.router for layer in arch.expanded()]
    assert routers == [RouterKind.HASH] * 2 + [RouterKind.SQRT_SOFTPLUS] * 4
    assert arch.mtp_layer is not None
    assert arch.mtp_layer.attention.compression is None


def test_v4_reads_the_published_spelling_too() -> None:
    published = small(
        "deepseek_v4",
        layer_types=...,
        mlp_layer_types=...,
        compress_rates=...,
        compress_rate_hca=16,
        compress_ratios=[0, 4, 16, 4, 16, 4, 16],
        num_hash_layers=2,
    )
    ours, theirs = read_config(published, "x"), read_config(small("deepseek_v4"), "x")
    assert ours.runs == theirs.runs
    assert ours.mtp_layer is not None
    assert ours.mtp_layer.attention.compression == 16


def test_v4_fills_in_the_default_pattern() -> None:
    arch = read_config(small("deepseek_v4", layer_types=..., mlp_layer_types=...))
    assert [layer.attention.compression for layer in arch.expanded()] == [16, 16, 16, 4, 16, 4]
    hashed = [layer.feed_forward.router is RouterKind.HASH for layer in arch.expanded()]
    assert hashed == [True] * 3 + [False] * 3


def test_v4_rope_may_be_a_share_of_the_head() -> None:
    arch = read_config(small("deepseek_v4", qk_rope_head_dim=..., partial_rotary_factor=0.25))
    assert arch.expanded()[0].attention.rope_dim == 4


def test_pangu_has_sandwich_norms_unless_said_otherwise() -> None:
    dense = small("llama-biases", model_type="pangu_ultra")
    assert only(read_config(dense)).norms == 4
    assert only(read_config(dense | {"sandwich_norm": False})).norms == 2


def test_pangu_moe_is_deepseek_in_other_words() -> None:
    words = {
        "qk_nope_head_dim": "attention_qk_dim",
        "qk_rope_head_dim": "attention_qk_rope_dim",
        "v_head_dim": "attention_v_dim",
        "q_lora_rank": "attention_q_lora_dim",
        "kv_lora_rank": "attention_kv_lora_dim",
        "n_routed_experts": "num_routed_experts",
        "n_shared_experts": "num_shared_experts",
        "first_k_dense_replace": "num_dense_layers",
    }
    deepseek = small("deepseek_v3-biases", num_nextn_predict_layers=1)
    pangu = {words.get(key, key): value for key, value in deepseek.items()}
    pangu |= {"model_type": "pangu_ultra_moe", "sandwich_norm": False}
    ours = read_config(pangu)
    assert ours.runs == read_config(deepseek).runs
    assert ours.mtp_layers == 1


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("llama-biases", {"num_key_value_heads": 3}, "8 / 3 leaves 2"),
        ("llama-biases", {"num_attention_heads": 12}, "64 / 12 leaves 4"),
        ("llama-biases", {"hidden_size": ...}, "'hidden_size' is missing"),
        ("llama-biases", {"layer_types": ["full_attention"] * 3}, "3 entries for 4 layers"),
        ("qwen3-biases", {"num_key_value_heads": ...}, "'num_key_value_heads' is missing"),
        ("gpt_oss", {"layer_types": ["full_attention"] * 5}, "5 != 4"),
        ("gpt_oss", {"layer_types": ["chunked_attention"] * 4}, "supported: full_attention"),
        ("mixtral", {"num_experts_per_tok": 5}, "= 5 exceeds the 4 experts"),
        ("mixtral", {"num_local_experts": ...}, "'num_local_experts' (also read as"),
        ("qwen2_moe", {"mlp_only_layers": [4]}, "names layer 4; the last one is 3"),
        ("glm4_moe", {"n_group": 3}, "8 / 3 leaves 2"),
        ("deepseek_v3-biases", {"kv_lora_rank": ...}, "'kv_lora_rank'"),
        ("deepseek_v3-biases", {"n_group": 2, "topk_group": 3}, "topk_group = 3 exceeds"),
        ("deepseek_v3-biases", {"n_group": 8, "topk_group": 1}, "exceeds the 1 experts in the 1"),
        ("deepseek_v3-biases", {"qk_head_dim": 99}, "8 + 4 = 12"),
        ("deepseek_v3-biases", {"first_k_dense_replace": ...}, "'first_k_dense_replace'"),
        ("deepseek_v32", {"index_topk": ...}, "'index_topk' is missing"),
        ("deepseek_v32", {"q_lora_rank": None}, "'q_lora_rank' is null"),
        ("glm_moe_dsa-shared", {"indexer_types": ["full"] * 3}, "3 entries for 4 layers"),
        (
            "glm_moe_dsa-shared",
            {"indexer_types": ..., "index_topk_pattern": "FX"},
            "4 letters F or S",
        ),
        ("deepseek_v4", {"o_groups": 3}, "8 / 3 leaves 2"),
        ("deepseek_v4", {"qk_rope_head_dim": 32}, "= 32 exceeds head_dim = 16"),
        ("deepseek_v4", {"compress_ratios": [0, 4]}, "2 entries for 6 layers"),
        ("deepseek_v4", {"compress_ratios": [0, 8] * 3}, "supported: [0, 4, 16]"),
        ("deepseek_v4", {"compress_ratios": [4] * 6}, "disagree"),
        ("deepseek_v4", {"compress_rates": 4}, "'compress_rates' has to be an object"),
        ("deepseek_v4", {"layer_types": [CSA, HCA]}, "2 entries for 6 layers"),
        ("deepseek_v4", {"num_hash_layers": 1}, "= 1, but 'mlp_layer_types' names 2"),
        ("deepseek_v4", {"scoring_func": "linear"}, "supported: sigmoid, softmax, sqrtsoftplus"),
    ],
)
def test_contradictions_show_the_arithmetic(
    name: str, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(ModelError) as caught:
        read_config(small(name, **changes), "mine")
    assert says in str(caught.value)
    assert str(caught.value).startswith("config of mine (")


def test_every_small_config_reads() -> None:
    for row in TRANSFORMERS:
        arch = read_config(small(str(row["name"])), str(row["name"]))
        assert arch.layers in {3, 4, 6}
