"""Trainers over DeepSpeed, FSDP or Accelerate: what merged options decide beyond single keys."""

from __future__ import annotations

import re

from krzem.errors import shorten
from krzem.jobs.job import Basis, JobBuilder
from krzem.jobs.trainer_keys import GRAVE, TABLE, optimizer_of
from krzem.jobs.tree import (
    Defaults,
    Open,
    Tree,
    UnclearError,
    apply,
    fall_back,
    integer,
    listed,
    number,
    truth,
    truth_of,
    unset,
    word_of,
)

_ONE: Defaults = {
    "tp": (1, "no tensor parallelism"),
    "pp": (1, "no pipeline"),
    "cp": (1, "no sequence parallelism"),
    "ep": (1, "the Trainer spreads no experts"),
    "accumulation": (1, "gradient_accumulation_steps is 1"),
    "optimizer": ("adamw", "optim is AdamW"),
    "switch.compile": ("off", "torch_compile is false"),
}


def read_settings(tree: Tree, job: JobBuilder, tool: str) -> None:
    """Everything that the options decide; ``tool``: the program that gives the defaults."""
    apply(tree, TABLE, job, _grave(tree, job))
    _model(tree, job)
    _precision(tree, job)
    _sharding(tree, job)
    _optimizer(tree, job)
    _liger(tree, job)
    _tuning(tree, job)
    _length(tree, job)
    _recompute(tree, job, tool)
    _overrides(tree, job)
    _own_loop(tree, job)
    if tool == "axolotl":
        _axolotl(tree, job)
    _chat(tree, job)
    fall_back(job, _ONE)
    if tool == "llamafactory":
        job.default("switch.attention", "fused", "flash_attn is auto")
    _states(tree, job)


def _axolotl(tree: Tree, job: JobBuilder) -> None:
    """``bf16: auto`` is bf16 wherever the device has it; a plugin may stand in for the loss."""
    if str(tree.value("bf16")).lower() == "auto" and not _on(tree, "fp16"):
        why = "bf16: auto takes bf16 on a device that has it"
        job.derive("precision", "bf16", why, tree.place("bf16"))
    plugins = tree.value("plugins")
    if "CutCrossEntropyPlugin" in str(plugins) and job.get("switch.loss") is None:
        job.state("switch.loss", "chunked", tree.place("plugins"))


def _chat(tree: Tree, job: JobBuilder) -> None:
    """DeepSpeed-Chat builds DeepSpeed's settings from options and pads samples to one length."""
    stage, longest = number(tree, "zero_stage"), number(tree, "max_seq_len")
    if stage is not None and not tree.any_below("deepspeed"):
        job.state("zero", stage, tree.place("zero_stage"), override=True)
    if not tree.has("data_split", "data_output_path") or longest is None:
        return
    job.state("seq", longest, tree.place("max_seq_len"))
    job.default("precision", "fp16", "--dtype is fp16 in DeepSpeed-Chat")
    if truth_of(tree, "offload"):
        job.state("offload", True, tree.place("offload"), override=True)


_OFF = ("false", "0", "0.0", "1", "no", "[]")


def _grave(tree: Tree, job: JobBuilder) -> list[str]:
    """Keys of parallelism, precision or optimizers that no field here stands for."""
    found = [key for key in tree.entries if key not in TABLE.keys and GRAVE.search(key)]
    for key in found:
        entry = tree.entries[key]
        if unset(entry.value) or str(entry.value).strip().lower() in _OFF:
            job.ignore(entry.place, "switched off")
            continue
        why = f"{shorten(key, 80)} changes what a step costs in a way that is not modelled here"
        job.not_understood(entry.place, why)
        if re.search(r"use_(galore|apollo|badam|adam_mini)", key):
            job.ask("optimizer", f"{key} is set ({entry.place})", "name the optimizer")
    return found


_NAMES = ("model_name_or_path", "model", "base_model", "model_id_or_path",
          "pretrained_model_name_or_path", "model_dir", "model_name")  # fmt: skip


_FOLDER = re.compile(r"[/.~]|(models?|checkpoints?|ckpts?|weights|pretrained(_models)?)/")
"""How a path to a folder of weights begins; a Hub id names an organisation."""


