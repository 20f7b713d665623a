"""NeMo Automodel: YAML whose ``_target_`` names classes; FSDP2, Megatron-FSDP or copies.

Defaults are those of ``nemo_automodel/components/distributed``.
"""

from __future__ import annotations

import re

from krzem.jobs.documents import keys_of, yaml_tree
from krzem.jobs.job import JobBuilder
from krzem.jobs.launches import starts_of, state_machine
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe
from krzem.jobs.trainer_keys import optimizer_of
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
    number,
    positive,
    switch,
    text,
    truth,
    truth_of,
    word,
    word_of,
    words,
)

ENGINE = "fsdp"
_SCHEDULES = {"1f1b": "1f1b", "interleaved1f1b": "interleaved", "zbvzerobubble": "zb-v",
              "dualpipev": "dualpipev"}  # fmt: skip
_DISPATCH = {"hybridep": "hybridep", "deepep": "deepep", "torch": "alltoall",
             "alltoall": "alltoall", "uccl_ep": "deepep"}  # fmt: skip
_STRATEGIES = {"fsdp2": 3, "megatron_fsdp": 3, "ddp": 0, "fsdp": 3}


def _optimizer(value: object) -> Found:
    return {"optimizer": optimizer_of(word(value).rpartition(".")[2])}


def _recompute(value: object) -> Found:
    if isinstance(value, str) and value.lower() in ("selective", "full", "none"):
        kinds = {"selective": "modules", "full": "full", "none": "none"}
        return {"recompute": kinds[value.lower()]}
    return {"recompute": "full" if truth(value) else "none"}


def _attention(value: object) -> Found:
    return {"switch.attention": "eager" if word(value).lower() == "eager" else "fused"}


def _loss(value: object) -> Found:
    name = word(value).rpartition(".")[2].lower()
    if "linear" in name or "chunked" in name:
        return {"switch.loss": "chunked"}
    if "te" in name.split("parallel")[0] or "fused" in name:
        return {"switch.loss": "fused"}
    return {"switch.loss": "plain"}


def _balanced(value: object) -> Found:
    return {"switch.routing": "balanced" if truth(value) else "real"}


_DEGREES = {
    "tp_size": positive("tp"), "cp_size": positive("cp"), "pp_size": positive("pp"),
    "ep_size": positive("ep"), "dp_size": positive("dp"), "dp_replicate_size": KEPT,
    "dp_shard_size": KEPT, "sequence_parallel": KEPT, "strategy": KEPT, "_target_": KEPT,
    "activation_checkpointing": Read(("recompute",), _recompute),
    "zero_dp_strategy": positive("zero"),
    "pipeline.pp_schedule": words("schedule", _SCHEDULES),
    "pipeline.pp_microbatch_size": KEPT,
    "pipeline.layers_per_stage": KEPT,
    "pipeline.pp_batch_size": KEPT,
    "defer_fsdp_grad_sync": Read(
        ("switch.grad-sync",), lambda v: {"switch.grad-sync": "last" if truth(v) else "every"}
    ),
    "moe.reshard_after_forward": KEPT,
}  # fmt: skip
_TABLE = Table(
    keys={
        **{f"distributed.{name}": read for name, read in _DEGREES.items()},
        **{f"parallelizer.{name}": KEPT for name in ("activation_checkpointing",)},
        "autopipeline.pp_schedule": words("schedule", _SCHEDULES),
        "autopipeline.pp_microbatch_size": KEPT,
        "step_scheduler.global_batch_size": count("global_batch"),
        "step_scheduler.local_batch_size": KEPT,
        "step_scheduler.max_steps": positive("train_steps"),
        "step_scheduler.grad_acc_steps": count("accumulation"),
        "benchmark.num_nodes": count("nodes"),
        "dataset.seq_len": KEPT, "dataset.seq_length": KEPT,
        "packed_sequence.packed_sequence_size": KEPT,
        "model.pretrained_model_name_or_path": text("model.name"),
        "model.config.pretrained_model_name_or_path": text("model.name"),
        "model.config": text("model.name"),
        "model.torch_dtype": KEPT, "model.config.torch_dtype": KEPT,
        "model.attn_implementation": Read(("switch.attention",), _attention),
        "model.backend.attn": Read(("switch.attention",), _attention),
        "model.backend.dispatcher": words("switch.dispatcher", _DISPATCH),
        "model.backend.enable_deepep": KEPT,
        "model.backend.fake_balanced_gate": Read(("switch.routing",), _balanced),
        "model._target_": KEPT,
        "peft._target_": KEPT, "peft.dim": KEPT,
        "quantization.load_in_4bit": KEPT,
        "optimizer._target_": Read(("optimizer",), _optimizer),
        "loss_fn._target_": Read(("switch.loss",), _loss),
        "compile.enabled": switch("compile"),
        "fp8.enabled": KEPT, "fp8.recipe_name": KEPT,
        "model.load_in_4bit": KEPT,
        "recipe": KEPT,
    },
    ignored=(
        r"(seed|rng|ci|dist_env|checkpoint|dataset|validation_dataset|dataloader|lr_scheduler"
        r"|validation_dataloader|packed_sequence|benchmark|step_scheduler|optimizer|loss_fn|peft"
        r"|compile|model|distributed|wandb|mlflow|logging|profiling|clip_grad_norm|parallelizer"
        r"|autopipeline|quantization|fp8|nsys|slurm|nvtx|recipe|comet)(\..*)?",
    ),
)  # fmt: skip

_DEFAULTS: Defaults = {
    "tp": (1, "tp_size is 1"),
    "cp": (1, "cp_size is 1"),
    "pp": (1, "pp_size is 1"),
    "recompute": ("none", "activation_checkpointing is false"),
    "offload": (False, "no offload"),
    "switch.compile": ("off", "compile is not enabled"),
}


