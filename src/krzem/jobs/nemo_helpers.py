"""Recipes of NeMo 2 by name, and the helper of its performance scripts.

``set_primary_perf_configs(recipe, "pre_train", mbs=1, tp_size=4, ...)`` sets what the names say;
source: ``scripts/performance/helpers.py`` and ``nemo/collections/llm/recipes`` of NeMo 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from krzem.jobs.job import JobBuilder
from krzem.jobs.tree import Defaults, Entry, Tree, fall_back, number, word_of

_HELPER: Mapping[str, str] = {
    "mbs": "data.micro_batch_size", "gbs": "data.global_batch_size",
    "max_steps": "trainer.max_steps", "num_nodes": "trainer.num_nodes",
    "num_gpus_per_node": "trainer.devices",
    "tp_size": "trainer.strategy.tensor_model_parallel_size",
    "pp_size": "trainer.strategy.pipeline_model_parallel_size",
    "cp_size": "trainer.strategy.context_parallel_size",
    "vp_size": "trainer.strategy.virtual_pipeline_model_parallel_size",
    "ep_size": "trainer.strategy.expert_model_parallel_size",
    "etp_size": "trainer.strategy.expert_tensor_parallel_size",
    "enable_cuda_graphs": "model.config.enable_cuda_graph",
    "recompute_modules": "model.config.recompute_modules",
    "use_mcore_fsdp": "use_megatron_fsdp",
}  # fmt: skip
_ARITHMETIC = {"ds": "bf16_with_fp8_delayed_scaling", "cs": "bf16_with_fp8_current_scaling",
               "mx": "bf16_with_mxfp8", "mxfp8": "bf16_with_mxfp8",
               "ss": "bf16_with_fp8_subchannel_scaling"}  # fmt: skip
_TASKS = {"pre_train": "none", "sft": "full", "lora": "lora", "none": "none"}
_LENGTHS = {r"llama3\d?_\d+b(_.*)?": 8192, r"llama2_\d+b": 4096, r"nemotron4_\d+b": 4096}
"""Tokens per sequence of the recipes' data."""
_OPEN = ("tp", "pp", "cp", "mbs", "global_batch")

_PERFORMANCE: Defaults = {
    "state.gradient": (2, "the performance helper reduces gradients in 16 bits"),
    "zero": (1, "the recipe's distributed optimizer"),
    "switch.overlap-grad-reduce": ("on", "the recipe's ddp"),
    "switch.overlap-param-gather": ("on", "the recipe's ddp"),
}


def translate(tree: Tree, job: JobBuilder) -> Tree:
    """The tree with the helper's words replaced, the base recipe's own changes below."""
    target = (word_of(tree, "_target_") or "").rpartition(".")[2]
    if target != "set_primary_perf_configs":
        _named(tree, "", job)
        return tree
    found = tree.sub("0")
    for key, entry in tree.entries.items():
        if key in _HELPER:
            found.put(Entry(key=_HELPER[key], value=entry.value, place=entry.place))
        elif not key.startswith("0.") and key not in _PLAIN:
            found.put(entry)
    _arithmetic(tree, found)
    _memory(tree, found)
    task = word_of(tree, "1")
    if task in _TASKS:
        job.state("finetune", _TASKS[task], tree.place("1"))
    _named(tree, "0.", job)
    tp = number(tree, "tp_size")
    if tp is not None:
        job.default("sp", tp > 1, "the performance helper cuts sequences where tp cuts")
    if number(tree, "vp_size") == 1:
        job.derive("vpp", 1, "vp_size is 1", tree.place("vp_size"))
    fall_back(job, _PERFORMANCE)
    return found


_PLAIN = ("1", "compute_dtype", "fp8_recipe", "recompute_layers", "activation_offload_layers",
          "nccl_communicator_config_path", "use_fsdp_double_buffer", "use_sharp",
          "use_user_buffer_registration", "keep_fsdp_fp8_transpose_cache", "use_te_op_fuser",
          "use_te_act_func", "act_func_fp8_input_store")  # fmt: skip
"""Words of the helper that are read here, or say nothing about time or memory."""


def _arithmetic(tree: Tree, found: Tree) -> None:
    kind = (word_of(tree, "compute_dtype") or "").lower()
    place = tree.place("compute_dtype")
    if kind == "fp8":
        kind = _ARITHMETIC.get((word_of(tree, "fp8_recipe") or "ds").lower(), "fp8")
    if kind:
        found.put(Entry(key="mixed_precision", value=kind, place=place))


def _memory(tree: Tree, found: Tree) -> None:
    layers = number(tree, "recompute_layers")
    if layers:
        place = tree.place("recompute_layers")
        for name, value in (("granularity", "full"), ("method", "block"), ("num_layers", layers)):
            key = f"model.config.recompute_{name}"
            found.put(Entry(key=key, value=value, place=place))
    if number(tree, "activation_offload_layers"):
        place = tree.place("activation_offload_layers")
        found.put(Entry(key="model.config.cpu_offloading", value=True, place=place))


def _named(tree: Tree, prefix: str, job: JobBuilder) -> None:
    """``llama31_8b.pretrain_recipe(...)`` names the model; its own layout is open."""
    target = word_of(tree, f"{prefix}_target_") or ""
    match = re.search(r"(\w+)\.(pretrain|finetune)_recipe$", target)
    if match is None:
        return
    name, place = match[1], tree.place(f"{prefix}_target_")
    job.state("model.name", name, place)
    for pattern, length in _LENGTHS.items():
        if re.fullmatch(pattern, name) and match[2] == "pretrain":
            job.default("seq", length, f"data of the recipe {name}")
    job.default("precision", "bf16", "the recipe's plugin is bf16_mixed")
    if not prefix:
        for field in _OPEN:
            why = f"the recipe {name} in NeMo's own code decides it"
            job.ask(field, why, "give its value")