def _model(tree: Tree, job: JobBuilder) -> None:
    """A Hub id as it stands; of a path its last part."""
    for key in _NAMES:
        entry = tree.entries.get(key)
        if entry is None or unset(entry.value):
            continue
        if isinstance(entry.value, Open):
            job.ask("model.name", f"{key} = {entry.value.text}", "give the model")
            return
        if isinstance(entry.value, str):
            path = entry.value.rstrip("/")
            name = path.rpartition("/")[2] if _FOLDER.match(path) else path
            job.state("model.name", name, entry.place)
            return
    kind = word_of(tree, "model_type")
    if kind is not None:
        job.state("model.name", kind, tree.place("model_type"))


def _on(tree: Tree, key: str) -> bool | None:
    value = tree.value(key)
    if isinstance(value, str) and value.lower() == "auto":
        return None
    return truth_of(tree, key)


_MIXED = {"bf16": "bf16", "fp16": "fp16", "fp8": "fp8", "no": "fp32", "bfloat16": "bf16",
          "float16": "fp16", "float32": "fp32"}  # fmt: skip


def _precision(tree: Tree, job: JobBuilder) -> None:
    """A trainer's own switches, Accelerate's, DeepSpeed's, then the type of the weights."""
    for key in ("fp8", "bf16", "fp16", "pure_bf16", "deepspeed.bf16.enabled",
                "deepspeed.fp16.enabled"):  # fmt: skip
        if _on(tree, key):
            kind = re.sub(r"pure_|deepspeed\.|\.enabled", "", key)
            job.state("precision", kind, tree.place(key), override=True)
            return
    for key in ("mixed_precision", "accelerate.mixed_precision", "torch_dtype", "dtype"):
        said = (word_of(tree, key) or "").rpartition(".")[2].lower()
        if said in _MIXED:
            job.state("precision", _MIXED[said], tree.place(key), override=True)
            return


_STRATEGIES = {"full_shard": 3, "shard_grad_op": 2, "no_shard": 0, "hybrid_shard": 3,
               "hybrid_shard_zero2": 2, "1": 3, "2": 2, "3": 0, "4": 3, "5": 2, "fsdp2": 3,
               "true": 3}  # fmt: skip


def _sharding(tree: Tree, job: JobBuilder) -> None:
    if job.number("zero") is not None:
        job.default("offload", False, "no offload of optimizer states")
        return
    _fsdp_words(tree, job)
    for prefix in ("accelerate.", "fsdp_config."):
        _fsdp_keys(tree, job, prefix)
    _mesh(tree, job)
    if job.engine == "fsdp":
        named = not unset(tree.value("fsdp"))
        if named or tree.any_below("fsdp_config") or tree.any_below("accelerate"):
            job.default("offload", False, "no offload of parameters")
        else:
            job.default("zero", 0, "every rank holds the whole state")
            job.default("offload", False, "states stay on the device")


_ROTATIONS = {"allgather": "allgather", "alltoall": "ring"}
"""Accelerate's words for how keys and values travel; its all-to-all is a rotation."""


def _mesh(tree: Tree, job: JobBuilder) -> None:
    """Accelerate's ``parallelism_config``: ranks of a sequence, shards and their copies."""
    key = "accelerate.parallelism_config.parallelism_config_"
    cp, shards = number(tree, f"{key}cp_size"), number(tree, f"{key}dp_shard_size")
    copies = number(tree, f"{key}dp_replicate_size")
    if cp is not None and cp > 0:
        job.state("cp", cp, tree.place(f"{key}cp_size"))
    if cp is not None and cp > 1:
        kind = _ROTATIONS.get((word_of(tree, f"{key}cp_comm_strategy") or "allgather").lower())
        if kind is not None:
            job.state("cpkind", kind, tree.place(f"{key}cp_comm_strategy", f"{key}cp_size"))
    if shards and copies and copies > 1:
        place = tree.place(f"{key}dp_shard_size")
        job.derive("shard", shards * (cp or 1), f"dp_shard_size = {shards} times cp", place)


