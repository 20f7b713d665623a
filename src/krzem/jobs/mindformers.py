"""MindFormers: one YAML file; a batch is counted by the runner, data-parallel ranks and pipeline.

Defaults are those of ``mindformers/trainer`` and ``models/llama/llama_config.py``.
"""

from __future__ import annotations

from krzem.jobs.documents import yaml_tree
from krzem.jobs.job import JobBuilder, Place
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.tree import (
    KEPT,
    Defaults,
    Entry,
    Open,
    Read,
    Table,
    Tree,
    UnclearError,
    apply,
    count,
    fall_back,
    listed,
    number,
    positive,
    real,
    some,
    switch,
    text,
    truth,
    truth_of,
    unset,
    word_of,
    words,
    yes_no,
)

ENGINE = "mindformers"
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
        "use_ring_attention": Read(("cpkind",), lambda v: {"cpkind": "ring"} if truth(v) else {}),
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


_TABLE = Table(
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
        "parallel_config.context_parallel_algo": words(
            "cpkind", {"colossalai_cp": "ring", "ring_cp": "ring", "ulysses_cp": "a2a"}),
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
        r"|profile_.*|init_start_profile|layer_scale|layer_decay|lr_scale_factor|remote_save_url"
        r"|lr_scale|device_num|print_separate_loss|balanced_load|use_legacy|use_graceful_exit"
        r"|remove_redundancy|check_for_nan_in_loss_and_grad|cur_layer_group|adam_.*|vocab_file)",
    ),
)  # fmt: skip

_DEFAULTS: Defaults = {
    "tp": (1, "model_parallel is 1"),
    "cp": (1, "context_parallel is 1"),
    "pp": (1, "pipeline_stage is 1"),
    "vpp": (1, "pp_interleave_num is 1"),
    "dp": (1, "data_parallel is 1"),
    "schedule": ("1f1b", "the pipeline's order"),
    "offload": (False, "optimiser states stay on the device"),
    "optimizer": ("adamw", "the optimiser is AdamW"),
    "model.mtp": (0, "mtp_depth is 0"),
    "model.tied": (False, "tie_word_embeddings is false"),
    "model.qk_norm": (False, "the model has none"),
    "model.positions": ("rope", "rotary positions"),
    "switch.attention": ("eager", "use_flash_attention is false"),
    "switch.offload-activations": ("off", "swap is off"),
    "switch.cuda-graphs": ("none", "there are none on this hardware"),
    "switch.loss": ("plain", "cross-entropy in separate kernels"),
}


def claim(sources: Sources) -> Claim | None:
    """MindFormers' own tables beside each other."""
    for name, content in sources.with_suffix(".yaml", ".yml").items():
        words_there = ("runner_config:", "parallel_config:", "model_config:")
        if all(word in content for word in words_there):
            return Claim(engine=ENGINE, strength=80, why=f"runner and parallel_config in {name}")
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """The YAML files in the order given, the later wins."""
    tree = Tree()
    for name, content in sources.with_suffix(".yaml", ".yml").items():
        tree.update(yaml_tree(content, name))
    apply(_chosen(tree), _TABLE, job)
    _batch(tree, job)
    _model(tree, job)
    _experts(tree, job)
    _shards(tree, job)
    _recompute(tree, job)
    _finetune(tree, job)
    fall_back(job, _DEFAULTS)
    _offsets(tree, job)
    tp = job.number("tp") or 1
    said = truth_of(tree, "parallel_config.use_seq_parallel")
    if said is None:
        job.default("sp", False, "use_seq_parallel is false")
    else:
        job.state("sp", said and tp > 1, tree.place("parallel_config.use_seq_parallel"))
    _states(tree, job)


def _chosen(tree: Tree) -> Tree:
    """``use_parallel: False`` runs on one device whatever the degrees say."""
    if truth_of(tree, "use_parallel") is not False:
        return tree
    place = tree.place("use_parallel")
    for name in ("data_parallel", "model_parallel", "pipeline_stage", "context_parallel"):
        key = f"parallel_config.{name}"
        tree.put(Entry(key=key, value=1, place=place))
    return tree


