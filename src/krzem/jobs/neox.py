"""GPT-NeoX: one or several YAML files that are merged, a later one wins.

Defaults are those of ``megatron/neox_arguments`` in the repository.
"""

from __future__ import annotations

from krzem.errors import DataError
from krzem.jobs.documents import keys_of, yaml_tree
from krzem.jobs.job import JobBuilder
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.tree import (
    KEPT,
    Defaults,
    Entry,
    Found,
    Read,
    Table,
    Tree,
    apply,
    count,
    fall_back,
    inverse,
    positive,
    size_of,
    some,
    switch,
    truth,
    truth_of,
    unset,
    when_true,
    word,
    word_of,
    words,
    yes_no,
)

ENGINE = "megatron-deepspeed"
_GATED = ("swiglu", "geglu", "reglu", "bilinear", "glu")
_POSITIONS = {"rotary": "rope", "learned": "learned", "alibi": "alibi", "none": "none"}
_OPTIMIZERS = {
    "adam": "adamw", "adamw": "adamw", "onebitadam": "adamw", "cpu_adam": "adamw",
    "cpu_torch_adam": "adamw", "sgd": "sgd", "lion": "lion", "adafactor": "adafactor",
}  # fmt: skip
_PRECISIONS = {"fp16": "fp16", "float16": "fp16", "bfloat16": "bf16", "bf16": "bf16",
               "fp32": "fp32", "float32": "fp32"}  # fmt: skip


def _partitions(value: object) -> Found:
    return {"switch.partition-activations": "on" if truth(value) else "off"}


def _device(value: object) -> Found:
    return {"offload": word(value).lower() in ("cpu", "nvme")}