def _liger(tree: Tree, job: JobBuilder) -> None:
    """``liger_kernel_config`` says which of Liger's kernels stand in; one of them is the loss."""
    said = tree.sub("liger_kernel_config")
    if not said.entries or not truth_of(tree, "use_liger_kernel"):
        return
    chunked, fused = (truth_of(said, n) for n in ("fused_linear_cross_entropy", "cross_entropy"))
    if chunked is None or fused is None:
        return
    choice = "chunked" if chunked else "fused" if fused else "plain"
    job.state("switch.loss", choice, next(iter(said.entries.values())).place, override=True)


def _fsdp_words(tree: Tree, job: JobBuilder) -> None:
    """``fsdp: full_shard auto_wrap offload``: the switch without which FSDP is off."""
    value, place = tree.value("fsdp"), tree.place("fsdp")
    if value is None or isinstance(value, Open | bool):
        return
    try:
        said = listed(value.replace(" ", ",")) if isinstance(value, str) else listed(value)
    except UnclearError:
        return
    for one in said:
        level = _STRATEGIES.get(one.lower())
        if level is not None:
            job.state("zero", level, place, override=True)
        if one == "offload":
            job.state("offload", True, place, override=True)


def _fsdp_keys(tree: Tree, job: JobBuilder, prefix: str) -> None:
    strategy = word_of(tree, f"{prefix}fsdp_sharding_strategy", f"{prefix}sharding_strategy")
    place = tree.place(f"{prefix}fsdp_sharding_strategy", f"{prefix}sharding_strategy")
    level = _STRATEGIES.get((strategy or "").lower())
    if level is not None:
        job.state("zero", level, place, override=True)
    for key in (f"{prefix}fsdp_reshard_after_forward", f"{prefix}reshard_after_forward"):
        value = word_of(tree, key) if isinstance(tree.value(key), str) else None
        level = _STRATEGIES.get((value or "").lower()) if value not in (None, "true") else None
        said = truth_of(tree, key)
        if level is not None or said is not None:
            kept = level if level is not None else 3 if said else 2
            job.state("zero", kept, tree.place(key), override=True)
    for key in (f"{prefix}fsdp_offload_params", f"{prefix}offload_params",
                f"{prefix}cpu_offload"):  # fmt: skip
        said = truth_of(tree, key)
        if said is not None and job.get("offload") is not True:
            job.state("offload", said, tree.place(key), override=True)
    for key in (f"{prefix}fsdp_activation_checkpointing", f"{prefix}activation_checkpointing"):
        if truth_of(tree, key):
            job.state("recompute", "full", tree.place(key), override=True)


def _optimizer(tree: Tree, job: JobBuilder) -> None:
    """DeepSpeed builds its own optimizer where its file names one."""
    said = word_of(tree, "deepspeed.optimizer.type")
    if said is None or said.lower() == "auto":
        return
    try:
        kind = optimizer_of(said)
    except UnclearError as error:
        job.not_understood(tree.place("deepspeed.optimizer.type"), str(error))
        return
    job.state("optimizer", kind, tree.place("deepspeed.optimizer.type"), override=True)


def _tuning(tree: Tree, job: JobBuilder) -> None:
    """Low-rank adapters, over weights of 4 bits or not; else the whole model."""
    bits = number(tree, "quantization_bit", "quant_bits")
    four = bits == 4 or truth_of(tree, "load_in_4bit")
    eight = bits == 8 or truth_of(tree, "load_in_8bit")
    kind = job.setting("finetune")
    if kind is not None and kind.value == "lora" and four:
        job.state("finetune", "qlora", kind.place, override=True)
    elif kind is not None and kind.value == "lora" and eight:
        job.drop("finetune")
        job.ask("finetune", f"adapters over weights of 8 bits ({kind.place})", "lora or qlora")
    if kind is not None:
        return
    named = any(not unset(tree.value(k)) for k in _NAMES)
    if named:
        job.default("finetune", "full", "no adapter: all weights are trained")
    elif not unset(tree.value("model_type")):
        job.default("finetune", "none", "model_type without weights: from scratch")


_LENGTHS = ("max_length", "cutoff_len", "max_seq_length", "max_seq_len", "sequence_len")


