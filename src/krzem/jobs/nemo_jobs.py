"""Finds NeMo jobs: Hydra configurations (NeMo 1, MLPerf's) and Python recipes of NeMo 2.

Variables that shell files export fill ``${oc.env:NAME,default}``; arguments of the command line
(``model.x=4``, ``+model.y=1``) win.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

from krzem.errors import InputError, shorten
from krzem.jobs.documents import Lines
from krzem.jobs.hydra import composed
from krzem.jobs.job import JobBuilder
from krzem.jobs.launches import Start, starts_of, state_machine
from krzem.jobs.nemo import read_settings
from krzem.jobs.recipe import Recipe
from krzem.jobs.recipe_values import Node
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.surroundings import describe
from krzem.jobs.tree import Defaults, Entry, Tree, fall_back, number, word_of

# Recipes of NeMo 2 by name, and the helper of its performance scripts
# --------------------------------------------------------------------

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


# Finds NeMo jobs: Hydra configurations (NeMo 1, MLPerf's) and Python recipes of NeMo 2
# -------------------------------------------------------------------------------------

ENGINE = "megatron-bridge"
_PROGRAM = r"(pretrain|finetune|pretraining|megatron_gpt_\w+|megatron_\w*pretraining|train)\.py$"
_IMPORT = re.compile(r"^\s*(from|import)\s+(nemo\.collections|nemo\.lightning|nemo_run)\b", re.M)
_YAML = re.compile(r"^\s+(tensor_model_parallel_size|micro_batch_size):", re.M)

_SHAPES: Mapping[str, tuple[int, int, int, int, int]] = {
    "llama2config7b": (32, 4096, 11008, 32, 32), "llama2config13b": (40, 5120, 13824, 40, 40),
    "llama2config70b": (80, 8192, 28672, 64, 8), "llama3config8b": (32, 4096, 14336, 32, 8),
    "llama3config70b": (80, 8192, 28672, 64, 8), "llama31config8b": (32, 4096, 14336, 32, 8),
    "llama31config70b": (80, 8192, 28672, 64, 8),
    "llama31config405b": (126, 16384, 53248, 128, 8),
    "llama32config1b": (16, 2048, 8192, 32, 8), "llama32config3b": (28, 3072, 8192, 24, 8),
}  # fmt: skip
"""Layers, hidden, inner width, heads and key-value heads of NeMo 2's configurations."""

_DEFAULTS: Defaults = {
    "offload": (False, "optimizer states stay on the device"),
    "finetune": ("none", "the program trains all weights"),
    "optimizer": ("adamw", "distributed fused Adam"),
    "switch.attention": ("fused", "Transformer Engine"),
    "switch.compile": ("off", "layers are not compiled"),
    "state.master": (4, "fp32 main parameters"),
    "state.moments": (8, "two fp32 moments"),
}


def claim(sources: Sources) -> Claim | None:
    """A configuration with NeMo's pair of tables, or a recipe that imports NeMo."""
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if _is_configuration(text):
            return Claim(engine=ENGINE, strength=75, why=f"NeMo's trainer and model in {name}")
    for name, text in sources.with_suffix(".py").items():
        if _IMPORT.search(text) and re.search(r"run\.(Config|Partial)|_recipe\b", text):
            return Claim(engine=ENGINE, strength=70, why=f"a recipe of NeMo in {name}")
    return None


def _is_configuration(text: str) -> bool:
    tops = set(re.findall(r"^(\w+):", text, re.M))
    return {"trainer", "model"} <= tops and _YAML.search(text) is not None