_TABLE = Table(
    keys={
        "pipe_parallel_size": some("pp"),
        "model_parallel_size": positive("tp"),
        "context_parallel_size": positive("cp"),
        "expert_parallel_size": positive("ep"),
        "moe_expert_parallel_size": positive("ep"),
        "sequence_parallel": KEPT,
        "num_layers": count("model.layers"),
        "hidden_size": count("model.hidden"),
        "num_attention_heads": count("model.heads"),
        "num_kv_heads": count("model.kv_heads"),
        "intermediate_size": KEPT,
        "expansion_factor": KEPT,
        "mlp_multiple_of": KEPT,
        "mlp_type": KEPT,
        "activation": KEPT,
        "seq_length": count("seq"),
        "sliding_window_width": positive("model.window"),
        "pos_emb": words("model.positions", _POSITIONS),
        "no_weight_tying": inverse("model.tied"),
        "use_qk_layernorm": yes_no("model.qk_norm"),
        "use_bias_in_attn_linear": KEPT,
        "use_bias_in_mlp": KEPT,
        "attention_config": KEPT,
        "moe_num_experts": some("model.experts", 2),
        "num_experts": some("model.experts", 2),
        "moe_top_k": KEPT,
        "train_batch_size": count("global_batch"),
        "train_micro_batch_size_per_gpu": count("mbs"),
        "batch_size": count("mbs"),
        "gradient_accumulation_steps": count("accumulation"),
        "gas": count("accumulation"),
        "train_iters": count("train_steps"),
        "global_num_gpus": count("devices"),
        "num_nodes": positive("nodes"),
        "num_gpus": positive("devices_per_node"),
        "precision": words("precision", _PRECISIONS),
        "fp16.enabled": KEPT,
        "fp16.fp16": KEPT,
        "fp16.type": words("precision", _PRECISIONS),
        "bf16.enabled": KEPT,
        "optimizer.type": words("optimizer", _OPTIMIZERS),
        "zero_optimization.stage": some("zero"),
        "zero_stage": some("zero"),
        "zero_optimization.overlap_comm": switch("overlap-grad-reduce"),
        "zero_optimization.cpu_offload": yes_no("offload"),
        "zero_optimization.offload_optimizer.device": Read(("offload",), _device),
        "checkpoint_activations": KEPT,
        "checkpoint_num_layers": KEPT,
        "partition_activations": Read(("switch.partition-activations",), _partitions),
        "checkpoint_in_cpu": switch("offload-activations"),
        "activation_checkpointing.partition_activations":
            Read(("switch.partition-activations",), _partitions),
        "activation_checkpointing.cpu_checkpointing": switch("offload-activations"),
        "data_types.grad_accum_dtype": KEPT,
        "soft_prompt_tuning.enabled": KEPT,
        "finetune": when_true({"finetune": "full"}),
    },
    ignored=(
        r"(optimizer|scheduler|fp16|bf16|zero_optimization|flops_profiler|wandb|tensorboard"
        r"|csv_monitor|comms_logger|autotuning|checkpoint|curriculum_learning|amp)\..*",
        r"activation_checkpointing\..*",
        r".*(path|paths|weights|file|dir|impl|seed|seeds|dropout|tokenizer.*|interval|iters|name"
        r"|host|team|group|project|id|save|load)",
        r"(lr|min_lr|warmup|weight_decay|clip_grad|gradient_clipping|init_method.*"
        r"|output_layer_init_method|norm|.*epsilon|.*_eps|rotary.*|rope_fusion|rpe_.*|max_position.*"
        r"|gpt_j_.*|output_layer_parallelism|.*_fusion|loss_scale.*|hysteresis|min_scale"
        r"|apply_query_key_layer_scaling|attention_softmax_in_fp32|use_bias_in_norms"
        r"|attention_head_type|bias_.*|synchronize_each_layer|contiguous_checkpointing"
        r"|deepspeed.*|launcher|distributed_backend|steps_per_print|wall_clock_breakdown|num_workers"
        r"|train_impl|checkpoint_factor|checkpoint_scale|keep_last_n_checkpoints|extra_save_iters"
        r"|eval_.*|log_.*|use_wandb|use_comet|comet_.*|s3_.*|split|mmap_warmup|lr_decay_.*"
        r"|make_vocab_size_divisible_by|override_lr_scheduler|use_checkpoint_lr_scheduler"
        r"|pipe_partition_method|full_precision_lm_cross_entropy|fp16_lm_cross_entropy"
        r"|decay_lr_to|git_hash|config_files|hostfile|include|exclude|master_.*|no_.*|force_multi|comment"
        r"|account|profile.*|memory_profiling.*|vocab_file|weight_by_num_documents|data_impl"
        r"|allow_chopped|dataset_impl|pack_impl|use_shared_fs|prescale_gradients|fp32_allreduce"
        r"|sparse_gradients|gradient_predivide_factor|weighted_sampler_alpha|z_loss|seed"
        r"|temperature|top_p|top_k|maximum_tokens|text_gen_type|adlr_.*|gmlp.*|use_mup|mup_.*"
        r"|wandb.*|zero_.*|exit_interval|eod_mask_loss|tokenizer_type|char_level_ppl|do_.*)",
    ),
)  # fmt: skip

_DEFAULTS: Defaults = {
    "tp": (1, "model_parallel_size is 1"),
    "pp": (1, "pipe_parallel_size is 0: no pipeline"),
    "cp": (1, "sequences are not cut"),
    "vpp": (1, "DeepSpeed's pipeline has one stage on a rank"),
    "schedule": ("1f1b", "DeepSpeed's pipeline"),
    "zero": (0, "zero_optimization.stage is 0"),
    "offload": (False, "optimizer states stay on the device"),
    "precision": ("fp16", "precision is fp16"),
    "optimizer": ("adamw", "optimizer.type is Adam"),
    "finetune": ("none", "train.py trains all weights from data"),
    "model.positions": ("learned", "pos_emb is learned"),
    "model.tied": (True, "no_weight_tying is false"),
    "model.qk_norm": (False, "use_qk_layernorm is false"),
    "model.mtp": (0, "the engine has none"),
    "switch.compile": ("off", "the engine compiles no layers"),
    "switch.cuda-graphs": ("none", "the engine captures none"),
    "switch.loss": ("plain", "vocabulary-parallel cross-entropy in separate kernels"),
    "switch.overlap-tp": ("off", "the engine has none"),
    "switch.offload-activations": ("off", "checkpoint_in_cpu is false"),
    "switch.partition-activations": ("off", "partition_activations is false"),
}  # fmt: skip


