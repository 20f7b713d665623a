"""What MindFormers' settings mean (``mindformers/trainer``, ``models/*/``)."""

from __future__ import annotations

from krzem.jobs.job import Value
from krzem.jobs.tree import (
    KEPT,
    Read,
    Table,
    chosen,
    count,
    positive,
    some,
    switch,
    text,
    truth,
    word,
    words,
    yes_no,
)

_OPTIMIZERS = {
    "adamw": "adamw", "fp32stateadamweightdecay": "adamw", "fusedadamweightdecay": "adamw",
    "fusedcastadamweightdecay": "adamw", "pmaadamw": "adamw", "adam": "adamw", "muon": "muon",
    "adamoffload": "adamw",
}  # fmt: skip
_PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_PETS = {"lora": "lora", "lora2": "lora", "qlora": "qlora"}
_SCHEDULES = {"1f1b": "1f1b", "zero_bubble_v": "zb-v"}


def _shapes(prefix: str) -> dict[str, Read]:
    both = {
        "seq_length": count("seq"),
        "hidden_size": count("model.hidden"),
        "embedding_size": count("model.hidden"),
        "expand_ratio": KEPT,
        "num_layers": count("model.layers"),
        "num_hidden_layers": count("model.layers"),
        "num_heads": count("model.heads"),
        "num_attention_heads": count("model.heads"),
        "n_kv_heads": count("model.kv_heads"),
        "num_key_value_heads": count("model.kv_heads"),
        "multi_query_group_num": count("model.kv_heads"),
        "head_dim": positive("model.head_dim"),
        "kv_channels": positive("model.head_dim"),
        "vocab_size": positive("model.vocab"),
        "padded_vocab_size": positive("model.vocab"),
        "intermediate_size": count("model.ffn"),
        "ffn_hidden_size": count("model.ffn"),
        "multiple_of": KEPT,
        "ffn_dim_multiplier": KEPT,
        "q_lora_rank": positive("model.q_lora_rank"),
        "kv_lora_rank": positive("model.kv_lora_rank"),
        "qk_rope_head_dim": positive("model.qk_rope"),
        "qk_nope_head_dim": positive("model.qk_nope"),
        "v_head_dim": positive("model.v_head"),
        "mtp_depth": some("model.mtp"),
        "num_nextn_predict_layers": some("model.mtp"),
        "tie_word_embeddings": yes_no("model.tied"),
        "qk_layernorm": yes_no("model.qk_norm"),
        "qkv_has_bias": KEPT,
        "attention_bias": KEPT,
        "add_bias_linear": KEPT,
        "hidden_act": KEPT,
        "sliding_window": positive("model.window"),
        "position_embedding_type": words(
            "model.positions",
            {"rope": "rope", "yarn": "rope", "learned_absolute": "learned", "none": "none"},
        ),
        "use_flash_attention": switch("attention", "fused", "eager"),
        "compute_dtype": words("precision", _PRECISIONS),
        "param_init_type": KEPT,
        "params_dtype": KEPT,
        "param_init_dtype": KEPT,
        "pp_interleave_num": positive("vpp"),
        "offset": KEPT,
        "use_ring_attention": Read(
            ("cpkind",), lambda v: {"cpkind": "ring" if truth(v) else "allgather"}
        ),
        "fine_grain_interleave": KEPT,
        "use_fused_swiglu": KEPT,
        "type": KEPT,
        "model_type": KEPT,
        "architectures": KEPT,
    }
    experts = {
        "expert_num": some("model.experts", 2),
        "n_routed_experts": some("model.experts", 2),
        "num_experts": some("model.experts", 2),
        "num_experts_chosen": KEPT,
        "num_experts_per_tok": KEPT,
        "shared_expert_num": KEPT,
        "n_shared_experts": KEPT,
        "moe_intermediate_size": positive("model.moe_ffn"),
        "first_k_dense_replace": some("model.dense_layers"),
        "capacity_factor": KEPT,
        "use_gmm": KEPT,
        "use_gating_sigmoid": KEPT,
    }
    return {f"{prefix}{name}": read for name, read in {**both, **experts}.items()}


