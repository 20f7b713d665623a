"""LLM Foundry and OLMo: YAML files in the words of MosaicML's Composer, over PyTorch's FSDP.

Defaults are those of ``llmfoundry/models/mpt/configuration_mpt.py``, of Composer's ``FSDPConfig``
and of ``olmo/config.py``.
"""

from __future__ import annotations

import re

from krzem.jobs.job import JobBuilder
from krzem.jobs.trainer import ask_length
from krzem.jobs.trainer_keys import optimizer_of
from krzem.jobs.tree import (
    KEPT,
    Defaults,
    Found,
    Open,
    Read,
    Table,
    Tree,
    UnclearError,
    count,
    fall_back,
    number,
    positive,
    real,
    some,
    switch,
    text,
    truth,
    truth_of,
    unset,
    word,
    word_of,
    words,
    yes_no,
)

_PRECISIONS = {"amp_bf16": "bf16", "amp_fp16": "fp16", "amp_fp8": "fp8", "fp32": "fp32"}
_STRATEGIES = {"full_shard": 3, "shard_grad_op": 2, "no_shard": 0, "hybrid_shard": 3,
               "_hybrid_shard_zero2": 2}  # fmt: skip


def optimizer(value: object) -> Found:
    """An optimizer by its name or class."""
    return {"optimizer": optimizer_of(word(value).rpartition(".")[2])}


def _recompute(value: object) -> Found:
    kinds = {"whole_layer": "full", "fine_grained": "modules"}
    if isinstance(value, str) and value in kinds:
        return {"recompute": kinds[value]}
    if isinstance(value, str) and value in _RATES:
        return {}
    return {"recompute": "full" if truth(value) else "none"}


def _micro_batch(value: object) -> Found:
    if value == "auto":
        raise UnclearError("auto: the largest that fits")
    return count("mbs").parse(value)


def _attention(value: object) -> Found:
    return {"switch.attention": "eager" if word(value).lower() in ("torch", "eager") else "fused"}


def _loss(value: object) -> Found:
    return {"switch.loss": "fused" if "fused" in word(value).lower() else "plain"}


_NO_BIAS = Read(("model.bias",), lambda value: {"model.bias": not truth(value)})
_FUSED = Read(("switch.attention",),
              lambda value: {"switch.attention": "fused"} if truth(value) else {})  # fmt: skip