def claim(sources: Sources) -> Claim | None:
    """Classes of the engine, or its pair of tables."""
    for name, content in sources.with_suffix(".yaml", ".yml").items():
        keys = keys_of(content)
        own = "distributed" in keys or re.search(r"^[^#\n]*nemo_automodel", content, re.M)
        if {"step_scheduler", "local_batch_size"} <= keys and own:
            return Claim(engine=ENGINE, strength=85, why=f"Automodel's tables in {name}")
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """The YAML file and the command line's overrides."""
    tree = Tree()
    for name, content in sources.with_suffix(".yaml", ".yml").items():
        if "step_scheduler:" in content:
            tree.update(yaml_tree(content, name))
    start = next(iter(starts_of(sources).find(r"automodel|recipes|finetune\.py|pretrain")), None)
    if start is not None:
        for key, entry in start.options.entries.items():
            if "." in key:
                tree.put(Entry(key=key, value=entry.value, place=entry.place))
        state_machine(job, start, sources)
    _strings(tree)
    apply(tree, _TABLE, job)
    _batch(tree, job)
    _layout(tree, job)
    _precision(tree, job)
    _kind(tree, job)
    fall_back(job, _DEFAULTS)
    describe(sources, job)


def _strings(tree: Tree) -> None:
    """``none`` is null here."""
    for key, entry in list(tree.entries.items()):
        if isinstance(entry.value, str) and entry.value.lower() == "none":
            tree.put(Entry(key=key, value=None, place=entry.place))


def _batch(tree: Tree, job: JobBuilder) -> None:
    """The local batch is a rank's micro-batch; a pipeline cuts it into its own."""
    key = "step_scheduler.local_batch_size"
    local, pp = number(tree, key), job.number("pp") or 1
    keys = ("distributed.pipeline.pp_microbatch_size", "autopipeline.pp_microbatch_size")
    piece = number(tree, *keys)
    if pp > 1 and piece:
        job.state("mbs", piece, tree.place(*keys))
    elif pp == 1 and local:
        job.state("mbs", local, tree.place(key))
    packed = number(tree, "packed_sequence.packed_sequence_size")
    if packed and packed > 0:
        job.state("seq", packed, tree.place("packed_sequence.packed_sequence_size"))
        return
    kind = (word_of(tree, "dataset._target_") or "").lower()
    fixed = "mock" in kind or "nanogpt" in kind or "megatron" in kind
    padded = word_of(tree, "dataset.padding") == "max_length"
    for name in ("dataset.seq_len", "dataset.seq_length"):
        found = number(tree, name)
        if found and (fixed or padded or truth_of(tree, "dataset.pad_to_max_length")):
            job.state("seq", found, tree.place(name))
            return
    job.ask("seq", "samples of the data set have lengths of their own",
            "give the mean number of tokens of a sample")  # fmt: skip


def _layout(tree: Tree, job: JobBuilder) -> None:
    said = truth_of(tree, "distributed.sequence_parallel")
    if said is not None:
        tp = job.number("tp") or 1
        job.state("sp", said and tp > 1, tree.place("distributed.sequence_parallel"))
    name = word_of(tree, "distributed.strategy")
    made = (word_of(tree, "distributed._target_") or "").lower()
    for kind, level in _STRATEGIES.items():
        if name == kind or kind.replace("_", "") in made.rpartition(".")[2]:
            key = "distributed.strategy" if name else "distributed._target_"
            job.derive("zero", level, f"{name or made} shards weights", tree.place(key))
            break
    copies = number(tree, "distributed.dp_replicate_size")
    dp = job.number("dp")
    if copies and copies > 1 and dp and dp % copies == 0:
        place = tree.place("distributed.dp_replicate_size")
        job.derive("shard", dp // copies, f"dp {dp} / copies {copies}", place)
    if truth_of(tree, "model.backend.enable_deepep") and job.get("switch.dispatcher") is None:
        job.state("switch.dispatcher", "deepep", tree.place("model.backend.enable_deepep"))


_TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "bf16": "bf16"}


def _precision(tree: Tree, job: JobBuilder) -> None:
    if truth_of(tree, "fp8.enabled"):
        job.state("precision", "fp8", tree.place("fp8.enabled"))
        recipe = word_of(tree, "fp8.recipe_name") or "tensorwise"
        kind = "row" if recipe.startswith("rowwise") else "tensor"
        job.derive("switch.fp8-scaling", kind, recipe, tree.place("fp8.recipe_name"))
        return
    said = word_of(tree, "model.torch_dtype", "model.config.torch_dtype") or ""
    kind = _TYPES.get(said.rpartition(".")[2].lower(), "")
    if kind:
        place = tree.place("model.torch_dtype", "model.config.torch_dtype")
        job.state("precision", kind, place)


def _kind(tree: Tree, job: JobBuilder) -> None:
    """Adapters, the whole of a trained model, or a model made from its configuration."""
    made = word_of(tree, "model._target_") or ""
    if tree.any_below("peft"):
        four = truth_of(tree, "quantization.load_in_4bit") or truth_of(tree, "model.load_in_4bit")
        place = tree.place("peft._target_", "peft.dim")
        job.state("finetune", "qlora" if four else "lora", place)
    elif made.endswith("from_config"):
        job.derive("finetune", "none", made, tree.place("model._target_"))
    elif made.endswith("from_pretrained"):
        job.default("finetune", "full", "no adapter: all weights are trained")


READERS = (Reader(kind="Automodel", engines=(ENGINE,), claim=claim, read=read),)