def _length(tree: Tree, job: JobBuilder) -> None:
    """A largest length is the length only where samples are packed to it."""
    keys = ("packing", "sample_packing", "neat_packing", "pad_to_sequence_len")
    packed = any(truth_of(tree, k) for k in keys)
    block = number(tree, "block_size")
    if block:
        job.state("seq", block, tree.place("block_size"))
        return
    for key in _LENGTHS:
        found = number(tree, key)
        if found and found > 0:
            if packed or word_of(tree, "stage") == "pt":
                job.state("seq", found, tree.place(key))
            else:
                ask_length(job, found)
            return


def ask_length(job: JobBuilder, longest: int | None) -> None:
    """Samples that are neither packed nor padded have a length that no file says."""
    job.drop("seq")
    said = "samples" if longest is None else f"samples of at most {longest} tokens"
    job.ask("seq", f"{said} are not packed", "give the mean number of tokens of a sample")


def _recompute(tree: Tree, job: JobBuilder, tool: str) -> None:
    if job.get("recompute") is not None:
        return
    if tool in ("llamafactory", "swift"):
        job.default("recompute", "full", f"{tool} checkpoints every layer unless told not to")
    else:
        job.default("recompute", "none", "gradient_checkpointing is false")


_GPT2 = {"n_embd": "hidden", "n_head": "heads", "n_layer": "layers", "vocab_size": "vocab"}


def _overrides(tree: Tree, job: JobBuilder) -> None:
    """``--config_overrides n_embd=..,n_head=..`` of the language-modelling script."""
    said, place = word_of(tree, "config_overrides"), tree.place("config_overrides")
    if said is None:
        return
    parts = dict(p.split("=", 1) for p in said.split(",") if p.count("=") == 1)
    for key, name in _GPT2.items():
        try:
            job.state(f"model.{name}", integer(parts[key]), place)
        except (KeyError, UnclearError):
            continue
    try:
        if "gradient_checkpointing" in parts:
            on = truth(parts["gradient_checkpointing"])
            job.state("recompute", "full" if on else "none", place, override=True)
        if "n_positions" in parts and job.number("seq") is None:
            longest = integer(parts["n_positions"])
            job.derive("seq", min(1024, longest), f"text is grouped in {longest}, at most 1024",
                       place)  # fmt: skip
    except UnclearError:
        pass
    if word_of(tree, "model_type") == "gpt2":
        _gpt2(job)


def _gpt2(job: JobBuilder) -> None:
    hidden, heads = job.number("model.hidden"), job.number("model.heads")
    if hidden and heads:
        job.default("model.ffn", 4 * hidden, "GPT-2: n_inner is 4 * n_embd")
        job.default("model.kv_heads", heads, "GPT-2")
        job.derive("model.head_dim", hidden // heads, f"{hidden} / {heads}")
    for name, value in (("gated", False), ("tied", True), ("bias", True)):
        job.default(f"model.{name}", value, "GPT-2")
    job.default("model.positions", "learned", "GPT-2")
    job.default("model.vocab", 50257, "GPT-2")


def _own_loop(tree: Tree, job: JobBuilder) -> None:
    """A loop of DeepSpeed alone takes its batch from the JSON file."""
    for key, field in (("deepspeed.train_micro_batch_size_per_gpu", "mbs"),
                       ("deepspeed.gradient_accumulation_steps", "accumulation"),
                       ("deepspeed.train_batch_size", "global_batch")):  # fmt: skip
        found = number(tree, key)
        if found and found > 0 and job.number(field) is None:
            job.state(field, found, tree.place(key))


def _states(tree: Tree, job: JobBuilder) -> None:
    kind, tuned = job.get("precision"), job.get("finetune")
    if job.engine != "deepspeed" or kind not in ("bf16", "fp16") or tuned not in ("full", "none"):
        return
    whole = str(tree.value("deepspeed.data_types.grad_accum_dtype") or "") in ("fp32", "float32")
    job.default("state.weight", 2, f"{kind} weights")
    job.default("state.gradient", 4 if whole else 2, "type of accumulated gradients")
    job.default("state.master", 4, "fp32 copy of the weights")
    setting = job.setting("optimizer")
    if setting is not None and setting.value == "adamw" and setting.basis is not Basis.DERIVED:
        job.default("state.moments", 8, "two fp32 moments")