_MODEL = {
    "d_model": count("model.hidden"), "n_layers": count("model.layers"),
    "n_heads": count("model.heads"), "vocab_size": count("model.vocab"),
    "n_kv_heads": positive("model.kv_heads"), "mlp_hidden_size": KEPT, "mlp_ratio": KEPT,
    "expansion_ratio": KEPT, "name": KEPT, "pretrained": KEPT, "weight_tying": yes_no("model.tied"),
    "tie_word_embeddings": yes_no("model.tied"), "include_bias": yes_no("model.bias"),
    "no_bias": _NO_BIAS, "alibi": KEPT, "rope": KEPT, "learned_pos_emb": KEPT,
    "multi_query_attention": KEPT, "attention_layer_norm": yes_no("model.qk_norm"),
    "activation_type": KEPT, "flash_attention": _FUSED, "use_flash_attention_2": _FUSED,
    "moe_num_experts": some("model.experts", 2), "moe_top_k": positive("model.top_k"),
    "attn_config.attn_impl": Read(("switch.attention",), _attention),
    "attn_config.kv_n_heads": positive("model.kv_heads"), "attn_config.attn_type": KEPT,
    "attn_config.alibi": KEPT, "attn_config.rope": KEPT,
    "attn_config.qk_ln": yes_no("model.qk_norm"),
    "attn_config.sliding_window_size": positive("model.window"),
    "ffn_config.ffn_type": KEPT, "ffn_config.mlp_type": KEPT,
    "ffn_config.ffn_hidden_size": positive("model.ffn"),
    "ffn_config.moe_num_experts": some("model.experts", 2),
    "ffn_config.moe_top_k": positive("model.top_k"),
    "ffn_config.moe_world_size": positive("ep"),
    "loss_fn": Read(("switch.loss",), _loss),
    "pretrained_model_name_or_path": text("model.name"),
    "peft_config.peft_type": KEPT, "peft_config.r": KEPT,
    "config_overrides.num_hidden_layers": count("model.layers"),
    "config_overrides.hidden_size": count("model.hidden"),
    "config_overrides.intermediate_size": count("model.ffn"),
    "config_overrides.num_attention_heads": count("model.heads"),
    "config_overrides.num_key_value_heads": positive("model.kv_heads"),
    "config_overrides.attn_config.attn_impl": Read(("switch.attention",), _attention),
}  # fmt: skip
TABLE = Table(
    keys={
        **{f"model.{name}": read for name, read in _MODEL.items()},
        "max_seq_len": count("seq"), "model.max_sequence_length": count("seq"),
        "model.max_seq_len": KEPT,
        "global_train_batch_size": count("global_batch"),
        "device_train_microbatch_size": Read(("mbs",), _micro_batch),
        "device_train_batch_size": KEPT, "max_duration": KEPT, "distributed_strategy": KEPT,
        "precision": words("precision", _PRECISIONS),
        "optimizer.name": Read(("optimizer",), optimizer),
        "activation_checkpointing": Read(("recompute",), _recompute),
        "compile": KEPT, "compile.mode": KEPT, "compile.fullgraph": KEPT, "compile.backend": KEPT,
        "compile_config.mode": KEPT, "fused_loss": Read(("switch.loss",), lambda value: {
            "switch.loss": "fused" if truth(value) else "plain"}),
        "fsdp_config.sharding_strategy": KEPT, "fsdp.sharding_strategy": KEPT,
        "fsdp_config.activation_checkpointing": Read(("recompute",), _recompute),
        "fsdp_config.activation_cpu_offload": switch("offload-activations"),
        "fsdp_config.mixed_precision": KEPT, "fsdp.precision": KEPT, "fsdp.wrapping_strategy": KEPT,
        "n_gpus": positive("devices"), "compute.gpus": positive("devices"),
    },
    ignored=(
        r"(optimizer|scheduler|algorithms|callbacks|loggers|tokenizer|train_loader|eval_loaders?"
        r"|variables|wandb|speed_monitor|data|evaluators|icl_tasks.*|integrations|image|command"
        r"|name|compute|scheduling|metadata|env_variables)(\..*)?",
        r"(run_name|seed|global_seed|save_.*|load_.*|eval_.*|device_eval.*|autoresume|dist_timeout"
        r"|progress_bar|.*log.*|python_.*|torch_prof.*|max_grad_norm.*|softmax_aux.*|auxiliary_.*"
        r"|sharded_checkpointer|dry_run|no_pre_train.*|time_limit|stop_.*|extra_steps.*|gen1_gc.*"
        r"|canceled_check.*|epoch|remote_save.*|restore_.*|fast_forward.*|reset_.*|data_local"
        r"|data_remote|tokenizer_name|expandable_segments|icl_.*|model_name_or_path|force_save.*"
        r"|module_outputs.*|hf_datasets.*|early_stopping.*|code_paths|max_split.*"
        r"|device_train_grad_accum)",
        r"fsdp_config\.(limit_all.*|state_dict_type|verbose|backward_prefetch|load_.*|sync_.*"
        r"|activation_checkpointing_reentrant|use_orig_params|data_parallel_shard_degree)",
        r"fsdp\.use_orig_params",
        r"model\.(init_.*|.*dropout|.*pdrop|.*token_id|embedding_size|layer_norm.*|norm_.*|block_.*"
        r"|bias_for_layer.*|attention_layer_norm_with.*|rope_.*|alibi_bias.*|use_auth.*|scale_.*"
        r"|trust_.*|use_train.*|emb_init.*|embedding_fraction|clip_qkv|fc_type|logit_scale|moe_.*"
        r"|use_cache|additional_.*|precision|verbose|load_in_8bit|norm_after"
        r"|attn_config\.(alibi_bias.*|rope_.*|attn_pdrop|clip_qkv|softmax_.*|attn_uses.*|prefix.*)"
        r"|config_overrides\.(attn_config\.attn_uses.*|torch_dtype|max_.*|rope_.*|attn_pdrop)"
        r"|config_overrides|peft_config\..*|init_config\..*|ffn_config\.(moe|ffn)_.*)",
    ),
)  # fmt: skip
"""Keys of both; ``*_config`` and ``expansion_ratio`` are LLM Foundry's."""
FOUNDRY_DEFAULTS: Defaults = {
    "finetune": ("none", "no weights are loaded"),
    "recompute": ("none", "activation_checkpointing is false"),
    "switch.compile": ("off", "no compile_config"),
}
OLMO_DEFAULTS: Defaults = {
    "zero": (3, "fsdp.sharding_strategy is FULL_SHARD"),
    "finetune": ("none", "all weights are trained"),
    "recompute": ("none", "activation_checkpointing is null"),
    "switch.compile": ("off", "compile is null"),
    "switch.loss": ("plain", "fused_loss is false"),
}
_MPT_MODEL: Defaults = {
    "model.gated": (False, "ffn_type is mptmlp"),
    "model.tied": (True, "tie_word_embeddings is true"),
    "model.bias": (True, "no_bias is false"),
    "model.qk_norm": (False, "qk_ln is false"),
    "switch.loss": ("fused", "loss_fn is fused_crossentropy"),
}
_OLMO_MODEL: Defaults = {
    "model.tied": (True, "weight_tying is true"),
    "model.bias": (True, "include_bias is true"),
    "model.qk_norm": (False, "attention_layer_norm is false"),
}