def claim(sources: Sources) -> Claim | None:
    """NeoX's own pair of names, with a dash or an underscore."""
    for name, text in sources.with_suffix(".yml", ".yaml").items():
        keys = {key.replace("-", "_") for key in keys_of(text)}
        if {"pipe_parallel_size", "model_parallel_size"} <= keys:
            return Claim(engine=ENGINE, strength=80, why=f"GPT-NeoX settings in {name}")
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """All YAML files, merged in the order given."""
    tree = Tree()
    for name, text in sources.with_suffix(".yml", ".yaml").items():
        tree.update(_normal(_lax(text, name)))
    apply(tree, _TABLE, job)
    _precision(tree, job)
    _model(tree, job)
    _other(tree, job)
    fall_back(job, _DEFAULTS)
    _batch(tree, job)
    _states(tree, job)


def _lax(text: str, name: str) -> Tree:
    """NeoX writes Python's words and commas into YAML; both are read."""
    try:
        return yaml_tree(text, name)
    except DataError:
        lines = (line.rstrip().removesuffix(",") for line in text.splitlines())
        return yaml_tree("\n".join(lines), name)


def _normal(tree: Tree) -> Tree:
    """A dash in a name is an underscore."""
    normal = Tree()
    for key, entry in tree.entries.items():
        normal.put(Entry(key=key.replace("-", "_"), value=entry.value, place=entry.place))
    return normal


def _precision(tree: Tree, job: JobBuilder) -> None:
    for key in ("fp16.enabled", "fp16.fp16", "bf16.enabled"):
        if truth_of(tree, key) and not tree.has("precision", "fp16.type"):
            job.state("precision", key.partition(".")[0], tree.place(key))
    said = [truth_of(tree, key) for key in ("fp16.enabled", "bf16.enabled")]
    if job.number("precision") is None and False in said and True not in said:
        job.default("precision", "fp32", "16-bit arithmetic is switched off")


