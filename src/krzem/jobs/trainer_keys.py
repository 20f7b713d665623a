"""What Hugging Face TrainingArguments and the tools over them mean, by option name.

LLaMA-Factory, ms-swift, TRL, axolotl and plain scripts share these names; DeepSpeed's and
Accelerate's own keys stand below ``deepspeed.``, ``accelerate.`` and ``fsdp_config.``.
"""

from __future__ import annotations

import re

from krzem.jobs.tree import (
    KEPT,
    Found,
    Read,
    Table,
    UnclearError,
    count,
    positive,
    some,
    switch,
    truth,
    when_true,
    word,
    words,
    yes_no,
)

_ATTENTION = {"flash_attention_2": "fused", "flash_attention_3": "fused", "flash_attn": "fused",
              "flash_attention": "fused", "sdpa": "fused", "auto": "fused", "fa2": "fused",
              "fa3": "fused", "flex_attention": "fused", "true": "fused", "eager": "eager",
              "disabled": "eager", "false": "eager"}  # fmt: skip
_TUNERS = {"full": "full", "lora": "lora", "qlora": "qlora"}
_OTHER_OPTIMIZERS = ("galore", "apollo", "4bit", "lomo", "mini", "badam", "schedule_free")
"""Kinds whose states are neither AdamW's nor another known kind's, whatever else is in the word."""


def optimizer_of(name: str) -> str:
    """The kind of an ``optim`` word such as ``paged_adamw_8bit``; raises UnclearError."""
    low = name.lower()
    if any(part in low for part in _OTHER_OPTIMIZERS):
        raise UnclearError(f"{low[:40]!r} keeps other states than the optimizers that are known")
    if "8bit" in low and ("adam" in low):
        return "adam8bit"
    for kind in ("adafactor", "lion", "muon", "sgd"):
        if kind in low:
            return kind
    if "adam" in low:
        return "adamw"
    raise UnclearError(f"{low[:40]!r} is no optimizer that is known")


def _optim(value: object) -> Found:
    return {"optimizer": optimizer_of(word(value))}


def _recompute(value: object) -> Found:
    if isinstance(value, str) and value.lower() in ("unsloth", "offload"):
        return {"recompute": "full"}
    return {"recompute": "full" if truth(value) else "none"}


def _no_recompute(value: object) -> Found:
    return {"recompute": "none" if truth(value) else "full"}


def _steps(value: object) -> Found:
    return positive("train_steps").parse(value)


def _liger(value: object) -> Found:
    return {"switch.loss": "chunked" if truth(value) else "plain"}


def _ulysses(value: object) -> Found:
    found = positive("cp").parse(value)
    return {**found, "cpkind": "a2a"} if found.get("cp", 1) != 1 else found


def _device(value: object) -> Found:
    kind = word(value).lower()
    return {"offload": kind in ("cpu", "nvme")}