def _context(value: object) -> dict[str, Value]:
    """How keys and values travel; Colossal-AI's way leaves it to ``use_ring_attention``."""
    if word(value).lower() == "colossalai_cp":
        return {}
    return {"cpkind": chosen(value, {"ring_cp": "ring", "ulysses_cp": "a2a"})}


TABLE = Table(
    keys={
        **_shapes("model.model_config."),
        **{k: r for k, r in _shapes("moe_config.").items()
           if k.rpartition(".")[2] in ("expert_num", "num_experts_chosen", "shared_expert_num",
                                       "moe_intermediate_size", "first_k_dense_replace",
                                       "capacity_factor", "use_gmm")},
        "trainer.model_name": text("model.name"),
        "pretrained_model_dir": KEPT,
        "run_mode": KEPT,
        "load_checkpoint": KEPT,
        "model.model_config.pet_config.pet_type": words("finetune", _PETS),
        "runner_config.batch_size": count("mbs"),
        "runner_config.gradient_accumulation_steps": KEPT,
        "runner_config.epochs": KEPT,
        "runner_config.max_steps": positive("train_steps"),
        "micro_batch_interleave_num": KEPT,
        "parallel_config.data_parallel": positive("dp"),
        "parallel_config.model_parallel": positive("tp"),
        "parallel_config.context_parallel": positive("cp"),
        "parallel_config.context_parallel_algo": Read(
            ("cpkind",), _context),
        "parallel_config.pipeline_stage": positive("pp"),
        "parallel_config.expert_parallel": positive("ep"),
        "parallel_config.use_seq_parallel": KEPT,
        "parallel_config.micro_batch_num": KEPT,
        "parallel_config.optimizer_shard": KEPT,
        "parallel.pipeline_config.pipeline_scheduler": words("schedule", _SCHEDULES),
        "parallel.pipeline_config.pipeline_interleave": KEPT,
        "parallel.enable_parallel_optimizer": KEPT,
        "parallel.parallel_mode": KEPT,
        "parallel.parallel_optimizer_config.optimizer_weight_shard_size": KEPT,
        "use_parallel": KEPT,
        "base_config": KEPT,
        "swap_config.swap": switch("offload-activations"),
        "optimizer.type": words("optimizer", _OPTIMIZERS),
        "optimizer.swap": yes_no("offload"),
        "lr_schedule.total_steps": positive("train_steps"),
        "recompute_config.recompute": KEPT,
        "recompute_config.select_recompute": KEPT,
        "recompute_config.select_recompute_exclude": KEPT,
        "moe_config.expert_model_parallel": positive("etp"),
    },
    ignored=(
        r"(optimizer|lr_schedule|runner_wrapper|callbacks|eval_callbacks|metric|processor|profile"
        r"|auto_tune|train_dataset|train_dataset_task|eval_dataset|eval_dataset_task|context"
        r"|runner_config|trainer|parallel|parallel_config|recompute_config|moe_config|infer"
        r"|generation|tensorboard|monitor_config|swap_config|generation_config)(\..*)?",
        r"model\.(arch|model_config)\..*",
        r"(seed|output_dir|src_strategy_path_or_dir|auto_trans_ckpt|only_save_strategy|resume_.*"
        r"|ignore_data_skip|load_.*|transform_process_num|do_eval|eval_.*|filepath_prefix|autotune.*"
        r"|profiler?_.*|init_start_profile|layer_scale|layer_decay|lr_scale_factor|remote_save_url"
        r"|lr_scale|device_num|print_separate_loss|balanced_load|use_legacy|use_graceful_exit"
        r"|remove_redundancy|check_for_nan_in_loss_and_grad|cur_layer_group|adam_.*|vocab_file)",
    ),
)  # fmt: skip
