"""What keys of LitGPT, Lingua, VeOmni, ArcticTraining and LLaMA-Factory v1 mean.

Defaults are those of ``litgpt/args.py``, ``lingua/distributed.py``, ``veomni/arguments``,
``arctic_training/config`` and ``llamafactory/v1/config``.
"""

from __future__ import annotations

from collections.abc import Mapping

from krzem.jobs.composer import optimizer
from krzem.jobs.priced import LLAMA
from krzem.jobs.tree import (
    KEPT,
    Defaults,
    Found,
    Read,
    Table,
    UnclearError,
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

PLAIN: Defaults = {
    "tp": (1, "no tensor parallelism"),
    "pp": (1, "no pipeline"),
    "cp": (1, "sequences are not cut"),
    "ep": (1, "experts are not spread"),
    "offload": (False, "states stay on the device"),
    "optimizer": ("adamw", "the optimizer is AdamW"),
}
"""What all of these loops do unless a key says otherwise."""


def _recompute(value: object) -> Found:
    return {"recompute": "full" if truth(value) else "none"}


def _attention(value: object) -> Found:
    return {"switch.attention": "eager" if word(value).lower() == "eager" else "fused"}


def _devices(value: object) -> Found:
    if value in ("auto", -1, "-1"):
        raise UnclearError("all devices of the node")
    return count("devices_per_node").parse(value)


_TYPES = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16", "half": "fp16",
          "fp32": "fp32", "float32": "fp32", "torch.bfloat16": "bf16"}  # fmt: skip
_LIT_TYPES = {"bf16-true": "bf16", "bf16-mixed": "bf16", "16-true": "fp16", "16-mixed": "fp16",
              "32-true": "fp32", "32": "fp32"}  # fmt: skip