_ARGUMENTS = {
    "per_device_train_batch_size": count("mbs"),
    "micro_batch_size": count("mbs"),
    "per_gpu_train_batch_size": count("mbs"),
    "global_batch_size": positive("global_batch"),
    "gradient_accumulation_steps": count("accumulation"),
    "max_steps": Read(("train_steps",), _steps),
    "max_train_steps": Read(("train_steps",), _steps),
    "bf16": KEPT,
    "fp16": KEPT,
    "tf32": KEPT,
    "fp8": KEPT,
    "torch_dtype": KEPT,
    "dtype": KEPT,
    "pure_bf16": KEPT,
    "mixed_precision": KEPT,
    "optim": Read(("optimizer",), _optim),
    "optimizer": Read(("optimizer",), _optim),
    "gradient_checkpointing": Read(("recompute",), _recompute),
    "disable_gradient_checkpointing": Read(("recompute",), _no_recompute),
    "activation_checkpointing": Read(("recompute",), _recompute),
    "torch_compile": switch("compile"),
    "attn_implementation": words("switch.attention", _ATTENTION),
    "attn_impl": words("switch.attention", _ATTENTION),
    "flash_attn": words("switch.attention", _ATTENTION),
    "flash_attention": words("switch.attention", _ATTENTION),
    "use_flash_attn": switch("attention", "fused", "eager"),
    "use_flash_attention_2": switch("attention", "fused", "eager"),
    "use_liger_kernel": Read(("switch.loss",), _liger),
    "liger_fused_linear_cross_entropy": Read(("switch.loss",), _liger),
    "cut_cross_entropy": Read(("switch.loss",), _liger),
    "activation_offloading": switch("offload-activations"),
    "use_muon": when_true({"optimizer": "muon"}),
    "use_liger": Read(("switch.loss",), _liger),
    "enable_liger_kernel": Read(("switch.loss",), _liger),
    "sequence_parallel_size": Read(("cp", "cpkind"), _ulysses),
    "sequence_parallel_degree": Read(("cp", "cpkind"), _ulysses),
    "context_parallel_size": positive("cp"),
    "tensor_parallel_size": positive("tp"),
    "deepspeed_autotp_size": positive("tp"),
    "finetuning_type": words("finetune", _TUNERS),
    "tuner_type": words("finetune", _TUNERS),
    "train_type": words("finetune", _TUNERS),
    "sft_type": words("finetune", _TUNERS),
    "adapter": words("finetune", _TUNERS),
    "use_peft": when_true({"finetune": "lora"}),
    "use_lora": when_true({"finetune": "lora"}),
    "use_qlora": when_true({"finetune": "qlora"}),
    "num_nodes": positive("nodes"),
    "global_world_size": positive("devices"),
    "local_world_size": positive("devices_per_node"),
    "ray_num_workers": positive("devices"),
}
_KEPT = (
    "model_name_or_path", "model", "base_model", "model_id_or_path",
    "pretrained_model_name_or_path", "model_name", "zero_stage", "offload", "plugins",
    "data_split", "data_output_path",
    "model_type", "model_dir", "config_overrides", "block_size", "max_length", "cutoff_len",
    "max_seq_length", "max_seq_len", "sequence_len", "packing", "sample_packing", "neat_packing",
    "quantization_bit", "quant_bits", "load_in_4bit", "load_in_8bit", "deepspeed",
    "deepspeed_config_file", "fsdp", "fsdp_config", "config_name", "stage", "use_deepspeed",
    "pad_to_sequence_len", "num_train_epochs", "lora_r", "lora_rank", "lora_target",
    "tokenizer_name", "deepspeed_multinode_launcher", "config", "config_file",
    "num_processes", "num_machines", "do_train",
)  # fmt: skip
_DEEPSPEED = {
    "deepspeed.zero_optimization.stage": some("zero"),
    "deepspeed.zero_optimization.offload_optimizer.device": Read(("offload",), _device),
    "deepspeed.zero_optimization.cpu_offload": yes_no("offload"),
    "deepspeed.zero_optimization.offload_param.device": KEPT,
    "deepspeed.zero_optimization.overlap_comm": switch("overlap-grad-reduce"),
    "deepspeed.zero_optimization.zero_hpz_partition_size": KEPT,
    "deepspeed.zero_optimization.mics_shard_size": positive("shard"),
    "deepspeed.train_micro_batch_size_per_gpu": KEPT,
    "deepspeed.gradient_accumulation_steps": KEPT,
    "deepspeed.train_batch_size": KEPT,
    "deepspeed.bf16.enabled": KEPT,
    "deepspeed.fp16.enabled": KEPT,
    "deepspeed.optimizer.type": KEPT,
    "deepspeed.data_types.grad_accum_dtype": KEPT,
    "deepspeed.activation_checkpointing.partition_activations": switch("partition-activations"),
    "deepspeed.activation_checkpointing.cpu_checkpointing": switch("offload-activations"),
    "deepspeed.tensor_parallel.autotp_size": positive("tp"),
    "deepspeed.pipeline.stages": KEPT,
    "deepspeed.sequence_parallel_size": positive("cp"),
}

