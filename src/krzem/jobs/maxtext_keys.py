"""What MaxText's settings mean (``configs/base.yml`` of 2023-12 to 2026-08)."""

from __future__ import annotations

from krzem.jobs.tree import (
    KEPT,
    Found,
    Read,
    Table,
    count,
    integer,
    positive,
    some,
    word,
    words,
    yes_no,
)

MESH: dict[str, tuple[int, int]] = {
    "data": (1, -1), "fsdp": (-1, 1), "fsdp_transpose": (1, 1), "tensor": (1, 1),
    "tensor_sequence": (1, 1), "tensor_transpose": (1, 1), "sequence": (1, 1), "context": (1, 1),
    "expert": (1, 1), "pipeline": (1, 1), "diloco": (1, 1),
}  # fmt: skip
"""Ranks of each axis inside a slice (ici) and across slices (dcn) where nothing is said."""

ARITHMETIC: dict[str, tuple[str, str]] = {
    "fp8": ("fp8", ""), "nanoo_fp8": ("fp8", ""), "aqt_fp8": ("fp8", ""), "fp8_full": ("fp8", ""),
    "fp8_gpu": ("fp8", ""), "aqt_fp8_full": ("fp8", ""), "fp8_nanoo": ("fp8", ""),
    "te_fp8_delayedscaling": ("fp8", "delayed"), "te_fp8_currentscaling": ("fp8", "tensor"),
    "te_mxfp8": ("mxfp8", ""), "te_nvfp4": ("nvfp4", ""), "int8": ("int8", ""),
}  # fmt: skip
"""Values of ``quantization``: arithmetic and scaling."""

_OPTIMIZERS = {"adamw": "adamw", "adam_pax": "adamw", "sgd": "sgd", "muon": "muon"}
_TYPES = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}


def _attention(value: object) -> Found:
    return {"switch.attention": "eager" if word(value).lower() == "dot_product" else "fused"}


def _tiles(value: object) -> Found:
    return {"switch.loss": "chunked"} if integer(value) > 1 else {}


def _named(value: object) -> Found:
    name = word(value)
    return {} if name == "default" else {"model.name": name}


_SHAPE = {
    "base_emb_dim": count("model.hidden"),
    "base_num_query_heads": count("model.heads"),
    "base_num_kv_heads": count("model.kv_heads"),
    "base_mlp_dim": count("model.ffn"),
    "base_num_decoder_layers": count("model.layers"),
    "head_dim": count("model.head_dim"),
    "vocab_size": count("model.vocab"),
    "logits_via_embedding": yes_no("model.tied"),
    "use_qk_norm": yes_no("model.qk_norm"),
    "context_parallel_strategy": words(
        "cpkind", {"all_gather": "allgather", "ring": "ring", "ulysses": "a2a"}
    ),
    "shard_optimizer_over_data": KEPT,
    "context_parallel_load_balance": KEPT,
    "normalization_layer_epsilon": KEPT,
    "attention_bias": KEPT,
    "num_experts": some("model.experts", 2),
    "num_experts_per_tok": KEPT,
    "base_moe_mlp_dim": positive("model.moe_ffn"),
    "first_num_dense_layers": KEPT,
    "shared_experts": KEPT,
    "q_lora_rank": KEPT,
    "kv_lora_rank": KEPT,
    "qk_nope_head_dim": KEPT,
    "qk_rope_head_dim": KEPT,
    "v_head_dim": KEPT,
    "sliding_window_size": positive("model.window"),
    "mtp_num_layers": some("model.mtp"),
    "mlp_activations": KEPT,
    "attention_type": KEPT,
    "decoder_block": KEPT,
    "capacity_factor": KEPT,
    "sparse_matmul": KEPT,
    "megablox": KEPT,
    "use_random_routing": KEPT,
}

TABLE = Table(
    keys={
        **_SHAPE,
        **{f"{level}_{name}_parallelism": KEPT for name in MESH for level in ("ici", "dcn")},
        "model_name": Read(("model.name",), _named),
        "max_target_length": count("seq"),
        "per_device_batch_size": KEPT,
        "gradient_accumulation_steps": count("accumulation"),
        "num_pipeline_microbatches": KEPT,
        "num_layers_per_pipeline_stage": KEPT,
        "num_pipeline_repeats": KEPT,
        "steps": positive("train_steps"),
        "num_vocab_tiling": Read(("switch.loss",), _tiles),
        "dtype": words("precision", _TYPES),
        "quantization": KEPT,
        "weight_dtype": KEPT,
        "grad_dtype": KEPT,
        "mu_dtype": KEPT,
        "opt_type": words("optimizer", _OPTIMIZERS),
        "optimizer_memory_host_offload": yes_no("offload"),
        "remat_policy": KEPT,
        "attention": Read(("switch.attention",), _attention),
        "compile_topology": KEPT,
        "compile_topology_num_slices": KEPT,
        "global_parameter_scale": KEPT,
        "allow_split_physical_axes": KEPT,
    },
    ignored=(
        r".*(checkpoint|_dir|_path|_file|_files|tokenizer|profile|dataset|data_|goodput|metrics"
        r"|tensorboard|wandb|log_|_log|seed|prompt|decode|eval|inference|learning_rate|adam|norm_"
        r"|_norm|rope|logits|scan|vertex|grain|hf_|jax_|_cache|diagnostic|hlo|xprof|elastic|diloco"
        r"|warmup|lora|vision|image|audio|video|sa_|tile|ragged|gmm|indexer|moba|engram|hadamard)"
        r".*",
        r"(run_name|hardware|base_config|override_.*|use_iota_embed|shardy|packing|trainable"
        r"|enable_.*|async_.*|sharding_.*|logical_axis_rules|mesh_axes|reuse_example_batch"
        r"|max_segments_per_seq|megascale.*|monitor_.*|upload_.*|save_.*|load_.*|kv_quant_.*"
        r"|quantize_.*|replicate_quant_scale|matmul_precision|activations_in_float32|float32_.*"
        r"|dropout_rate|routed_.*|n_routing_groups|topk_routing_group|load_balance_loss_weight"
        r"|mscale|beta_.*|original_max_position_embeddings|max_position_embeddings|mtp_.*"
        r"|query_proj|key_proj|value_proj|qkv_proj|out_proj|mlpw[io].*|context|moe_mlpw.*|mla_.*"
        r"|attention_out|kv_proj|query_wa_proj|kv_wa_proj|decoder_layer_input|parameter_memory_.*"
        r"|use_.*|fused_.*|gcs_.*|collect_.*|gradient_clipping_threshold|.*_interval|.*_period"
        r"|num_epoch|skip_.*|dcn_.*|ici_.*|stack_.*|compile_.*|internal_.*|custom_mesh.*"
        r"|num_slices|attn_logits_soft_cap|final_logits_soft_cap|cosine_.*|sink_level|.*_sink.*"
        r"|file_sink.*|stderr.*|z_loss.*|muon_.*|.*_dtype|trainable_.*|input_data_.*|.*_rules.*"
        r"|cost_estimate_.*|.*_calibration_method|fsdp_shard_on_exp|shard_exp_on_fsdp|.*_reduction_steps"
        r"|local_use_.*|.*_two_stage_.*|moe_dispatch_.*|sft_.*|dpo_.*|add_bos|add_eos|steps_.*|per_device_batch_size_.*|global_rampup.*)",
    ),
)