_DURATION = re.compile(r"\s*([\d_.]+(?:[eE][+-]?\d+)?)\s*([a-zA-Z]*)\s*")


def _duration(tree: Tree, job: JobBuilder) -> None:
    """``63900ba`` are steps, ``1e12tok`` and ``2e12T`` tokens; epochs say neither."""
    value = tree.value("max_duration")
    found = None if isinstance(value, Open) else _DURATION.fullmatch(str(value))
    if found is None:
        return
    try:
        count = real(found[1].replace("_", ""))
    except UnclearError:
        return
    name = {"ba": "train_steps", "": "train_steps", "tok": "train_tokens", "T": "train_tokens"}
    if found[2] in name and count == int(count) and 1 <= count <= 1e18:
        job.state(name[found[2]], int(count), tree.place("max_duration"))


def _strategy(tree: Tree, job: JobBuilder) -> None:
    """The sharding of FSDP's table; without the table every rank holds the whole state."""
    table = next((t for t in ("fsdp_config", "fsdp") if tree.has(t)), None)
    if table is None:
        return
    place = tree.place(f"{table}.sharding_strategy")
    said = word_of(tree, f"{table}.sharding_strategy") or "FULL_SHARD"
    level = _STRATEGIES.get(said.rpartition(".")[2].lower())
    if level is None:
        job.ask("zero", f"sharding_strategy = {said[:40]} ({place})", "give 0, 2 or 3")
    elif place.line:
        job.state("zero", level, place)
    else:
        job.default("zero", level, "sharding_strategy is FULL_SHARD")


def _inner(tree: Tree, job: JobBuilder, ratio: str, usual: float, half: bool) -> None:
    """Width of the feed-forward block and of each expert."""
    _block_width(tree, job, ratio, usual, half)
    width = job.number("model.ffn")
    if job.number("model.experts") is not None and width is not None:
        job.derive("model.moe_ffn", width, "each expert has the width of the block")


def _block_width(tree: Tree, job: JobBuilder, ratio: str, usual: float, half: bool) -> None:
    """A multiple of the model's width; ``half`` of it after a gate."""
    hidden, value = job.number("model.hidden"), tree.value(ratio)
    if hidden is None or isinstance(value, Open) or job.number("model.ffn") is not None:
        return
    try:
        factor = usual if value is None else real(value)
    except UnclearError:
        return
    width = int(factor * hidden) // (2 if half else 1)
    if width >= 1:
        why = f"{factor:g} * {hidden}" + (" / 2: gate and value share it" if half else "")
        job.derive("model.ffn", width, why, tree.place(ratio))


def _positions(tree: Tree, job: JobBuilder, table: str) -> None:
    for key in ("alibi", "rope"):
        if truth_of(tree, f"{table}.{key}"):
            job.state("model.positions", key, tree.place(f"{table}.{key}"))