TABLE = Table(
    keys={**_ARGUMENTS, **dict.fromkeys(_KEPT, KEPT), **_DEEPSPEED,
          **{f"{where}.{name}": KEPT for where in ("accelerate", "fsdp_config")
             for name in ("mixed_precision", "distributed_type", "num_processes", "num_machines",
                          "fsdp_sharding_strategy", "fsdp_reshard_after_forward",
                          "fsdp_offload_params", "fsdp_activation_checkpointing", "fsdp_version",
                          "reshard_after_forward", "offload_params", "activation_checkpointing",
                          "sharding_strategy", "version", "cpu_offload",
                          "activation_cpu_offload", "fsdp_cpu_offload")}},
    ignored=(
        r"(deepspeed|accelerate|fsdp_config|accelerator_config|lr_scheduler_kwargs|optim_args"
        r"|gradient_checkpointing_kwargs|model_kwargs|wandb|datasets|test_datasets|max_memory"
        r"|columns|special_tokens|dataset_mixer|model_init_kwargs|eval_datasets)(\..*)?",
        r"(.*_)?(dir|path|paths|file|files|name|names|seed|steps|strategy|token|tokens|epochs"
        r"|ratio|rate|decay|norm|scheduler|type|template|prompt|system|columns?|splits?|samples"
        r"|workers|proc|revision|interval|limit|alpha|dropout|rank|init|bias|kwargs|delay|cache"
        r"|backend|timeout|level|project|entity|group|id|url|host|port|batch_size|metrics?"
        r"|tqdm|size|factor|threads|prob|plugins?|memory|checkpoint|checkpoints|memories)",
        r"(log|logging|eval|save|load|hub|push|report|run|do|data|dataset|dataloader|lr|adam|max"
        r"|label|ddp|resume|overwrite|preprocessing|tokenizer|tokenize|trust|use_(cache|slow|fast"
        r"|reentrant|hf|chat|ray|rslora|dora|galore|cpu|swift|logits|flash_ckpt|mps)|remove|ignore"
        r"|include|predict|generation|metric|greater|full|skip|restore|prediction|batch|galore"
        r"|lora|vera|boft|reft|adalora|llamapro|fourier|lisa|adapter|hqq|bnb|swanlab|early"
        r"|split|val|train|cached|stream|streaming|shuffle|strict|plot|ddp|fp16|bf16|half|warmup"
        r"|torch_(compile|empty)|tf32|report|wandb|mlflow|comet|push|neftune|average|freeze"
        r"|target|modules|trainable|vit|aligner|top|num_(labels|beams)|temperature|repetition"
        r"|structured|logprobs|stop|new|problem|rope|device_map|local|init|agent|norm_bbox|padding"
        r"|loss|response|enable_(thinking|jit|channel|dft)|add|interleave|stopping|download|custom"
        r"|external|callbacks|optimizer|create|zero|swift|ckpt|task|hf|launcher|with|chat|messages"
        r"|debug|disable_(tqdm|shuffling)|auto|acc|router|safe|check|group|ds3|only|ray|exp"
        r"|ulysses|fp8|special|skip|clean|hash|mask|reduce|try|gs|cluster|workspace|budget"
        r"|priority|image|preemptible|pure_docker|gpus|no_auto|non_resumable)(_.*)?",
        r"(video_.*|image_.*|audio_.*|oft_.*|pref_.*|kto_.*|apollo_.*|badam_.*|pissa_.*|use_(.*_loss|badam"
        r"|apollo|adam_mini|llama_pro|muon)|quantization_method|double_quantization|stage|template|system|dataset|media_dir|plot_loss|tags|seed|quant_method|tuner_backend"
        r"|is_trainable|ddp|packing_.*|truncation_strategy|sortish_sampler|stream|global_.*"
        r"|rank|experts_impl|lazy_tokenize|mcore_.*|_.*|evaluation_.*|training_args|model_.*"
        r"|template_.*|average_.*|length_.*|lora|val_.*|optimizers?|mixture.*|jit_.*|trackio.*"
        r"|torchdynamo|ddp_.*|past_index|parallelism_config|per_device_eval_batch_size|project"
        r"|weight_decay|sagemaker.*|mp_parameters|tpu_.*|xpu_.*|liger_kernel_config|adapters"
        r"|cosine_.*|micro_.*|s2_attention|xformers_attention|activation|gpu_.*|strict|output)",
    ),
    why="an option for data, logs, saving or learning",
)  # fmt: skip
"""Trainers have hundreds of options for data, logs and saving: those are left out."""

GRAVE = re.compile(
    r"^(?!(deepspeed|accelerate|fsdp_config|.*kwargs)\.)(?=.*(parallel|fp8|expert|ulysses|offload"
    r"|use_(galore|apollo|badam|adam_mini|muon|llama_pro)|mixture_of_depths|freeze_(p|t|e)|chunk"
    r"|fused_linear))"
)
"""Names that the table may not leave out while they are switched on."""
