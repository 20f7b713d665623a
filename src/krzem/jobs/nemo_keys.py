"""What the settings of NeMo and Megatron-Bridge mean, by the last part of their names.

Recipes (``cfg.model.x``), YAML overrides (``model.x``), NeMo 1 configurations and NeMo 2's
strategies share these names, which are those of Megatron-Core's configuration objects.
"""

from __future__ import annotations

from krzem.jobs.tree import (
    KEPT,
    Found,
    Read,
    Table,
    count,
    inverse,
    positive,
    some,
    switch,
    truth,
    when_true,
    word,
    words,
    yes_no,
)

_OPTIMIZERS = {
    "adam": "adamw", "adamw": "adamw", "distributed_fused_adam": "adamw", "fused_adam": "adamw",
    "mcore_distributed_optim": "adamw", "megatron_fused_adam": "adamw", "sgd": "sgd",
    "muon": "muon", "dist_muon": "muon", "adafactor": "adafactor", "lion": "lion",
}  # fmt: skip
_POSITIONS = {"rope": "rope", "yarn": "rope", "learned_absolute": "learned", "none": "none",
              "mrope": "rope"}  # fmt: skip
_CONTEXT = {"p2p": "ring", "a2a": "a2a", "all_gather": "allgather", "allgather": "allgather"}


def _attention(value: object) -> Found:
    kind = word(value).rpartition(".")[2].lower()
    return {"switch.attention": "eager" if kind in ("unfused", "local") else "fused"}


def _zero(value: object) -> Found:
    return {"zero": 1 if truth(value) else 0}


def _gradient(value: object) -> Found:
    return {"state.gradient": 4 if truth(value) else 2}


_MODEL = {
    "num_layers": count("model.layers"),
    "hidden_size": count("model.hidden"),
    "ffn_hidden_size": KEPT,
    "num_attention_heads": count("model.heads"),
    "num_query_groups": positive("model.kv_heads"),
    "kv_channels": positive("model.head_dim"),
    "vocab_size": KEPT,
    "override_vocab_size": KEPT,
    "num_moe_experts": some("model.experts", 2),
    "num_experts": some("model.experts", 2),
    "moe_router_topk": positive("model.top_k"),
    "moe_ffn_hidden_size": positive("model.moe_ffn"),
    "moe_shared_expert_intermediate_size": positive("model.shared_ffn"),
    "qk_layernorm": yes_no("model.qk_norm"),
    "share_embeddings_and_output_weights": yes_no("model.tied"),
    "untie_embeddings_and_output_weights": inverse("model.tied"),
    "gated_linear_unit": yes_no("model.gated"),
    "activation": KEPT,
    "activation_func": KEPT,
    "add_bias_linear": yes_no("model.bias"),
    "bias": yes_no("model.bias"),
    "position_embedding_type": words("model.positions", _POSITIONS),
    "mtp_num_layers": some("model.mtp"),
    "multi_latent_attention": when_true({"model.attention": "mla"}),
    "q_lora_rank": positive("model.q_lora_rank"),
    "kv_lora_rank": KEPT,
    "qk_head_dim": KEPT,
    "qk_pos_emb_head_dim": KEPT,
    "v_head_dim": KEPT,
    "first_k_dense_replace": some("model.dense_layers"),
    "moe_layer_freq": KEPT,
}
_LAYOUT = {
    "tensor_model_parallel_size": count("tp"),
    "pipeline_model_parallel_size": count("pp"),
    "virtual_pipeline_model_parallel_size": positive("vpp"),
    "context_parallel_size": count("cp"),
    "expert_model_parallel_size": count("ep"),
    "expert_tensor_parallel_size": positive("etp"),
    "sequence_parallel": KEPT,
    "cp_comm_type": words("cpkind", _CONTEXT),
    "num_layers_in_first_pipeline_stage": positive("first"),
    "num_layers_in_last_pipeline_stage": positive("last"),
    "pipeline_model_parallel_layout": KEPT,
    "account_for_embedding_in_pipeline_split": KEPT,
    "account_for_loss_in_pipeline_split": KEPT,
    "global_batch_size": positive("global_batch"),
    "micro_batch_size": positive("mbs"),
    "train_iters": positive("train_steps"),
    "seq_length": KEPT,
    "sequence_length": KEPT,
    "encoder_seq_length": KEPT,
    "num_nodes": count("nodes"),
    "devices": KEPT,
    "num_gpus_per_node": count("devices_per_node"),
    "recompute_granularity": KEPT,
    "activations_checkpoint_granularity": KEPT,
    "recompute_method": KEPT,
    "activations_checkpoint_method": KEPT,
    "recompute_num_layers": KEPT,
    "activations_checkpoint_num_layers": KEPT,
    "recompute_modules": KEPT,
    "num_micro_batches_with_partial_activation_checkpoints": KEPT,
}
_SWITCHES = {
    "overlap_grad_reduce": switch("overlap-grad-reduce"),
    "overlap_grad_sync": switch("overlap-grad-reduce"),
    "overlap_param_gather": switch("overlap-param-gather"),
    "overlap_param_sync": switch("overlap-param-gather"),
    "use_distributed_optimizer": Read(("zero",), _zero),
    "grad_reduce_in_fp32": Read(("state.gradient",), _gradient),
    "data_parallel_sharding_strategy": KEPT,
    "use_megatron_fsdp": KEPT,
    "use_custom_fsdp": KEPT,
    "fsdp": KEPT,
    "tp_comm_overlap": switch("overlap-tp"),
    "ub_tp_comm_overlap": switch("overlap-tp"),
    "overlap_moe_expert_parallel_comm": switch("overlap-a2a"),
    "cross_entropy_loss_fusion": switch("loss", "fused", "plain"),
    "gradient_accumulation_fusion": switch("fused-accumulation"),
    "attention_backend": Read(("switch.attention",), _attention),
    "enable_cuda_graph": KEPT,
    "external_cuda_graph": KEPT,
    "cuda_graph_impl": KEPT,
    "cuda_graph_scope": KEPT,
    "moe_token_dispatcher_type": KEPT,
    "moe_flex_dispatcher_backend": KEPT,
    "moe_enable_deepep": KEPT,
    "moe_router_force_load_balancing": switch("routing", "balanced", "real"),
    "moe_expert_capacity_factor": KEPT,
    "cpu_offloading": switch("offload-activations"),
    "fine_grained_activation_offloading": switch("offload-activations"),
    "optimizer_cpu_offload": yes_no("offload"),
    "fp8": KEPT,
    "fp8_recipe": KEPT,
    "fp8_hybrid": KEPT,
    "fp4": KEPT,
    "fp4_recipe": KEPT,
    "fp8_param_gather": KEPT,
    "fp8_param": KEPT,
    "fp8_params": KEPT,
    "bf16": KEPT,
    "fp16": KEPT,
    "precision": KEPT,
    "mixed_precision": KEPT,
    "megatron_amp_O2": KEPT,
    "exp_avg_dtype": KEPT,
    "exp_avg_sq_dtype": KEPT,
    "main_params_dtype": KEPT,
    "use_precision_aware_optimizer": KEPT,
    "optimizer": words("optimizer", _OPTIMIZERS),
}