_LIT_MODEL: Mapping[str, Read] = {
    "name": text("model.name"), "n_layer": count("model.layers"), "n_head": count("model.heads"),
    "n_embd": count("model.hidden"), "n_query_groups": positive("model.kv_heads"),
    "head_size": positive("model.head_dim"), "intermediate_size": positive("model.ffn"),
    "vocab_size": positive("model.vocab"), "bias": yes_no("model.bias"),
    "n_expert": some("model.experts", 2), "n_expert_per_token": positive("model.top_k"),
    "sliding_window_size": positive("model.window"), "mlp_class_name": KEPT, "_mlp_class": KEPT,
    "moe_intermediate_size": positive("model.moe_ffn"), "norm_qk": yes_no("model.qk_norm"),
    "block_size": KEPT, "padded_vocab_size": KEPT,
}  # fmt: skip
LITGPT = Table(
    keys={
        **{f"{t}.{n}": read for t in ("model", "model_config") for n, read in _LIT_MODEL.items()},
        "model_name": text("model.name"), "checkpoint_dir": KEPT, "resume": KEPT,
        "model_config": KEPT, "precision": words("precision", _LIT_TYPES), "quantize": KEPT,
        "devices": Read(("devices_per_node",), _devices), "num_nodes": count("nodes"),
        "lora_r": KEPT, "optimizer": Read(("optimizer",), optimizer),
        "optimizer.class_path": Read(("optimizer",), optimizer),
        "train.global_batch_size": count("global_batch"), "train.micro_batch_size": count("mbs"),
        "train.max_seq_length": positive("seq"), "train.max_tokens": positive("train_tokens"),
        "train.max_steps": positive("train_steps"), "train.tie_embeddings": yes_no("model.tied"),
    },
    ignored=(
        r"(data|eval|train|optimizer|log)(\..*)?",
        r"(out_dir|seed|logger_name|tokenizer_dir|initial_checkpoint_dir|access_token|ops_.*"
        r"|lora_(alpha|dropout|query|key|value|projection|mlp|head)|bnb_.*)",
        r"model(_config)?\.(hf_config.*|scale_.*|padding_.*|rotary_.*|rope_.*|norm_.*|gelu_.*"
        r"|lm_head_bias|shared_attention_norm|parallel_residual|_norm_class|norm_class_name"
        r"|attention_logit.*|final_logit.*|post_.*|attn_bias)",
    ),
)  # fmt: skip
LINGUA = Table(
    keys={
        **{f"model.{name}": KEPT for name in LLAMA},
        "model.sliding_window": positive("model.window"),
        "data.batch_size": count("mbs"), "data.seq_len": count("seq"),
        "grad_acc_steps": count("accumulation"), "steps": positive("train_steps"),
        "distributed.fsdp_type": KEPT, "distributed.dp_shard": KEPT,
        "distributed.dp_replicate": KEPT, "distributed.tp_size": count("tp"),
        "distributed.compile": switch("compile"), "distributed.float8_recipe": KEPT,
        "distributed.model_dtype": words("precision", _TYPES),
        "distributed.selective_activation_checkpointing": Read(
            ("recompute",), lambda value: {"recompute": "modules" if truth(value) else "none"}
        ),
    },
    ignored=(
        r"(optim|data|profiling|checkpoint|logging|eval|env|async_eval_gpus|setup)(\..*)?",
        r"(dump_dir|name|seed|probe_freq|gc_collect_freq)",
        r"model\.(norm_eps|rope_theta|init_.*|max_seqlen|seed|attn_impl)",
        r"distributed\.(matmul_.*|detect_.*|compile_cache.*|spawn_.*|float8_filter|allow_.*)",
    ),
)  # fmt: skip
LINGUA_DEFAULTS: Defaults = {
    "accumulation": (1, "grad_acc_steps is 1"),
    "precision": ("bf16", "model_dtype is bf16"),
    "recompute": ("none", "selective_activation_checkpointing is false"),
    "finetune": ("none", "all weights are trained"),
    "model.tied": (False, "weight_tying is false"),
    "model.bias": (False, "projections have no bias"),
    "model.qk_norm": (False, "queries and keys are not normed"),
    "switch.compile": ("off", "compile is false"),
    "switch.loss": ("plain", "log-softmax and its loss"),
}
_ACCELERATOR: Mapping[str, Read] = {
    "ulysses_size": positive("cp"), "ep_size": positive("ep"), "tp_size": positive("tp"),
    "pp_size": positive("pp"), "fsdp_config.fsdp_mode": KEPT, "fsdp_config.full_shard": KEPT,
    "fsdp_config.offload": yes_no("offload"), "dp_shard_size": positive("shard"),
    "offload.enable_activation": switch("offload-activations"),
    "offload.activation_offload": switch("offload-activations"),
    "offload_config.enable_activation": switch("offload-activations"),
    "gradient_checkpointing.enable": Read(("recompute",), _recompute),
    "torch_compile.enable": switch("compile"),
}  # fmt: skip
VEOMNI = Table(
    keys={
        **{f"{t}.accelerator.{name}": read
           for t in ("train", "model") for name, read in _ACCELERATOR.items()},
        **{f"{t}.optimizer.type": Read(("optimizer",), optimizer) for t in ("train", "model")},
        "model.model_path": text("model.name"), "model.config_path": KEPT,
        "model.attn_implementation": Read(("switch.attention",), _attention),
        "model.ops_implementation.attn_implementation": Read(("switch.attention",), _attention),
        "data.max_seq_len": count("seq"), "data.data_type": KEPT,
        "train.micro_batch_size": count("mbs"), "train.global_batch_size": positive("global_batch"),
        "train.max_steps": positive("train_steps"), "train.data_parallel_mode": KEPT,
        "train.data_parallel_shard_size": positive("shard"),
        "train.tensor_parallel_size": positive("tp"),
        "train.pipeline_parallel_size": positive("pp"),
        "train.ulysses_parallel_size": positive("cp"), "train.expert_parallel_size": positive("ep"),
        "train.enable_full_shard": KEPT, "train.enable_fsdp_offload": yes_no("offload"),
        "train.enable_activation_offload": switch("offload-activations"),
        "train.enable_gradient_checkpointing": Read(("recompute",), _recompute),
        "train.gradient_checkpointing.enable": Read(("recompute",), _recompute),
        "train.enable_mixed_precision": KEPT, "train.rmpad": KEPT, "train.dyn_bsz": KEPT,
        "train.rmpad_with_pos_ids": KEPT,
        "train.optimizer": Read(("optimizer",), optimizer),
    },
    ignored=(
        r"data(\..*)?",
        r"train\.(output_dir|lr.*|weight_decay|max_grad_norm|bsz_.*|dyn_bsz_.*|.*wandb.*|ckpt.*"
        r"|init_device|empty_cache.*|save_.*|load_.*|checkpoint(\..*)?|num_train_epochs|seed|gc_.*"
        r"|enable_full_determinism|eval_.*|enable_profiling|profile(\..*)?|profile_.*|log.*"
        r"|hf_.*|moe_load.*|use_doptim|optimizer\.(?!type).*|channel_loss.*)",
        r"model\.(tokenizer_path|moe_implementation|foundation.*|encoders.*|ops_implementation\..*"
        r"|optimizer\.(?!type).*|assets.*)",
        r"(train|model)\.(accelerator\.)?(init_device|gradient_checkpointing\.(?!enable).*)",
    ),
)  # fmt: skip
VEOMNI_DEFAULTS: Defaults = {
    "recompute": ("full", "gradient checkpointing is on unless switched off"),
    "finetune": ("none", "no weights are loaded"),
    "precision": ("bf16", "products in bfloat16, mixed precision or not"),
}
_TUNE_LOSS = {"LinearCrossEntropyLoss": "chunked", "CEWithChunkedOutputLoss": "chunked",
              "CrossEntropyLoss": "plain"}  # fmt: skip