def equal_heads(job: JobBuilder) -> None:
    hidden, heads = job.number("model.hidden"), job.number("model.heads")
    if heads is not None:
        job.default("model.kv_heads", heads, "every head has its own keys and values")
    if hidden and heads and hidden % heads == 0:
        job.derive("model.head_dim", hidden // heads, f"{hidden} / {heads}")


def finish_foundry(tree: Tree, job: JobBuilder) -> None:
    _duration(tree, job)
    _strategy(tree, job)
    if not tree.has("fsdp_config"):
        job.default("zero", 0, "no fsdp_config: every rank holds the whole state")
    kind = (word_of(tree, "model.name") or "").lower()
    if kind == "mpt_causal_lm":
        _mpt(tree, job)
    elif truth_of(tree, "model.pretrained") is False:
        job.default("finetune", "none", "pretrained is false")
    elif tree.has("model.peft_config"):
        job.state("finetune", "lora", tree.place("model.peft_config.peft_type"))
    elif kind == "hf_causal_lm":
        job.default("finetune", "full", "pretrained weights, no adapter")
    loader = "train_loader.dataset"
    packed = not unset(tree.value(f"{loader}.packing_ratio"))
    if truth_of(tree, f"{loader}.allow_pad_trimming") and not packed:
        ask_length(job, number(tree, "max_seq_len"))


def _mpt(tree: Tree, job: JobBuilder) -> None:
    kind = (word_of(tree, "model.ffn_config.ffn_type") or "mptmlp").lower()
    place = tree.place("model.ffn_config.ffn_type")
    gated = kind == "mptglu" or (word_of(tree, "model.ffn_config.mlp_type") or "") == "glu"
    if place.line:
        job.derive("model.gated", gated, f"ffn_type is {kind[:20]}", place)
    _inner(tree, job, "model.expansion_ratio", 4.0, half=False)
    _positions(tree, job, "model.attn_config")
    if job.get("model.positions") is None and truth_of(tree, "model.learned_pos_emb") is not False:
        job.default("model.positions", "learned", "learned_pos_emb is true")
    if (word_of(tree, "model.attn_config.attn_type") or "").startswith("multiquery"):
        job.state("model.kv_heads", 1, tree.place("model.attn_config.attn_type"))
    equal_heads(job)
    fall_back(job, _MPT_MODEL)


def finish_olmo(tree: Tree, job: JobBuilder) -> None:
    _duration(tree, job)
    _strategy(tree, job)
    if (word_of(tree, "distributed_strategy") or "fsdp").lower() in ("ddp", "single"):
        job.drop("zero")
        job.state("zero", 0, tree.place("distributed_strategy"))
    if tree.any_below("compile"):
        place = next(iter(tree.sub("compile").entries.values())).place
        job.state("switch.compile", "on", place)
    _rate(tree, job)
    act = (word_of(tree, "model.activation_type") or "swiglu").lower()
    place = tree.place("model.activation_type")
    if place.line:
        job.state("model.gated", act == "swiglu", place)
    else:
        job.default("model.gated", True, "activation_type is swiglu")
    hidden = number(tree, "model.mlp_hidden_size")
    if hidden is not None and hidden > 1:
        inner = hidden // 2 if act == "swiglu" else hidden
        place = tree.place("model.mlp_hidden_size")
        job.derive("model.ffn", inner, f"mlp_hidden_size = {hidden}", place)
    _inner(tree, job, "model.mlp_ratio", 4.0, half=act == "swiglu")
    _positions(tree, job, "model")
    job.default("model.positions", "learned", "neither alibi nor rope")
    if truth_of(tree, "model.multi_query_attention"):
        job.state("model.kv_heads", 1, tree.place("model.multi_query_attention"))
    if not tree.has("model.n_kv_heads"):
        equal_heads(job)
    fall_back(job, _OLMO_MODEL)


_RATES = {"one_in_two": 2, "one_in_three": 3, "one_in_four": 4, "one_in_eight": 8}


def _rate(tree: Tree, job: JobBuilder) -> None:
    """``one_in_two``: every second layer is computed again."""
    said = str(tree.value("activation_checkpointing") or "")
    place = tree.place("activation_checkpointing")
    if said not in _RATES:
        return
    job.state("recompute", "full", place)
    layers, every = job.number("model.layers"), _RATES[said]
    if layers is not None:
        job.derive("rlayers", -(-layers // every), f"{layers} layers, {said}", place)
