"""Finds a Megatron-Bridge job: its launch scripts with their options, recipes, YAML overrides.

The order is recipe, YAML, command line.  What a recipe of the engine's own code decides is open
unless the recipe is among the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from krzem.errors import InputError, shorten
from krzem.jobs.documents import yaml_tree
from krzem.jobs.job import JobBuilder
from krzem.jobs.launch import at
from krzem.jobs.launches import Start, starts_of, state_machine
from krzem.jobs.nemo import read_settings
from krzem.jobs.recipe import Recipe
from krzem.jobs.recipe_values import Node
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe
from krzem.jobs.tree import Defaults, Entry, Tree, count, fall_back, settle, text, word_of

ENGINE = "megatron-bridge"
_PROGRAM = r"(^|/)(custom_)?setup_experiment\.py$|(^|/)run_recipe\.py$|(^|/)run_script\.py$"
_OWN = r"megatron[./]bridge|Megatron-Bridge|megatron_bridge"
_IMPORT = re.compile(r"^\s*(from|import)\s+megatron\.bridge\b", re.M)

_OPTIONS: Mapping[str, str] = {
    "tp": "model.tensor_model_parallel_size", "tensor_model_parallel_size": "",
    "pp": "model.pipeline_model_parallel_size", "pipeline_model_parallel_size": "",
    "vp": "model.virtual_pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size": "",
    "cp": "model.context_parallel_size", "context_parallel_size": "",
    "ep": "model.expert_model_parallel_size", "expert_model_parallel_size": "",
    "et": "model.expert_tensor_parallel_size", "expert_tensor_parallel_size": "",
    "gb": "train.global_batch_size", "global_batch_size": "train.global_batch_size",
    "mb": "train.micro_batch_size", "micro_batch_size": "train.micro_batch_size",
    "ms": "train.train_iters", "max_steps": "train.train_iters",
    "sl": "model.seq_length", "seq_length": "",
    "num_layers": "", "hidden_size": "", "num_moe_experts": "", "cuda_graph_impl": "",
    "cuda_graph_scope": "", "recompute_modules": "", "moe_flex_dispatcher_backend": "",
    "use_megatron_fsdp": "", "moe_a2a_overlap": "model.overlap_moe_expert_parallel_comm",
    "pipeline_model_parallel_layout": "", "first_k_dense_replace": "",
}  # fmt: skip
"""Options of the engine's scripts and the setting each one changes; empty: the model's."""
_DTYPES = {"bf16": "bf16", "fp16": "fp16", "fp8_mx": "mxfp8", "fp8_cs": "fp8", "fp8_ds": "fp8",
           "fp8_sc": "fp8-block", "nvfp4": "nvfp4", "fp8": "fp8", "mxfp8": "mxfp8"}  # fmt: skip
_SCALINGS = {"fp8_cs": "tensor", "fp8_ds": "delayed"}
_BY_RECIPE = ("tp", "pp", "cp", "ep", "vpp", "mbs", "global_batch")

_COMMON: Defaults = {
    "zero": (1, "the common recipe uses the distributed optimizer"),
    "precision": ("bf16", "the common recipe's mixed_precision is bf16_mixed"),
    "optimizer": ("adamw", "the common recipe's optimizer"),
    "switch.overlap-grad-reduce": ("on", "the common recipe's ddp"),
    "switch.overlap-param-gather": ("on", "the common recipe's ddp"),
}


def claim(sources: Sources) -> Claim | None:
    """The engine's scripts are started, or a recipe imports it."""
    for start in starts_of(sources).find(_PROGRAM):
        options = start.options.entries
        named = any(k in options for k in ("recipe", "model_recipe_name", "mr", "model"))
        if named or re.search(_OWN, start.program):
            return Claim(engine=ENGINE, strength=105, why=f"{start.program} is started")
    for name, content in sources.with_suffix(".py").items():
        if _IMPORT.search(content) and re.search(r"_config\b|ConfigContainer", content):
            return Claim(engine=ENGINE, strength=75, why=f"a recipe for Megatron-Bridge in {name}")
    for name, content in sources.with_suffix(".yaml", ".yml").items():
        keys = set(re.findall(r"^([a-z_]+):", content, re.M))
        if {"model", "train", "checkpoint"} <= keys and "tensor_model_parallel_size" in content:
            return Claim(engine=ENGINE, strength=65, why=f"overrides of a recipe in {name}")
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """The recipe where it is given, YAML, and the command line."""
    start = next(iter(starts_of(sources).find(_PROGRAM)), None)
    tree, common = _recipe(sources, start, job)
    for name, content in sources.with_suffix(".yaml", ".yml").items():
        if re.search(r"^(model|train):", content, re.M):
            tree.update(yaml_tree(content, name))
    if start is not None:
        tree.update(_command(start))
    if start is not None and "setup_experiment" in start.program:
        _perf_options(start, job)
    state_machine(job, start or _own_program(sources), sources)
    read_settings(tree, job)
    if start is not None:
        _names(start, job)
    _version(sources, job)
    if common:
        fall_back(job, _COMMON)
    if word_of(tree, "model._target_") in ("GPTModelProvider", "MLAModelProvider"):
        job.default("recompute", "none", "the provider recomputes nothing unless it is told")
    if not tree.has("model._target_") and not common:
        for name in _BY_RECIPE:
            why = "the recipe in Megatron-Bridge's own code decides it"
            job.ask(name, why, "give the recipe's file, or the value")
    describe(sources, job)