TABLE = Table(
    keys={
        **{f"*.{name}": read for name, read in {**_MODEL, **_LAYOUT, **_SWITCHES}.items()},
        "trainer.max_steps": positive("train_steps"),
        "max_steps": positive("train_steps"),
        "model.optim.name": words("optimizer", _OPTIMIZERS),
        "optim.name": words("optimizer", _OPTIMIZERS),
        "model.name": KEPT,
        "model.base_config": KEPT,
        "peft._target_": KEPT,
        "model.peft.peft_scheme": words(
            "finetune", {"lora": "lora", "qlora": "qlora", "none": "full"}),
    },
    ignored=(
        r"(checkpoint|logger|tokenizer|rng|scheduler|dist|profiling|rerun_state_machine|validation"
        r"|exp_manager|hydra|misc|log|resume|run|ft|nvrx_straggler|inprocess_restart|env_vars"
        r"|straggler|tensor_inspect|cluster|restore_from_path|restore_config|defaults|name)"
        r"(\..*)?",
        r"(dataset|data|model\.data|optimizer|optim|model\.optim|model\.nsys_profile|ddp|train"
        r"|trainer|comm_overlap|mixed_precision|model\.custom|model\.tokenizer|peft|model\.peft"
        r"|dataloader)(\..*)?",
        r"model\..*",
        r"(.*\.)?_target_",
        r"(proxy_gbs|is_proxy_run|skip_evals|default_val_check_interval|seed|inference.*"
        r"|performance_mode|fn|dir|.*callbacks?)",
        r"\d+|self\..*|.*\.self\..*",
    ),
)  # fmt: skip
"""Unknown settings of the model are left out too: recipes state hundreds of kernel choices."""