def read(sources: Sources, job: JobBuilder) -> None:
    """The composed configuration or the recipe, with the command line over it."""
    starts = starts_of(sources)
    start = next(iter(starts.find(_PROGRAM)), None)
    environment = {n: w.text for n, w in starts.variables.items() if w.known}
    main = _main(sources.with_suffix(".yaml", ".yml"))
    tree = _recipe(sources, job) if main is None else composed(sources, main, job, environment)
    if start is not None:
        tree.update(_overrides(start))
    state_machine(job, start, sources)
    _constants(sources, tree)
    _unread(sources, tree, job)
    read_settings(tree, job)
    _shape(sources, tree, job)
    _first_generation(sources, tree, job)
    fall_back(job, _DEFAULTS)
    if job.number("cp") not in (None, 1):
        job.default("cpkind", "ring", "cp_comm_type is p2p")
    describe(sources, job)


def _main(files: Mapping[str, str]) -> str | None:
    """The file that is composed: one whose defaults name the other, else the configuration."""
    own = [n for n, t in files.items() if _is_configuration(t)]
    for name, text in files.items():
        stems = [re.sub(r"\.ya?ml$", "", n.rpartition("/")[2]) for n in own if n != name]
        if re.search(r"^defaults:", text, re.M) and any(
            re.search(rf"^\s*-\s*{re.escape(stem)}\s*$", text, re.M) for stem in stems
        ):
            return name
    return own[0] if own else None


def _overrides(start: Start) -> Tree:
    tree = Tree()
    for key, entry in start.options.entries.items():
        if "." in key:
            tree.put(Entry(key=key, value=entry.value, place=entry.place))
    return tree


def _recipe(sources: Sources, job: JobBuilder) -> Tree:
    """What the only recipe of the files returns."""
    for name, text in sources.with_suffix(".py").items():
        if not _IMPORT.search(text):
            continue
        recipe = Recipe(text, name)
        makers = [n for n in recipe.functions if n.endswith("recipe")] or list(recipe.functions)
        values = {n: v for n in makers if isinstance(v := recipe.call(n), Node)}
        chosen = [n for n in values if n.endswith("recipe")] or list(values)
        if not chosen:
            continue
        if len(chosen) > 1:
            known = ", ".join(shorten(n, 40) for n in chosen[:8])
            raise InputError(
                f"{shorten(name, 120)} holds {len(chosen)} recipes ({known});"
                " give a file with the one that runs"
            )
        job.note(f"recipe {chosen[0]} of {name}")
        return translate(recipe.tree(values[chosen[0]]), job)
    return Tree()


_CONSTANTS = {"grad_reduce_in_fp32": "ddp.grad_reduce_in_fp32", "optimizer": "optimizer.optimizer"}


def _constants(sources: Sources, tree: Tree) -> None:
    """Arguments that the training program itself fixes, where it gives one value only."""
    for name, text in sources.with_suffix(".py").items():
        if not _IMPORT.search(text) or len(text) > 400_000:
            continue
        try:
            module = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        lines = Lines(name, text)
        found: dict[str, dict[object, int]] = {}
        for node in ast.walk(module):
            if not isinstance(node, ast.keyword) or not isinstance(node.value, ast.Constant):
                continue
            if node.arg in _CONSTANTS:
                found.setdefault(node.arg, {}).setdefault(node.value.value, node.lineno)
        for argument, values in found.items():
            key = _CONSTANTS[argument]
            if len(values) == 1 and key not in tree.entries:
                value, line = next(iter(values.items()))
                tree.put(Entry(key=key, value=value, place=lines.place(line)))


_NEMO_2 = re.compile(
    r"^\s*(from|import)\s+nemo\.(lightning|collections\.llm)\b"
    r"|^\s*from\s+nemo(\.collections)?\s+import\s+(lightning|llm)\b",
    re.M,
)


def _unread(sources: Sources, tree: Tree, job: JobBuilder) -> None:
    """Settings without effect: NeMo 1's under NeMo 2, and what only uncalled functions read."""
    for name, text in sources.with_suffix(".py").items():
        if not _NEMO_2.search(text) or len(text) > 400_000:
            continue
        for key in [k for k in tree.entries if k.endswith("megatron_amp_O2")]:
            job.note(f"{key} does nothing in NeMo 2")
            del tree.entries[key]
        idle = _idle_names(text)
        for key in [k for k in tree.entries if k.rpartition(".")[2] in idle]:
            job.note(f"{key}: only a function of {name} that is never called reads it")
            place = tree.entries[key].place
            del tree.entries[key]
            if key.endswith("tp_comm_overlap"):
                job.derive("switch.overlap-tp", "off", "what reads it is never called", place)