def _batch(tree: Tree, job: JobBuilder) -> None:
    """batch_size of the runner * dp * micro-batches of the pipeline * interleaved copies."""
    pp = job.number("pp") or 1
    copies = number(tree, "micro_batch_interleave_num") or 1
    pieces = number(tree, "parallel_config.micro_batch_num") or 1
    passes = number(tree, "runner_config.gradient_accumulation_steps") or 1
    if pp == 1:
        pieces = 1
    else:
        passes = 1
    place = tree.place("parallel_config.micro_batch_num",
                       "runner_config.gradient_accumulation_steps")  # fmt: skip
    job.derive("accumulation", pieces * copies * passes,
               f"micro-batches {pieces} * interleaved {copies} * accumulated {passes}", place)  # fmt: skip
    if copies > 1:
        job.state("switch.overlap-tp", "on", tree.place("micro_batch_interleave_num"))
        job.note(f"each micro-batch is computed in {copies} copies beside one another")


def _model(tree: Tree, job: JobBuilder) -> None:
    at = "model.model_config."
    kind = word_of(tree, f"{at}type") or ""
    act = (word_of(tree, f"{at}hidden_act") or "").lower()
    llama = kind in ("LlamaConfig", "DeepseekV3Config", "TelechatConfig", "DeepseekV2Config")
    if act:
        gated = act in ("swiglu", "silu", "swish", "fusedswiglu")
        job.state("model.gated", gated, tree.place(f"{at}hidden_act"))
    elif llama:
        job.default("model.gated", True, f"{kind} has SwiGLU")
    heads = job.number("model.heads")
    if llama and heads is not None:
        job.default("model.kv_heads", heads, "n_kv_heads is num_heads")
    hidden = job.number("model.hidden")
    if job.number("model.kv_lora_rank"):
        job.derive("model.attention", "mla", "keys and values have a latent rank")
    elif heads and hidden and hidden % heads == 0:
        job.derive("model.head_dim", hidden // heads, f"{hidden} / {heads}")
    if llama and hidden and job.number("model.ffn") is None:
        _inner_width(tree, job, hidden)
    _bias(tree, job)


def _inner_width(tree: Tree, job: JobBuilder, hidden: int) -> None:
    """4h, times the multiplier, times 2/3, up to a multiple."""
    key = "model.model_config.ffn_dim_multiplier"
    width: float = 4 * hidden
    step = number(tree, "model.model_config.multiple_of") or 256
    value = tree.value(key)
    if not unset(value):
        try:
            width = int((real(value) + 0.01) * width)
        except UnclearError:
            return
    rounded = step * -(-int(2 * width / 3) // step)
    job.derive("model.ffn", rounded, f"2/3 of {width:g} up to a multiple of {step}",
               tree.place(key, "model.model_config.multiple_of"))  # fmt: skip


def _bias(tree: Tree, job: JobBuilder) -> None:
    at = "model.model_config."
    keys = (f"{at}qkv_has_bias", f"{at}attention_bias")
    said = truth_of(tree, *keys)
    if said is not None:
        job.state("model.bias", said, tree.place(*keys))
    elif word_of(tree, f"{at}type") == "LlamaConfig":
        job.default("model.bias", False, "qkv_has_bias is false")


def _first(tree: Tree, *names: str) -> tuple[int | None, Place]:
    keys = [f"{at}{name}" for name in names for at in ("model.model_config.", "moe_config.")]
    return number(tree, *keys), tree.place(*keys)


def _experts(tree: Tree, job: JobBuilder) -> None:
    if job.number("model.experts") is None:
        return
    chosen, place = _first(tree, "num_experts_chosen", "num_experts_per_tok")
    if chosen:
        job.state("model.top_k", chosen, place)
    shared, place = _first(tree, "shared_expert_num", "n_shared_experts")
    width = job.number("model.moe_ffn")
    if shared is not None:
        job.state("model.shared_experts", shared, place)
        if width is not None:
            job.derive("model.shared_ffn", shared * width, f"{shared} * {width}", place)
    keys = [f"{at}use_gmm" for at in ("model.model_config.", "moe_config.")]
    if truth_of(tree, *keys):
        job.state("switch.routing", "real", tree.place(*keys))


def _shards(tree: Tree, job: JobBuilder) -> None:
    """Optimizer parallelism cuts weights, gradients and states over data-parallel ranks."""
    keys = ("parallel.enable_parallel_optimizer", "parallel_config.optimizer_shard")
    said, place = truth_of(tree, keys[0]), tree.place(*keys)
    if said is None:
        said = truth_of(tree, keys[1])
    if said is None:
        job.default("zero", 0, "enable_parallel_optimizer is false")
        return
    job.state("zero", 1 if said else 0, place)
    size = number(tree, "parallel.parallel_optimizer_config.optimizer_weight_shard_size")
    dp = job.number("dp") or 0
    if said and size and 0 < size < dp:
        job.derive("shard", size, f"optimizer_weight_shard_size of dp = {dp}", place)


def _recompute(tree: Tree, job: JobBuilder) -> None:
    full, some_of = (tree.value(f"recompute_config.{name}")
                     for name in ("recompute", "select_recompute"))  # fmt: skip
    place = tree.place("recompute_config.recompute")
    if isinstance(full, Open) or isinstance(some_of, Open):
        job.ask("recompute", "recompute_config is open", "say recompute=…")
    elif _counts(full):
        job.state("recompute", "full", place)
        layers = _counts(full)
        job.derive("rlayers", max(layers), f"the most of {layers} recomputed on a stage", place)
    elif isinstance(full, bool | str | list) and full not in (False, "False", []):
        job.state("recompute", "full", place)
    elif some_of not in (None, False, "False", []):
        at = tree.place("recompute_config.select_recompute")
        job.state("recompute", "modules", at)
        if isinstance(some_of, list) and all(isinstance(name, str) for name in some_of):
            job.state("recompute_modules", listed(some_of), at)
    elif full is None:
        job.default("recompute", "none", "recompute is false")
    else:
        job.state("recompute", "none", place)


def _counts(value: object) -> list[int]:
    """Layers of each stage that are recomputed, where a list of numbers says so."""
    flat = value[0] if isinstance(value, list) and value and isinstance(value[0], list) else value
    if isinstance(flat, list) and flat and all(type(n) is int for n in flat):
        return flat if any(flat) else []
    return []


def _finetune(tree: Tree, job: JobBuilder) -> None:
    mode = word_of(tree, "run_mode")
    start = tree.value("load_checkpoint")
    if job.get("finetune") is not None or mode is None:
        return
    if mode == "finetune":
        job.state("finetune", "full", tree.place("run_mode"))
    elif mode == "train" and unset(start):
        job.state("finetune", "none", tree.place("run_mode"))


def _offsets(tree: Tree, job: JobBuilder) -> None:
    """``offset`` adds layers to each stage."""
    layers, pp = job.number("model.layers"), job.number("pp")
    value = tree.value("model.model_config.offset")
    place = tree.place("model.model_config.offset")
    if value is None or value == 0 or not layers or not pp or pp == 1:
        return
    job.uneven = "offset gives each stage its number of layers"
    if isinstance(value, list) and len(value) == pp and all(type(n) is int for n in value):
        counts = [layers // pp + n for n in value]
        job.derive("first", counts[0], f"{layers} // {pp} + {value[0]}", place)
        job.derive("last", counts[-1], f"{layers} // {pp} + {value[-1]}", place)


def _states(tree: Tree, job: JobBuilder) -> None:
    at = "model.model_config."
    kind = word_of(tree, f"{at}param_init_type", f"{at}params_dtype", f"{at}param_init_dtype")
    place = tree.place(f"{at}param_init_type", f"{at}params_dtype", f"{at}param_init_dtype")
    if kind == "float32":
        for name, size in (("weight", 4), ("gradient", 4), ("master", 0), ("moments", 8)):
            job.derive(f"state.{name}", size, "weights and moments in float32", place)


READERS = (Reader(kind="MindFormers", engines=(ENGINE,), claim=claim, read=read),)