def _tune_loss(value: object) -> Found:
    kind = _TUNE_LOSS.get(word(value).rpartition(".")[2])
    return {} if kind is None else {"switch.loss": kind}


def _tune_optimizer(value: object) -> Found:
    name = word(value).rpartition(".")[2]
    if name.lower() in ("pagedadamw8bit", "adamw8bit"):
        return {"optimizer": "adam8bit"}
    return optimizer(value)


TORCHTUNE = Table(
    keys={
        "model._component_": Read(
            ("model.name",), lambda value: {"model.name": word(value).rpartition(".")[2]}
        ),
        "batch_size": count("mbs"), "gradient_accumulation_steps": count("accumulation"),
        "tokenizer.max_seq_len": KEPT, "dataset.packed": KEPT, "model.lora_rank": KEPT,
        "model.quantize_base": KEPT, "max_steps_per_epoch": KEPT,
        "optimizer._component_": Read(("optimizer",), _tune_optimizer),
        "loss._component_": Read(("switch.loss",), _tune_loss),
        "dtype": words("precision", _TYPES), "compile": switch("compile"),
        "enable_activation_checkpointing": Read(("recompute",), _recompute),
        "enable_activation_offloading": switch("offload-activations"),
        "tensor_parallel_dim": positive("tp"), "context_parallel_dim": positive("cp"),
        "data_parallel_shard_dim": KEPT, "data_parallel_replicate_dim": KEPT,
        "fsdp_cpu_offload": yes_no("offload"),
    },
    ignored=(
        r"(tokenizer|dataset|dataset_val|checkpointer|optimizer|lr_scheduler|loss|metric_logger"
        r"|profiler|model|tensor_parallel_plan|quantizer|custom_sharded_layers|optimizer_in_bwd"
        r"|fsdp_reshard_after_forward)(\..*)?",
        r"(output_dir|seed|shuffle|run_val.*|batch_size_val|resume_from.*|epochs|device|log_.*"
        r"|clip_grad_norm|save_.*|enable_async.*|low_cpu_ram|cudnn.*|name|keep_.*|max_.*)",
    ),
)  # fmt: skip
TORCHTUNE_DEFAULTS: Defaults = {
    "accumulation": (1, "gradient_accumulation_steps is 1"),
    "recompute": ("none", "enable_activation_checkpointing is false"),
    "switch.compile": ("off", "compile is false"),
    "switch.attention": ("fused", "scaled_dot_product_attention"),
}
ZERO = "deepspeed.zero_optimization"
"""ArcticTraining's table of DeepSpeed's ZeRO."""
ARCTIC = Table(
    keys={
        "type": KEPT, "model.name_or_path": text("model.name"), "model.type": Read(
            ("switch.loss",),
            lambda value: {"switch.loss": "chunked"} if word(value) == "liger" else {},
        ),
        "model.dtype": words("precision", _TYPES),
        "model.attn_implementation": Read(("switch.attention",), _attention),
        "model.disable_activation_checkpoint": KEPT, "model.peft_config.peft_type": KEPT,
        "data.max_length": count("seq"), "data.pack_samples": KEPT,
        "micro_batch_size": count("mbs"), "gradient_accumulation_steps": count("accumulation"),
        "sequence_parallel_size": count("cp"), "expert_parallel_size": count("ep"),
        "train_iters": positive("train_steps"),
        "activation_checkpoint_cpu_offload": switch("offload-activations"),
        "optimizer.type": Read(("optimizer",), optimizer),
        f"{ZERO}.stage": some("zero"), f"{ZERO}.offload_optimizer.device": KEPT,
    },
    ignored=(
        r"(data|logger|wandb|scheduler|checkpoint|optimizer|tokenizer)(\..*)?",
        r"(epochs|exit_iteration.*|min_iterations|seed|.*interval.*|eval_.*|code|skip_validation"
        r"|mem_profiler.*|kill_switch_path|overfit.*|step_timer|arctic_moe)",
        rf"{ZERO}\.((stage3|reduce|allgather|sub_group).*|offload_optimizer\.pin.*)",
        r"deepspeed\.(seq_parallel_comm.*|steps_per_print|gradient_clipping|wall_clock.*)",
        r"model\.(save_name|hf_config_kwargs.*|peft_config\..*|use_auth.*)",
    ),
)  # fmt: skip
ARCTIC_DEFAULTS: Defaults = {
    "mbs": (1, "micro_batch_size is 1"),
    "accumulation": (1, "gradient_accumulation_steps is 1"),
    "precision": ("bf16", "model.dtype is bf16"),
    "recompute": ("full", "layers are checkpointed unless switched off"),
    "finetune": ("full", "weights are loaded, no adapter"),
    "switch.attention": ("fused", "attn_implementation is sdpa"),
}
FACTORY = Table(
    keys={
        "model": text("model.name"), "micro_batch_size": count("mbs"), "cutoff_len": count("seq"),
        "global_batch_size": count("global_batch"), "max_steps": positive("train_steps"),
        "dist_config.name": KEPT, "peft_config.name": KEPT, "peft_config.r": KEPT,
        "quant_config.name": KEPT, "cp_size": count("cp"),
        "cp_mode": words("cpkind", {"ulysses": "a2a", "ring": "ring"}),
        "flash_attn": Read(("switch.attention",), _attention),
        "bf16": Read(("precision",), lambda value: {"precision": "bf16"} if truth(value) else {}),
        "enable_activation_checkpointing": Read(("recompute",), _recompute),
        "optim_config.name": Read(("optimizer",), optimizer),
    },
    ignored=(
        r"(train_dataset|eval_dataset|output_dir|learning_rate|num_train_epochs|seed|model_class"
        r"|trust_remote_code|template|init_config.*|sample_.*|max_new_tokens|.*lr_scheduler.*"
        r"|log.*|save_.*|max_grad_norm|weight_decay|optim_config\..*)",
        r"(peft_config|dist_config|quant_config)\.(lora_.*|target_.*|dcp_path|export_.*)",
    ),
)  # fmt: skip
