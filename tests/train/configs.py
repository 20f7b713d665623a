"""Small configs that switch on every feature, one for each family."""

from __future__ import annotations

from typing import Any

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}

QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "use_sliding_window": True,
    "sliding_window": 5,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}

QWEN3_MOE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "mlp_only_layers": [1],
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}

DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "max_position_embeddings": 128,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.8,
        "beta_fast": 32,
        "beta_slow": 1,
        "original_max_position_embeddings": 16,
    },
}

DEEPSEEK_V4: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "vocab_size": 96,
    "hidden_size": 32,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "partial_rotary_factor": 0.5,
    "num_experts_per_tok": 2,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "scoring_func": "sqrtsoftplus",
    "routed_scaling_factor": 1.5,
    "max_position_embeddings": 128,
    "layer_types": [
        "sliding_attention",
        "heavily_compressed_attention",
        "compressed_sparse_attention",
        "compressed_sparse_attention",
    ],
    "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
    "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    "compress_rope_theta": 160000.0,
    "rope_theta": 10000.0,
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 4.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "original_max_position_embeddings": 32,
    },
    "hc_mult": 3,
    "hc_sinkhorn_iters": 4,
    "swiglu_limit": 0.02,
    "sliding_window": 5,
    "o_groups": 2,
    "o_lora_rank": 8,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 3,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
}

_SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
_LATENT = {
    n: v
    for n, v in DEEPSEEK_V3.items()
    if n not in ("model_type", "scoring_func", "num_nextn_predict_layers", "rope_parameters")
}
_YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

MISTRAL: dict[str, Any] = {**_SMALL, "model_type": "mistral", "head_dim": 16, "sliding_window": 5}
QWEN2: dict[str, Any] = {
    **_SMALL,
    "model_type": "qwen2",
    "use_sliding_window": True,
    "sliding_window": 5,
    "max_window_layers": 1,
}
MIXTRAL: dict[str, Any] = {
    **_SMALL,
    "model_type": "mixtral",
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "intermediate_size": 16,
    "sliding_window": 5,
}
GLM4_MOE: dict[str, Any] = {
    **_SMALL,
    "model_type": "glm4_moe",
    "head_dim": 16,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "attention_bias": True,
    "use_qk_norm": True,
    "num_nextn_predict_layers": 1,
}
OLMO2: dict[str, Any] = {**_SMALL, "model_type": "olmo2"}
OLMO3: dict[str, Any] = {
    **_SMALL,
    "model_type": "olmo3",
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {**_YARN, "rope_theta": 1000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
    },
}
OLMOE: dict[str, Any] = {
    **_SMALL,
    "model_type": "olmoe",
    "intermediate_size": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
}
QWEN2_MOE: dict[str, Any] = {
    **_SMALL,
    "model_type": "qwen2_moe",
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": False,
    "decoder_sparse_step": 2,
}
DEEPSEEK_V2: dict[str, Any] = {
    **_LATENT,
    "model_type": "deepseek_v2",
    "norm_topk_prob": False,
    "topk_method": "group_limited_greedy",
    "rope_parameters": {**_YARN, "rope_theta": 10000.0, "mscale": 0.7, "mscale_all_dim": 0.7},
}
DEEPSEEK_V32: dict[str, Any] = {
    **_LATENT,
    "model_type": "deepseek_v32",
    "index_n_heads": 4,
    "index_head_dim": 16,
    "index_topk": 5,
}
GLM_MOE_DSA: dict[str, Any] = {
    **DEEPSEEK_V32,
    "model_type": "glm_moe_dsa",
    "num_nextn_predict_layers": 1,
    "indexer_types": ["full", "shared", "full", "shared"],
}
QWEN3_NEXT: dict[str, Any] = {
    **_SMALL,
    "model_type": "qwen3_next",
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 3,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "mlp_only_layers": [2],
    "partial_rotary_factor": 0.25,
}
GEMMA3: dict[str, Any] = {
    **_SMALL,
    "model_type": "gemma3_text",
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "tie_word_embeddings": True,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
}
GPT_OSS: dict[str, Any] = {
    **_SMALL,
    "model_type": "gpt_oss",
    "head_dim": 16,
    "intermediate_size": 16,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": 5,
    "swiglu_limit": 0.3,
    "attention_bias": True,
}
APERTUS: dict[str, Any] = {**_SMALL, "model_type": "apertus", "hidden_act": "xielu"}

ALL: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3_MOE,
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v4": DEEPSEEK_V4,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "mixtral": MIXTRAL,
    "glm4_moe": GLM4_MOE,
    "olmo2": OLMO2,
    "olmo3": OLMO3,
    "olmoe": OLMOE,
    "qwen2_moe": QWEN2_MOE,
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v32": DEEPSEEK_V32,
    "glm_moe_dsa": GLM_MOE_DSA,
    "qwen3_next": QWEN3_NEXT,
    "gemma3_text": GEMMA3,
    "gpt_oss": GPT_OSS,
    "apertus": APERTUS,
}
