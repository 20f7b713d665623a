"""NxD Training of AWS Neuron: one YAML file with NeMo's names and a table of its own strategy.

Defaults are those of ``neuronx_distributed_training`` (``distributed_strategy`` stands for what
NeMo keeps under ``model``).
"""

from __future__ import annotations

import re

from krzem.errors import InputError
from krzem.jobs.documents import yaml_tree
from krzem.jobs.job import JobBuilder
from krzem.jobs.nemo import read_settings
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe
from krzem.jobs.tree import Defaults, Tree, fall_back, number, truth_of, word_of

ENGINE = "neuron"
_OWN = re.compile(
    r"precision\.type|model\.fusions\.flash_attention"
    r"|distributed_strategy\.(zero1|sequence_parallel)"
)
_PLAIN = re.compile(
    r"precision\.(?!type).*|model\.fusions\.(?!flash_attention).*|model_source|compiler_.*"
    r"|distributed_strategy\.(kv_replicator|.*_init|pipeline_cuts)|a?sync_exec.*|aync_exec.*"
    r"|bucket_size.*|neuron_.*"
)
_TYPES = {"mixed_precision": "bf16", "mixed_precisionSR": "bf16", "bf16SR": "bf16",
          "autocast": "bf16", "fp32": "fp32"}  # fmt: skip
_DEFAULTS: Defaults = {
    "cp": (1, "context_parallel_size is 1"),
    "ep": (1, "expert_model_parallel_size is 1"),
    "zero": (0, "distributed_strategy.zero1 is not set"),
    "optimizer": ("adamw", "optim.name is adamw"),
}


def claim(sources: Sources) -> Claim | None:
    """The strategy's table beside a trainer and a model."""
    name = _file(sources)
    if name is None:
        return None
    return Claim(engine=ENGINE, strength=85, why=f"NxD Training's distributed_strategy in {name}")


def _file(sources: Sources) -> str | None:
    return sources.first(_has_strategy, ".yaml", ".yml")


def _has_strategy(text: str) -> bool:
    tops = set(re.findall(r"^(\w+):", text, re.M))
    return {"distributed_strategy", "trainer", "model"} <= tops


def read(sources: Sources, job: JobBuilder) -> None:
    """The file's settings: NeMo's names, then the strategy's and the precision's own."""
    name = _file(sources)
    if name is None:
        raise InputError("no given file holds a distributed_strategy beside a trainer and a model")
    tree = yaml_tree(sources.files[name], name)
    read_settings(_as_nemo(tree, job), job)
    if truth_of(tree, "distributed_strategy.zero1"):
        job.state("zero", 1, tree.place("distributed_strategy.zero1"), override=True)
    sequence = truth_of(tree, "distributed_strategy.sequence_parallel")
    if sequence is not None:
        on = sequence and (job.number("tp") or 1) > 1
        job.state("sp", on, tree.place("distributed_strategy.sequence_parallel"), override=True)
    kind = _TYPES.get(word_of(tree, "precision.type") or "")
    if kind is not None:
        job.state("precision", kind, tree.place("precision.type"), override=True)
    flash = truth_of(tree, "model.fusions.flash_attention")
    if flash is not None:
        place = tree.place("model.fusions.flash_attention")
        job.state("switch.attention", "fused" if flash else "eager", place, override=True)
    top = number(tree, "model.moe.top_k")
    if top and job.number("model.experts"):
        job.state("model.top_k", top, tree.place("model.moe.top_k"))
    fall_back(job, _DEFAULTS)
    describe(sources, job)


def _as_nemo(tree: Tree, job: JobBuilder) -> Tree:
    """Without the keys that are read here, or that say nothing about time or memory."""
    rest = Tree()
    for key, entry in tree.entries.items():
        if _PLAIN.fullmatch(key):
            job.ignore(entry.place, "a choice of the compiler or of kernels")
        elif not _OWN.fullmatch(key):
            rest.put(entry)
    return rest


READERS = (Reader(kind="NxD Training", engines=(ENGINE,), claim=claim, read=read),)
