"""``megatron sft`` and ``megatron pt`` of ms-swift: Megatron-Core behind the options of swift.

Options that are Megatron's keep their names; the model comes from a Hub id, its shape from there.
Defaults are those of ``swift/megatron/arguments/megatron_args.py``.
"""

from __future__ import annotations

import re

from krzem.errors import InputError
from krzem.jobs.job import Basis, JobBuilder
from krzem.jobs.launch import place_of
from krzem.jobs.launches import Start, starts_of, state_machine
from krzem.jobs.primus import fill_from
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe
from krzem.jobs.trainer import ask_length
from krzem.jobs.tree import (
    Defaults,
    Entry,
    Open,
    Tree,
    fall_back,
    number,
    truth,
    truth_of,
    word_of,
)

ENGINE = "megatron-lm"
_TASKS = ("sft", "pt")
_MEGATRON = re.compile(
    r"(tensor|pipeline|context|expert|virtual|decoder|moe|recompute|fp8|fp4|optimizer|overlap"
    r"|tp_comm|use_distributed|use_megatron_fsdp|data_parallel_sharding|micro_batch|global_batch"
    r"|train_iters|sequence_parallel|cross_entropy|attention_backend|gradient_accumulation_fusion"
    r"|mtp|cp_comm|account_for|exp_avg|main_(grads|params)|bf16|fp16|cpu_offloading)\w*"
)
_WORDS = ("true", "false")
_DEFAULTS: Defaults = {
    "mbs": (1, "micro_batch_size is 1"),
    "global_batch": (16, "global_batch_size is 16"),
    "zero": (1, "use_distributed_optimizer is true"),
    "recompute": ("attention", "recompute_granularity is selective"),
    "precision": ("bf16", "torch_dtype of the model's configuration"),
    "finetune": ("full", "tuner_type is full"),
    "switch.loss": ("fused", "cross_entropy_loss_fusion is true"),
    "switch.attention": ("fused", "attention_backend is flash"),
    "state.weight": (2, "weights in 16 bits"),
    "state.gradient": (4, "main_grads_dtype is fp32"),
    "state.master": (4, "main_params_dtype is fp32"),
    "state.moments": (8, "exp_avg_dtype and exp_avg_sq_dtype are fp32"),
}
"""What swift decides otherwise than Megatron's own command line."""


def claim(sources: Sources) -> Claim | None:
    """The program ``megatron`` with one of its tasks."""
    start = _start(sources)
    if start is None:
        return None
    why = f"megatron {start.loose[0].text} of ms-swift at {start.place}"
    return Claim(engine=ENGINE, strength=95, why=why)


def _start(sources: Sources) -> Start | None:
    for start in starts_of(sources).find(r"(^|/)megatron$"):
        if start.loose and start.loose[0].text in _TASKS:
            return start
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """Megatron's flags among the options, then what is swift's own."""
    start = _start(sources)
    if start is None:
        raise InputError("no given script starts megatron sft or megatron pt")
    job.note("the trainer is ms-swift over Megatron-Core")
    options = start.options
    fill_from(_flags(options), job)
    _forget(job)
    _machine(start, sources, job)
    _own(start, options, job)
    fall_back(job, _DEFAULTS)
    describe(sources, job)


def _forget(job: JobBuilder) -> None:
    """Take back what Megatron's command line would have decided: swift's own source decides it."""
    for name in job.named("model."):
        job.drop(name)
    half = job.get("precision") in ("bf16", "fp16")
    for name in _DEFAULTS:
        setting = job.setting(name)
        assumed = setting is not None and setting.basis is not Basis.STATED
        if assumed and (not name.startswith("state.") or not half):
            job.drop(name)


def _flags(options: Tree) -> Tree:
    """The options that are Megatron's."""
    tree = Tree()
    for key, entry in options.entries.items():
        name = key.replace("-", "_")
        if _MEGATRON.fullmatch(name) is None:
            continue
        value = entry.value
        if isinstance(value, str) and value.lower() in _WORDS:
            value = truth(value)
        tree.put(Entry(key=name, value=value, place=entry.place))
    return tree


def _machine(start: Start, sources: Sources, job: JobBuilder) -> None:
    for name, field in (("NPROC_PER_NODE", "devices_per_node"), ("NNODES", "nodes")):
        word = start.launch.command.environment.get(name)
        if word is not None and word.known and re.fullmatch(r"[1-9]\d{0,5}", word.text):
            job.state(field, int(word.text), place_of(word, sources.files))
        elif word is not None:
            job.ask(field, f"{name} is {word.text}", f"give {field}")
    if "NNODES" not in start.launch.command.environment and job.number("devices_per_node"):
        job.default("nodes", 1, "NNODES is not set")
    state_machine(job, start, sources)


def _own(start: Start, options: Tree, job: JobBuilder) -> None:
    """The model by its name, what is tuned, and the length of a sequence."""
    key = "expert_model_parallel_size"
    experts = number(options, key)
    if experts is not None:
        job.state("ep", experts, options.place(key), override=True)
    _named(options, job)
    tuner = word_of(options, "tuner_type", "train_type")
    if tuner is not None and tuner.startswith("lora"):
        job.state("finetune", "lora", options.place("tuner_type", "train_type"), override=True)
    elif tuner == "full":
        job.state("finetune", "full", options.place("tuner_type", "train_type"), override=True)
    else:
        job.drop("finetune")
    if start.loose[0].text == "pt":
        job.default("finetune", "none", "megatron pt")
    longest = number(options, "packing_length", "max_length")
    if longest and truth_of(options, "packing"):
        job.state("seq", longest, options.place("packing_length", "max_length"), override=True)
    else:
        ask_length(job, longest)


def _named(options: Tree, job: JobBuilder) -> None:
    for key in ("model", "mcore_model", "load"):
        said = options.value(key)
        if isinstance(said, str):
            job.state("model.name", said, options.place(key))
            break
        if isinstance(said, Open):
            job.ask("model.name", f"{key} = {said.text}", "give the model")
            break


READERS = (Reader(kind="ms-swift over Megatron", engines=(ENGINE,), claim=claim, read=read),)