def _model(tree: Tree, job: JobBuilder) -> None:
    activation = (word_of(tree, "activation") or "gelu").lower()
    kind = tree.value("mlp_type")
    hidden, place = job.number("model.hidden"), tree.place("intermediate_size", "hidden_size")
    if kind is not None:
        gated = word_of(tree, "mlp_type") in ("gated", "llama")
        job.state("model.gated", gated, tree.place("mlp_type"))
        if gated:
            _llama_width(tree, job)
            return
    gated = activation in _GATED
    if "activation" in tree.entries and kind is None:
        job.state("model.gated", gated, tree.place("activation"))
    elif kind is None:
        job.default("model.gated", False, "activation is gelu")
    width = size_of(tree, "intermediate_size")
    if width is None and hidden and not tree.has("expansion_factor"):
        width = 4 * hidden
    if width is None:
        return
    step = size_of(tree, "mlp_multiple_of") or 1
    inner = int(width * 2 / 3) // 2 if gated else width
    rounded = step * -(-inner // step)
    why = f"{width} * 2/3 / 2 to a multiple of {step}" if gated else f"to a multiple of {step}"
    if not tree.has("intermediate_size"):
        why = f"4h = {width}, {why}"
    job.derive("model.ffn", rounded, why, place)


def _llama_width(tree: Tree, job: JobBuilder) -> None:
    """The gated part of releases that name it: 2/3 of 4h, up to a multiple."""
    hidden, step = job.number("model.hidden"), size_of(tree, "mlp_multiple_of")
    if hidden is None or step is None or tree.has("intermediate_size"):
        job.ask("model.ffn", "mlp_type of a release or fork that is not known",
                "give the inner width of the feed-forward part")  # fmt: skip
        return
    job.derive("model.ffn", step * -(-int(2 * 4 * hidden / 3) // step),
               f"8/3 * {hidden} up to a multiple of {step}",
               tree.place("mlp_multiple_of"))  # fmt: skip


def _other(tree: Tree, job: JobBuilder) -> None:
    heads = job.number("model.heads")
    if heads is not None:
        job.default("model.kv_heads", heads, "num_kv_heads is num_attention_heads")
    hidden = job.number("model.hidden")
    if heads and hidden and hidden % heads == 0:
        job.derive("model.head_dim", hidden // heads, f"{hidden} / {heads}")
    if job.number("pp") == 0:
        job.state("pp", 1, tree.place("pipe_parallel_size"), override=True)
    biases = {truth_of(tree, key) is not False
              for key in ("use_bias_in_attn_linear", "use_bias_in_mlp")}  # fmt: skip
    if len(biases) == 1:
        stated = tree.has("use_bias_in_attn_linear", "use_bias_in_mlp")
        place = tree.place("use_bias_in_attn_linear", "use_bias_in_mlp")
        if stated:
            job.state("model.bias", biases.pop(), place)
        else:
            job.default("model.bias", True, "projections have biases")
    experts = job.number("model.experts")
    if experts and (top := size_of(tree, "moe_top_k")):
        job.state("model.top_k", top, tree.place("moe_top_k"))
    _sequence_parallel(tree, job)
    _recompute(tree, job)
    _attention(tree, job)


def _sequence_parallel(tree: Tree, job: JobBuilder) -> None:
    said = truth_of(tree, "sequence_parallel")
    tp = job.number("tp") or 1
    if said is None:
        job.default("sp", False, "sequence_parallel is false")
    else:
        job.state("sp", said and tp > 1, tree.place("sequence_parallel"))


def _recompute(tree: Tree, job: JobBuilder) -> None:
    said = truth_of(tree, "checkpoint_activations")
    if said is None:
        job.default("recompute", "none", "checkpoint_activations is false")
        return
    job.state("recompute", "full" if said else "none", tree.place("checkpoint_activations"))
    layers, stages = job.number("model.layers"), job.number("pp") or 1
    if said and layers and layers % stages == 0:
        job.derive("rlayers", layers // stages, f"all of {layers} layers on {stages} stages")
    if not said:
        job.drop("switch.partition-activations")
        job.default("switch.partition-activations", "off", "nothing is checkpointed")


def _attention(tree: Tree, job: JobBuilder) -> None:
    """``[[["flash"], 24]]``: kinds of attention and their layers."""
    value = tree.value("attention_config")
    if unset(value):
        job.default("switch.attention", "eager", "attention_config is global")
        return
    kinds = {str(kind) for group in value if isinstance(group, list) and group
             for kind in (group[0] if isinstance(group[0], list) else [group[0]])
             } if isinstance(value, list) else set()  # fmt: skip
    place = tree.place("attention_config")
    if kinds and kinds <= {"flash", "ring"}:
        job.state("switch.attention", "fused", place)
    elif kinds == {"global"}:
        job.state("switch.attention", "eager", place)
    else:
        job.not_understood(place, f"kinds of attention: {', '.join(sorted(kinds))}")


def _batch(tree: Tree, job: JobBuilder) -> None:
    if job.number("mbs") is not None or job.number("global_batch") is None:
        job.default("accumulation", 1, "gradient_accumulation_steps is 1")


def _states(tree: Tree, job: JobBuilder) -> None:
    kind = job.get("precision")
    if kind not in ("fp16", "bf16"):
        return
    whole = str(tree.value("data_types.grad_accum_dtype") or "").lower() in ("fp32", "float32")
    job.default("state.weight", 2, f"{kind} weights")
    job.default("state.gradient", 4 if whole else 2, "grad_accum_dtype" if whole else kind)
    job.default("state.master", 4, "fp32 copy of the weights")
    if job.get("optimizer") == "adamw":
        job.default("state.moments", 8, "two fp32 moments")


READERS = (Reader(kind="GPT-NeoX", engines=(ENGINE,), claim=claim, read=read),)
