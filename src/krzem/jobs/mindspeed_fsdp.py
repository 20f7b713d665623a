"""MindSpeed-LLM's FSDP2 trainer: a YAML file and options with a dot.

Defaults are those of ``mindspeed_llm/fsdp2/utils/arguments.py``.
"""

from __future__ import annotations

import math
import re

from krzem.jobs.documents import yaml_tree
from krzem.jobs.job import JobBuilder
from krzem.jobs.launches import starts_of, state_machine
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe
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
    truth,
    truth_of,
    word,
    word_of,
    words,
)

ENGINE = "mindspeed-llm"
_PROGRAM = r"train_fsdp2\.py$"
_CONTEXT = {"ulysses": "a2a", "ring": "ring", "kvallgather": "allgather"}
_TYPES = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32"}


def _name(value: object) -> Found:
    path = word(value).rstrip("/")
    local = path.startswith(("/", ".", "~"))
    return {"model.name": path.rpartition("/")[2] if local else path}


def _recompute(value: object) -> Found:
    return {"recompute": "full" if truth(value) else "none"}


def _stage(value: object) -> Found:
    return {"finetune": "none" if word(value) == "pt" else "full"}


_TABLE = Table(
    keys={
        "model.model_name_or_path": Read(("model.name",), _name),
        "model.quant_recipe_name": words("precision", {"mxfp8": "mxfp8"}),
        "data.cutoff_len": count("seq"),
        "parallel.tp_size": positive("tp"),
        "parallel.cp_size": positive("cp"),
        "parallel.cp_type": KEPT,
        "parallel.ep_size": positive("ep"),
        "parallel.ep_fsdp_size": KEPT,
        "parallel.fsdp_size": KEPT,
        "parallel.fsdp_modules": KEPT,
        "parallel.recompute": Read(("recompute",), _recompute),
        "parallel.param_dtype": words("precision", _TYPES),
        "parallel.reshard_after_forward": KEPT,
        "training.stage": Read(("finetune",), _stage),
        "training.per_device_train_batch_size": count("mbs"),
        "training.gradient_accumulation_steps": count("accumulation"),
        "training.max_steps": positive("train_steps"),
        "training.optimizer": words(
            "optimizer", {"adamw": "adamw", "fused_adamw": "adamw", "muon": "muon"}
        ),
    },
    ignored=(
        r"(data|training|model)\..*",
        r"parallel\.(.*_modules|num_to_.*|hook_.*|reduce_dtype|ep_dispatcher|fsdp_implementation"
        r"|tp_(col|row)wise|.*placement_fn|ignored_.*|chunk_.*|enable_chunk_batch)",
    ),
)

_DEFAULTS: Defaults = {
    "tp": (1, "tp_size is 1"),
    "cp": (1, "cp_size is 1"),
    "pp": (1, "the trainer has no pipeline"),
    "recompute": ("none", "recompute is false"),
    "accumulation": (1, "gradient_accumulation_steps is 1"),
    "precision": ("bf16", "param_dtype is bf16"),
    "optimizer": ("adamw", "the optimiser is AdamW"),
}


def claim(sources: Sources) -> Claim | None:
    """The trainer is started."""
    found = starts_of(sources).find(_PROGRAM)
    if found:
        return Claim(engine=ENGINE, strength=105, why=f"{found[0].program} is started")
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """The YAML file that is started, the command line over it."""
    start = next(iter(starts_of(sources).find(_PROGRAM)), None)
    tree = Tree()
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if re.search(r"^(parallel|training):", text, re.M):
            tree.update(yaml_tree(text, name))
    if start is not None:
        for key, entry in start.options.entries.items():
            if "." in key:
                tree.put(Entry(key=key, value=entry.value, place=entry.place))
        state_machine(job, start, sources)
    apply(tree, _TABLE, job)
    fall_back(job, _DEFAULTS)
    if (job.number("cp") or 1) > 1:
        kind = word_of(tree, "parallel.cp_type") or "ulysses"
        if kind in _CONTEXT:
            job.derive("cpkind", _CONTEXT[kind], kind, tree.place("parallel.cp_type"))
    _shards(tree, job)
    describe(sources, job)


def _shards(tree: Tree, job: JobBuilder) -> None:
    """``fsdp_size`` ranks share the weights; fewer than all of them leave copies."""
    size = number(tree, "parallel.fsdp_size") or 1
    place = tree.place("parallel.fsdp_size")
    kept = truth_of(tree, "parallel.reshard_after_forward") is False
    if size == 1:
        job.derive("zero", 0, "fsdp_size is 1", place)
        return
    job.derive("zero", 2 if kept else 3, f"weights are cut over fsdp_size = {size}", place)
    nodes, local = job.number("nodes"), job.number("devices_per_node")
    used = math.prod(job.number(n) or 1 for n in ("tp", "cp"))
    if nodes and local and size < nodes * local // used:
        job.derive("shard", size, f"fsdp_size of {nodes * local} devices", place)


READERS = (Reader(kind="MindSpeed-LLM on FSDP2", engines=(ENGINE,), claim=claim, read=read),)
