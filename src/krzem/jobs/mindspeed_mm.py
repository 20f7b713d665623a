"""MindSpeed-MM's FSDP2 trainer: one YAML file.

Names and defaults are those of ``mindspeed_mm/fsdp/params`` (August 2026).
"""

from __future__ import annotations

from krzem.jobs.documents import yaml_tree
from krzem.jobs.job import JobBuilder
from krzem.jobs.launches import Start, starts_of, state_machine
from krzem.jobs.mindspeed_fsdp import TYPES, name_of, recompute_of
from krzem.jobs.registry import Claim, Reader, Sources
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
_PROGRAM = r"mindspeed_mm/.*train\w*\.py$"
_OPTIMIZERS = {"adamw": "adamw", "adamw_swap": "adamw", "muon": "muon"}
_SFT = ("data.dataset_param.basic_parameters.template",
        "data.dataset_param.preprocess_parameters.template")  # fmt: skip


def _chunked(value: object) -> Found:
    return {"switch.loss": "chunked"} if truth(value) else {}


def _attention(value: object) -> Found:
    return {"switch.attention": "eager" if word(value) == "eager" else "fused"}


_TABLE = Table(
    keys={
        "model.model_name_or_path": Read(("model.name",), name_of),
        "model.attn_implementation": Read(("switch.attention",), _attention),
        "model.freeze": KEPT,
        "parallel.tensor_parallel_size": count("tp"),
        "parallel.data_parallel_size": positive("dp"),
        "parallel.ring_attention_size": KEPT,
        "parallel.ulysses_parallel_size": KEPT,
        "parallel.expert_parallel_size": count("ep"),
        "parallel.fully_shard_parallel_size": KEPT,
        "parallel.expert_fully_shard_parallel_size": KEPT,
        "parallel.ep_plan.dispatcher": words(
            "switch.dispatcher",
            {"alltoall": "alltoall", "allgather": "allgather", "mc2": "alltoall"},
        ),
        "parallel.fsdp_plan.param_dtype": words("precision", TYPES),
        "parallel.fsdp_plan.reshard_after_forward": KEPT,
        "parallel.fsdp_plan.cpu_offload": KEPT,
        "parallel.recompute": Read(("recompute",), recompute_of),
        "features.recompute": Read(("recompute",), recompute_of),
        "model.enable_chunk_loss": Read(("switch.loss",), _chunked),
        "training.gradient_accumulation_no_sync": switch("grad-sync", "last", "every"),
        "features.enable_chunk_loss": Read(("switch.loss",), _chunked),
        "features.enable_dynamic_chunk_loss": Read(("switch.loss",), _chunked),
        "features.enable_activation_offload": switch("offload-activations"),
        "training.micro_batch_size": count("mbs"),
        "training.gradient_accumulation_steps": count("accumulation"),
        "training.train_iters": positive("train_steps"),
        "training.max_steps": positive("train_steps"),
        "training.optimizer": words("optimizer", _OPTIMIZERS),
        "training.lora.enable": KEPT,
    },
    ignored=(
        r"(data|tools|training|model|features)\..*",
        r"parallel\.(fsdp_plan|ep_plan|tp_plan|recompute_plan)(\..*)?",
    ),
)
_DEFAULTS: Defaults = {
    "tp": (1, "parallel.tensor_parallel_size 1"),
    "pp": (1, "this trainer has no pipeline"),
    "vpp": (1, "this trainer has no pipeline"),
    "ep": (1, "parallel.expert_parallel_size 1"),
    "mbs": (1, "training.micro_batch_size 1"),
    "accumulation": (1, "training.gradient_accumulation_steps null"),
    "recompute": ("none", "recompute false"),
    "optimizer": ("adamw", "training.optimizer adamw"),
    "offload": (False, "optimizer states stay on the device"),
    "switch.attention": ("fused", "model.attn_implementation flash_attention_2"),
    "switch.offload-activations": ("off", "features.enable_activation_offload false"),
    "switch.loss": ("plain", "features.enable_chunk_loss false"),
}


def claim(sources: Sources) -> Claim | None:
    """Its trainer is started, or a YAML file holds its tables."""
    if starts_of(sources).find(_PROGRAM):
        return Claim(engine=ENGINE, strength=100, why="MindSpeed-MM's trainer is started")
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if "fsdp_plan:" in text and "parallel:" in text and "training:" in text:
            return Claim(engine=ENGINE, strength=80, why=f"MindSpeed-MM's tables in {name}")
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """The YAML that the command names, or all that are given."""
    start = next(iter(starts_of(sources).find(_PROGRAM)), None)
    tree = Tree()
    for name in _files(sources, start):
        tree.update(yaml_tree(sources.files[name], name))
    job.note("the trainer is MindSpeed-MM")
    apply(tree, _TABLE, job)
    fall_back(job, _DEFAULTS)
    _context(tree, job)
    _shards(tree, job)
    _kind(tree, job)
    state_machine(job, start, sources)


def _files(sources: Sources, start: Start | None) -> list[str]:
    named = [] if start is None else [sources.find(word.text) for word in start.loose]
    found = [name for name in named if name is not None and name.endswith((".yaml", ".yml"))]
    return found[:1] or list(sources.with_suffix(".yaml", ".yml"))


def _context(tree: Tree, job: JobBuilder) -> None:
    """Ring attention and Ulysses together cut the sequence."""
    names = ("parallel.ring_attention_size", "parallel.ulysses_parallel_size")
    sizes = [number(tree, name) if tree.has(name) else 1 for name in names]
    ring, ulysses = sizes
    if ring is None or ulysses is None:
        return
    job.derive("cp", ring * ulysses, f"ring {ring} * ulysses {ulysses}", tree.place(*names))
    if ring > 1 and ulysses == 1:
        job.derive("cpkind", "ring", names[0], tree.place(names[0]))
    elif ulysses > 1 and ring == 1:
        job.derive("cpkind", "a2a", names[1], tree.place(names[1]))


def _shards(tree: Tree, job: JobBuilder) -> None:
    kept = truth_of(tree, "parallel.fsdp_plan.reshard_after_forward") is False
    size = number(tree, "parallel.fully_shard_parallel_size")
    place = tree.place("parallel.fully_shard_parallel_size")
    level = 0 if size == 1 else 2 if kept else 3
    why = "weights are kept after the forward pass" if kept else "weights are freed after use"
    job.derive("zero", level, why, place)
    if size is not None and size > 1:
        job.state("shard", size, place)
    swapped = tree.value("training.optimizer") == "adamw_swap"
    if swapped or truth_of(tree, "parallel.fsdp_plan.cpu_offload"):
        place = tree.place("parallel.fsdp_plan.cpu_offload", "training.optimizer")
        job.state("offload", True, place, override=True)


def _kind(tree: Tree, job: JobBuilder) -> None:
    """Adapters, or all weights on dialogues; the length of a sample is not the longest one."""
    if truth_of(tree, "training.lora.enable"):
        job.state("finetune", "lora", tree.place("training.lora.enable"))
    elif tree.has(*_SFT):
        job.derive("finetune", "full", "samples are dialogues", tree.place(*_SFT))
    cut = tree.place("data.dataset_param.basic_parameters.cutoff_len")
    job.ask("seq", f"cutoff_len ({cut}) is the longest sample, not the mean", "give the mean")


READERS = (Reader(kind="MindSpeed-MM", engines=(ENGINE,), claim=claim, read=read),)