def _own_program(sources: Sources) -> Start | None:
    """The start of a program of the job's own that imports the engine."""
    own = {n.rsplit("/", 1)[-1] for n, t in sources.with_suffix(".py").items() if _IMPORT.search(t)}
    starts = starts_of(sources).programs
    return next((s for s in starts if s.program.rsplit("/", 1)[-1] in own), None)


def _command(start: Start) -> Tree:
    """Overrides (``model.x=4``) and the scripts' own options."""
    tree = Tree()
    for key, entry in start.options.entries.items():
        name = _OPTIONS.get(key)
        if name is not None:
            tree.put(
                Entry(key=name or f"model.{key}", value=_plain(entry.value), place=entry.place)
            )
        elif "." in key:
            tree.put(Entry(key=key, value=_plain(entry.value), place=entry.place))
    return tree


def _plain(value: object) -> object:
    if isinstance(value, str) and value.strip("'\"").lower() in ("none", "null"):
        return None
    return value


def _perf_options(start: Start, job: JobBuilder) -> None:
    """The performance scripts' own words for chip, devices and arithmetic."""
    options = start.options
    for names, field in ((("num_gpus", "ng"), "devices"),
                         (("gpus_per_node", "gn"), "devices_per_node")):  # fmt: skip
        _one(options, names, field, job)
    for name in ("gpu", "g"):
        if name in options.entries:
            settle(options.entries[name], text("device"), job)
    entry = options.entries.get("compute_dtype") or options.entries.get("c")
    if entry is None:
        return
    kind = word_of(options, "compute_dtype", "c")
    if kind in _DTYPES:
        job.state("precision", _DTYPES[kind], entry.place)
        if kind in _SCALINGS:
            job.state("switch.fp8-scaling", _SCALINGS[kind], entry.place)
    else:
        job.ask("precision", f"compute_dtype is {kind or 'open'}", "say precision=…")


def _one(options: Tree, names: tuple[str, ...], field: str, job: JobBuilder) -> None:
    for name in names:
        entry = options.entries.get(name)
        if entry is not None:
            settle(entry, count(field), job)


_TASKS = {"pretrain": "none", "sft": "full", "lora": "lora", "peft": "lora", "finetune": "full"}


def _names(start: Start, job: JobBuilder) -> None:
    """The model and the kind of training by the recipe's name."""
    for key in ("model_recipe_name", "mr", "model", "recipe"):
        name = word_of(start.options, key)
        if name is None:
            continue
        kind = re.search(r"_(pretrain|sft|peft|lora|finetune)(_|$)", name)
        model = re.sub(r"_(pretrain|sft|peft|lora|finetune)(_.*)?$|_config$", "", name)
        job.state("model.name", model, start.options.place(key))
        if kind is not None:
            job.state("finetune", _TASKS[kind[1]], start.options.place(key))
        break
    task = word_of(start.options, "task", "mode")
    if task in _TASKS:
        job.state("finetune", _TASKS[task], start.options.place("task", "mode"), override=True)
    elif "setup_experiment" in start.program:
        job.default("finetune", "none", "the task is pretrain unless it is set")


def _recipe(sources: Sources, start: Start | None, job: JobBuilder) -> tuple[Tree, bool]:
    """What a recipe among the files makes; whether it stands on the common one."""
    files = {n: t for n, t in sources.with_suffix(".py").items() if _IMPORT.search(t)}
    wanted = word_of(start.options, "recipe", "model_recipe_name") if start is not None else None
    for name, content in files.items():
        recipe = Recipe(content, name)
        makers = [f for f in recipe.functions if f.endswith("config") and not f.startswith("_")]
        chosen = _chosen(makers, wanted)
        if chosen is None and not wanted and len(makers) > 1:
            known = ", ".join(shorten(m, 50) for m in makers[:8])
            raise InputError(
                f"{shorten(name, 120)} holds {len(makers)} recipes ({known});"
                " give the command that starts one"
            )
        value = recipe.call(chosen) if chosen is not None else None
        if isinstance(value, Node):
            job.note(f"recipe {chosen} of {name}")
            _hub_name(recipe.tree(value), job)
            return recipe.tree(value), value.name.endswith("_common")
    return Tree(), False


def _chosen(makers: list[str], wanted: str | None) -> str | None:
    """The function of this name, or the only (or first) one whose name starts with it."""
    if wanted is None:
        return makers[0] if len(makers) == 1 else None
    if wanted in makers:
        return wanted
    stem = wanted.removesuffix("_config")
    return next((m for m in makers if m.startswith(stem)), None)


def _hub_name(tree: Tree, job: JobBuilder) -> None:
    """``AutoBridge.from_hf_pretrained("Qwen/Qwen3-8B")`` names the model."""
    for key, entry in tree.entries.items():
        if key.startswith("model.") and key.endswith(".0") and _HUB.fullmatch(str(entry.value)):
            job.derive("model.name", str(entry.value), entry.place.text, entry.place)


_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_IMAGE = re.compile(r"nvidia[+/#]nemo[:+](\d\d\.\d\d(?:\.\d+)?)")


def _version(sources: Sources, job: JobBuilder) -> None:
    """The release of the container that the scripts name."""
    words = starts_of(sources).variables.values()
    found = {m[1]: w.origin for w in words for m in _IMAGE.finditer(w.text)}
    if len(found) == 1:
        job.version, origin = next(iter(found.items()))
        job.state("engine_version", job.version, at(origin, sources.files))


READERS = (Reader(kind="Megatron-Bridge", engines=(ENGINE,), claim=claim, read=read),)
