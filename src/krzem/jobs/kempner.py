"""KempnerForge: a TOML file for a trainer on FSDP2."""

from __future__ import annotations

from krzem.errors import DataError
from krzem.jobs.documents import toml_tree
from krzem.jobs.job import JobBuilder
from krzem.jobs.launches import starts_of, state_machine
from krzem.jobs.priced import LLAMA, read_shape
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe
from krzem.jobs.tree import (
    KEPT,
    Defaults,
    Table,
    Tree,
    apply,
    count,
    fall_back,
    number,
    positive,
    switch,
    words,
)

ENGINE = "other"
_PRECISIONS = {"bf16": "bf16", "fp8": "fp8", "fp32": "fp32", "fp16": "fp16", "bfloat16": "bf16"}
_RECOMPUTE = {"none": "none", "full": "full", "selective": "modules"}

_TABLE = Table(
    keys={
        **{f"model.{name}": KEPT for name in LLAMA},
        "train.batch_size": count("mbs"),
        "train.seq_len": count("seq"),
        "train.max_steps": positive("train_steps"),
        "train.grad_accum_steps": count("accumulation"),
        "train.compile_model": switch("compile"),
        "train.mixed_precision": words("precision", _PRECISIONS),
        "train.activation_checkpointing": words("recompute", _RECOMPUTE),
        "optimizer.name": words("optimizer", {"adamw": "adamw", "muon": "muon", "lion": "lion"}),
        "distributed.dp_shard": KEPT,
        "distributed.dp_replicate": KEPT,
        "distributed.tp": count("tp"),
        "distributed.pp": count("pp"),
        "distributed.cp": count("cp"),
        "distributed.ep": count("ep"),
        "distributed.pp_schedule": words(
            "schedule", {"1f1b": "1f1b", "interleaved_1f1b": "interleaved"}
        ),
        "model.rope_theta": KEPT,
        "model.activation": KEPT,
        "model.norm_type": KEPT,
        "model.max_seq_len": KEPT,
    },
    ignored=(
        r"(optimizer|scheduler|data|checkpoint|metrics|profiling|eval|tokenizer|logging)(\..*)?",
        r"train\.(grad_clip_norm|seed|loss_fn|z_loss.*|shutdown.*|nccl.*)",
        r"distributed\.(nccl_timeout_sec|backend|.*timeout.*)",
        r"model\.(norm_eps|init_std|max_position.*|.*eps|moe_(aux|router|loss|capacity).*)",
    ),
)  # fmt: skip

_DEFAULTS: Defaults = {
    "tp": (1, "tp is 1"),
    "cp": (1, "cp is 1"),
    "pp": (1, "pp is 1"),
    "accumulation": (1, "grad_accum_steps is 1"),
    "precision": ("bf16", "mixed_precision is bf16"),
    "recompute": ("none", "activation_checkpointing is none"),
    "optimizer": ("adamw", "the optimizer is AdamW"),
    "finetune": ("none", "all weights are trained"),
    "offload": (False, "states stay on the device"),
    "model.tied": (False, "tie_embeddings is false"),
    "model.qk_norm": (False, "qk_norm is false"),
    "switch.attention": ("fused", "scaled_dot_product_attention"),
    "switch.compile": ("off", "compile_model is false"),
}


def claim(sources: Sources) -> Claim | None:
    """Its own pair of tables."""
    for name, text in sources.with_suffix(".toml").items():
        try:
            tree = toml_tree(text, name)
        except DataError:
            continue
        own = tree.has("train.grad_accum_steps", "train.compile_model", "train.mixed_precision")
        if own and tree.has("distributed") and tree.has("model.dim"):
            return Claim(engine=ENGINE, strength=80, why=f"KempnerForge's tables in {name}")
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """The first TOML file; the trainer is one that krzem has no description of."""
    tree = Tree()
    for name, text in sources.with_suffix(".toml").items():
        tree.update(toml_tree(text, name))
    job.note("the engine is KempnerForge, a trainer on PyTorch's FSDP2")
    apply(tree, _TABLE, job)
    read_shape(tree.sub("model"), job)
    _experts(tree, job)
    _shards(tree, job)
    if job.get("precision") == "fp8":
        job.default("switch.fp8-scaling", "tensor", "torchao's float8 scales by tensor")
    fall_back(job, _DEFAULTS)
    state_machine(job, next(iter(starts_of(sources).find(r"train\.py$")), None), sources)
    describe(sources, job)


def _experts(tree: Tree, job: JobBuilder) -> None:
    """Experts have the width of a dense layer, and drop nothing without a capacity."""
    if job.number("model.experts") is None:
        return
    top, width = number(tree, "model.moe_top_k"), job.number("model.ffn")
    if top:
        job.state("model.top_k", top, tree.place("model.moe_top_k"))
    if width and not tree.has("model.moe_expert_ffn_multiplier"):
        job.default("model.moe_ffn", width, "moe_expert_ffn_multiplier is 1")
    factor = tree.value("model.moe_capacity_factor")
    if isinstance(factor, int | float) and not isinstance(factor, bool):
        choice = "capacity" if factor > 0 else "real"
        job.state("switch.routing", choice, tree.place("model.moe_capacity_factor"))


def _shards(tree: Tree, job: JobBuilder) -> None:
    shard = number(tree, "distributed.dp_shard")
    copies = number(tree, "distributed.dp_replicate") or 1
    place = tree.place("distributed.dp_shard")
    if shard == 1:
        job.derive("zero", 0, "dp_shard is 1: weights are copied", place)
    else:
        job.derive("zero", 3, "FSDP2 drops weights after forward", place)
    if shard is not None and shard > 0:
        job.derive("dp", shard * copies, f"dp_replicate {copies} * dp_shard {shard}", place)
        job.same_data = job.number("ep") or 1
        if copies * job.same_data > 1 and shard > 1:
            job.derive("shard", shard, "dp_shard", place)


READERS = (Reader(kind="KempnerForge", engines=(ENGINE,), claim=claim, read=read),)
