"""MindSpeed-LLM's own FSDP2 trainer: a YAML file, and options of the command that win over it.

Names and defaults are those of ``mindspeed_llm/fsdp2/utils/arguments.py`` (August 2026).
"""

from __future__ import annotations

from krzem.jobs.documents import yaml_tree
from krzem.jobs.job import JobBuilder
from krzem.jobs.launches import Start, starts_of, state_machine
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.spellings import FSDP2
from krzem.jobs.tree import (
    KEPT,
    Defaults,
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
    truth,
    truth_of,
    word,
    words,
)

ENGINE = "mindspeed-llm"
_PROGRAM = r"(^|/)train_fsdp2\.py$"
TYPES = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}


def name_of(value: object) -> Found:
    """The last part of a path is the name of the model."""
    return {"model.name": word(value).rstrip("/").rpartition("/")[2] or word(value)}


def recompute_of(value: object) -> Found:
    """Whole layers again, or none."""
    return {"recompute": "full" if truth(value) else "none"}


def _balanced(value: object) -> Found:
    return {"switch.routing": "balanced"} if truth(value) else {}


def _chunked(value: object) -> Found:
    return {"switch.loss": "chunked"}


_TABLE = Table(
    keys={
        "model.model_name_or_path": Read(("model.name",), name_of),
        "model.quant_recipe_name": words("precision", {"mxfp8": "mxfp8"}),
        "data.cutoff_len": count("seq"),
        "parallel.tp_size": count("tp"),
        "parallel.cp_size": count("cp"),
        "parallel.cp_type": words(
            "cpkind", {"ulysses": "a2a", "ring": "ring", "kvallgather": "allgather"}
        ),
        "parallel.ep_size": count("ep"),
        "parallel.fsdp_size": KEPT,
        "parallel.reshard_after_forward": KEPT,
        "parallel.param_dtype": words("precision", TYPES),
        "parallel.recompute": Read(("recompute",), recompute_of),
        "training.per_device_train_batch_size": count("mbs"),
        "training.gradient_accumulation_steps": count("accumulation"),
        "training.max_steps": positive("train_steps"),
        "training.optimizer": words(
            "optimizer", {"adamw": "adamw", "fused_adamw": "adamw", "muon": "muon"}
        ),
        "training.stage": words("finetune", {"pt": "none", "sft": "full"}),
        "optimization.use_flash_attn": switch("attention", "fused", "eager"),
        "optimization.chunk_loss_size": Read(("switch.loss",), _chunked),
        "optimization.fix_router": Read(("switch.routing",), _balanced),
    },
    ignored=(r"(model|data|training|optimization)\..*",
             r"parallel\.(fsdp_|ignored_|hook_|ep_|tp_col|tp_row|num_to_|reduce_dtype|recompute_mod"
             r"|shard_pl|efsdp).*"),
)  # fmt: skip
_DEFAULTS: Defaults = {
    "tp": (1, "parallel.tp_size 1"),
    "cp": (1, "parallel.cp_size 1"),
    "pp": (1, "this trainer has no pipeline"),
    "vpp": (1, "this trainer has no pipeline"),
    "ep": (1, "parallel.ep_size 1"),
    "mbs": (8, "training.per_device_train_batch_size 8"),
    "accumulation": (1, "training.gradient_accumulation_steps 1"),
    "seq": (2048, "data.cutoff_len 2048"),
    "recompute": ("none", "parallel.recompute false"),
    "precision": ("bf16", "parallel.param_dtype bf16"),
    "optimizer": ("adamw", "training.optimizer adamw"),
    "finetune": ("full", "training.stage sft"),
    "offload": (False, "optimizer states stay on the device"),
}


def claim(sources: Sources) -> Claim | None:
    """Its program is started, or a YAML file holds its tables."""
    if starts_of(sources).find(_PROGRAM):
        return Claim(engine=ENGINE, strength=100, why="train_fsdp2.py is started")
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if "fsdp_modules:" in text and "parallel:" in text and "training:" in text:
            return Claim(engine=ENGINE, strength=80, why=f"MindSpeed-LLM's FSDP2 tables in {name}")
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """The YAML that the command names (or all given), then the command's options."""
    start = next(iter(starts_of(sources).find(_PROGRAM)), None)
    tree = Tree()
    job.front = FSDP2
    for name in _files(sources, start):
        tree.update(yaml_tree(sources.files[name], name))
    if start is not None:
        tree.update(start.options)
    apply(tree, _TABLE, job)
    fall_back(job, _DEFAULTS)
    if (job.number("cp") or 1) > 1:
        job.default("cpkind", "a2a", "parallel.cp_type ulysses")
    else:
        job.drop("cpkind")
    _shards(tree, job)
    if job.get("finetune") == "full" and not truth_of(tree, "data.packing", "data.neat_packing"):
        job.drop("seq")
        job.ask("seq", "data.cutoff_len is the longest sample, not the mean", "give the mean")
    state_machine(job, start, sources)


def _files(sources: Sources, start: Start | None) -> list[str]:
    named = [] if start is None else [sources.find(word.text) for word in start.loose]
    found = [name for name in named if name is not None and name.endswith((".yaml", ".yml"))]
    return found[:1] or list(sources.with_suffix(".yaml", ".yml"))


def _shards(tree: Tree, job: JobBuilder) -> None:
    """Ranks that share one copy of weights, gradients and states."""
    size = number(tree, "parallel.fsdp_size") if tree.has("parallel.fsdp_size") else 1
    place = tree.place("parallel.fsdp_size")
    if size is None or size < 1:
        return
    kept = truth_of(tree, "parallel.reshard_after_forward") is False
    level = 0 if size == 1 else 2 if kept else 3
    job.derive("zero", level, f"fsdp_size {size}, weights {'kept' if kept else 'freed'}", place)
    if size > 1:
        job.state("shard", size, place)


READERS = (Reader(kind="MindSpeed-LLM FSDP2", engines=(ENGINE,), claim=claim, read=read),)