_NEMO_1: Defaults = {
    "tp": (1, "tensor_model_parallel_size is 1"),
    "pp": (1, "pipeline_model_parallel_size is 1"),
    "cp": (1, "context_parallel_size is 1"),
    "ep": (1, "expert_model_parallel_size is 1"),
    "recompute": ("none", "activations_checkpoint_granularity is null"),
}
"""What ``megatron_gpt_config.yaml`` says where a configuration is silent."""
_DISTRIBUTED = ("mcore_distributed_optim", "distributed_fused_adam")


def _first_generation(sources: Sources, tree: Tree, job: JobBuilder) -> None:
    """NeMo 1: its own defaults, and a ZeRO stage that the optimizer's name decides."""
    programs = "".join(sources.with_suffix(".py").values())
    if not tree.has("model.encoder_seq_length") or _NEMO_2.search(programs):
        return
    name = word_of(tree, "model.optim.name")
    if name is not None:
        stage = 1 if name in _DISTRIBUTED else 0
        job.derive("zero", stage, f"optim.name is {name}", tree.place("model.optim.name"))
    heads, ffn = job.number("model.heads"), job.number("model.ffn")
    if heads:
        job.default("model.kv_heads", heads, "num_query_groups is null: one per query head")
    if ffn and job.number("model.experts"):
        job.default("model.moe_ffn", ffn, "an expert is as wide as ffn_hidden_size")
    fall_back(job, _NEMO_1)


def _idle_names(text: str) -> set[str]:
    """Attributes that only functions read which nothing in the module calls or hands on."""
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    idle = [
        node for node in module.body
        if isinstance(node, ast.FunctionDef) and not node.decorator_list
        and not any(_reads(other, node.name) for other in module.body if other is not node)
    ]  # fmt: skip
    live = {a for n in module.body if n not in idle for a in _attributes(n)}
    return {a for n in idle for a in _attributes(n)} - live


def _reads(node: ast.AST, name: str) -> bool:
    return any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node))


def _attributes(node: ast.AST) -> set[str]:
    return {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}


def _shape(sources: Sources, tree: Tree, job: JobBuilder) -> None:
    """The shape of a configuration class that is named, in a recipe or by its size."""
    names = [str(e.value) for k, e in tree.entries.items() if k.endswith("_target_")]
    names += [str(e.value) for k, e in tree.entries.items() if k.endswith((".config", ".0"))]
    size = word_of(tree, "model.base_config")
    program = "".join(sources.with_suffix(".py").values())
    if size and "Llama31Config" in program:
        names.append(f"Llama31Config{size}")
        why = f"the configuration that the program takes for {size}"
        job.derive("model.name", names[-1], why, tree.place("model.base_config"))
    for name in names:
        shape = _SHAPES.get(name.rpartition(".")[2].lower())
        if shape is not None:
            _fill(shape, name, job)
            return


def _fill(shape: tuple[int, int, int, int, int], name: str, job: JobBuilder) -> None:
    fields = ("layers", "hidden", "ffn", "heads", "kv_heads")
    for field, value in zip(fields, shape, strict=True):
        job.default(f"model.{field}", value, f"{name} of NeMo")
    job.default("model.head_dim", shape[1] // shape[3], f"{name} of NeMo")
    job.default("model.gated", True, f"{name} of NeMo")
    job.default("model.bias", False, f"{name} of NeMo")
    job.default("model.positions", "rope", f"{name} of NeMo")


READERS = (Reader(kind="NeMo", engines=(ENGINE,), claim=claim, read=read),)
