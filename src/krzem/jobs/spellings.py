"""How each engine writes what advice may change: flags of a command, or keys of a file.

A target is a name and its value: ``("--micro-batch-size", "2")``, ``("--sequence-parallel", "")``
for a flag without a value, ``("training.local_batch_size", "2")`` for a key.  A value of None takes
the flag or key away.  Switches come from the engines' descriptions (``facts/engines``); the degrees
and policies are here, from the same sources as the readers' tables.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from krzem.engine.description import engines
from krzem.jobs.job import Value

Target = tuple[str, str | None]

MEGATRON = ("megatron-lm", "mindspeed-llm", "primus", "megatron-deepspeed")
"""Engines that take Megatron's flags."""
FSDP2 = "mindspeed-fsdp2"
"""The front of MindSpeed-LLM that takes YAML files of its own."""
_MEGATRON = {
    "tp": "--tensor-model-parallel-size", "pp": "--pipeline-model-parallel-size",
    "cp": "--context-parallel-size", "ep": "--expert-model-parallel-size",
    "etp": "--expert-tensor-parallel-size", "mbs": "--micro-batch-size",
    "global_batch": "--global-batch-size",
}  # fmt: skip
_BRIDGE = {
    "tp": "model.tensor_model_parallel_size", "pp": "model.pipeline_model_parallel_size",
    "cp": "model.context_parallel_size", "ep": "model.expert_model_parallel_size",
    "etp": "model.expert_tensor_parallel_size", "mbs": "train.micro_batch_size",
    "global_batch": "train.global_batch_size",
    "vpp": "model.virtual_pipeline_model_parallel_size",
}  # fmt: skip
_BRIDGE_SCRIPT = {
    "tp": "--tensor_model_parallel_size", "pp": "--pipeline_model_parallel_size",
    "cp": "--context_parallel_size", "ep": "--expert_model_parallel_size",
    "etp": "--expert_tensor_parallel_size", "mbs": "--micro_batch_size",
    "global_batch": "--global_batch_size", "vpp": "--virtual_pipeline_model_parallel_size",
}  # fmt: skip
"""Of its performance scripts (``scripts/performance/argument_parser.py``)."""
_TITAN = {
    "tp": "parallelism.tensor_parallel_degree", "pp": "parallelism.pipeline_parallel_degree",
    "cp": "parallelism.context_parallel_degree", "ep": "parallelism.expert_parallel_degree",
    "mbs": "training.local_batch_size", "global_batch": "training.global_batch_size",
    "dp": "parallelism.data_parallel_shard_degree",
}  # fmt: skip
_TRAINER = {
    "mbs": "per_device_train_batch_size", "accumulation": "gradient_accumulation_steps",
}  # fmt: skip
_DEEPSPEED = {
    "mbs": "train_micro_batch_size_per_gpu", "accumulation": "gradient_accumulation_steps",
    "global_batch": "train_batch_size", "zero": "zero_optimization.stage",
}  # fmt: skip
_MINDSPEED_FSDP = {
    "tp": "parallel.tp_size", "cp": "parallel.cp_size", "ep": "parallel.ep_size",
    "mbs": "training.per_device_train_batch_size",
    "accumulation": "training.gradient_accumulation_steps",
}  # fmt: skip
_MAXTEXT = {
    "mbs": "per_device_batch_size",
    "tp": "ici_tensor_parallelism", "pp": "ici_pipeline_parallelism",
    "ep": "ici_expert_parallelism", "cp": "ici_context_parallelism",
    "accumulation": "gradient_accumulation_steps",
}  # fmt: skip
_MINDFORMERS = {
    "tp": "parallel_config.model_parallel", "pp": "parallel_config.pipeline_stage",
    "dp": "parallel_config.data_parallel", "cp": "parallel_config.context_parallel",
    "ep": "parallel_config.expert_parallel", "mbs": "runner_config.batch_size",
    "accumulation": "parallel_config.micro_batch_num",
}  # fmt: skip
_NANOTRON = {
    "tp": "parallelism.tp", "pp": "parallelism.pp", "dp": "parallelism.dp",
    "mbs": "tokens.micro_batch_size", "accumulation": "tokens.batch_accumulation_per_replica",
}  # fmt: skip
NUMBERS: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "megatron-lm": (_MEGATRON,), "mindspeed-llm": (_MEGATRON,), FSDP2: (_MINDSPEED_FSDP,),
    "primus": (_MEGATRON,),
    "megatron-deepspeed": (_MEGATRON, _DEEPSPEED),
    "megatron-bridge": (_BRIDGE, _BRIDGE_SCRIPT),
    "torchtitan": (_TITAN,), "deepspeed": (_TRAINER, _DEEPSPEED), "fsdp": (_TRAINER,),
    "maxtext": (_MAXTEXT,),
    "mindformers": (_MINDFORMERS, {"accumulation": "runner_config.gradient_accumulation_steps"}),
    "other": (_NANOTRON,),
}  # fmt: skip
"""Name of the flag or key that holds a count, by engine and field."""

TITAN_SWITCHES: Mapping[str, tuple[Target, ...]] = {
    "overlap-tp=on": (("parallelism.enable_async_tensor_parallel", "true"),),
    "overlap-tp=off": (("parallelism.enable_async_tensor_parallel", "false"),),
    "compile=on": (("compile.enable", "true"),), "compile=off": (("compile.enable", "false"),),
    "dispatcher=deepep": (("parallelism.expert_parallel_comm_backend", '"deepep"'),),
    "dispatcher=hybridep": (("parallelism.expert_parallel_comm_backend", '"hybridep"'),),
    "dispatcher=alltoall": (("parallelism.expert_parallel_comm_backend", '"standard"'),),
    "cuda-graphs=none": (("training.disable_cuda_graphs", "true"),),
    "cuda-graphs=full": (("training.disable_cuda_graphs", "false"),),
}  # fmt: skip
"""The keys of its TOML files; its description has those of the Python configurations of today."""

_SCRIPT_SWITCHES: Mapping[str, tuple[Target, ...]] = {
    "overlap-a2a=on": (("--moe_a2a_overlap", "true"),),
    "overlap-a2a=off": (("--moe_a2a_overlap", "false"),),
}  # fmt: skip
"""Of Megatron-Bridge's performance scripts."""

HINTS: Mapping[str, str] = {
    "tp": "tensor|tp|model_parallel", "pp": "pipeline|pp|stage", "cp": "context|cp",
    "ep": "expert|ep", "etp": "expert|etp", "dp": "data|dp|shard|replic",
    "mbs": "micro|mbs|batch|per_device", "global_batch": "global|gbs|batch",
    "accumulation": "accum|ga|micro_batch_num", "vpp": "virtual|vpp|chunk|interleav",
    "zero": "zero|stage", "rlayers": "recompute|layers",
}  # fmt: skip
"""What stands before the value of a field on its line, most likely."""


def targets(engine: str, name: str, value: Value, context: Mapping[str, int]) -> list[list[Target]]:
    """Ways to write ``name = value`` for an engine, the usual first.

    ``context`` holds ``layers``, ``pp`` and ``vpp`` of the changed layout.
    """
    found = list(_targets(engine, name, value, context))
    return [way for way in found if way]


def _targets(
    engine: str, name: str, value: Value, context: Mapping[str, int]
) -> Iterator[list[Target]]:
    if name.startswith("switch."):
        yield from _switch(engine, name.removeprefix("switch."), str(value))
        return
    megatron = engine in MEGATRON
    if name == "recompute":
        yield from _recompute(engine, str(value), context)
    elif name == "vpp" and megatron:
        yield from _chunks(int(str(value)), context)
    elif name == "sp" and megatron:
        yield [("--sequence-parallel", "" if value else None)]
    elif name == "sp" and engine == "megatron-bridge":
        yield [("model.sequence_parallel", "true" if value else "false")]
    elif name == "zero":
        yield from _zero(engine, int(str(value)))
    elif name == "offload" and megatron:
        on: list[Target] = [
            ("--optimizer-cpu-offload", ""), ("--optimizer-offload-fraction", "1.0"),
        ]  # fmt: skip
        yield on if value else [("--optimizer-cpu-offload", None)]
    if name == "dp" and engine == "torchtitan":
        yield from _titan_replicas(int(str(value)), context)
    for table in NUMBERS.get(engine, ()):
        if name in table:
            yield [(table[name], str(value))]


def _titan_replicas(dp: int, context: Mapping[str, int]) -> Iterator[list[Target]]:
    """Context ranks shard along, so that a group holds ``shard / cp`` data ranks."""
    held = context.get("shard", 0) // context.get("cp", 1)
    if held and dp % held == 0:
        yield [("parallelism.data_parallel_shard_degree", str(held)),
               ("parallelism.data_parallel_replicate_degree", str(dp // held))]  # fmt: skip


def _switch(engine: str, switch: str, choice: str) -> Iterator[list[Target]]:
    """From the engine's description; choices that are only the default take the others away."""
    if engine == "torchtitan" and f"{switch}={choice}" in TITAN_SWITCHES:
        yield list(TITAN_SWITCHES[f"{switch}={choice}"])
    if engine == "megatron-bridge" and f"{switch}={choice}" in _SCRIPT_SWITCHES:
        yield list(_SCRIPT_SWITCHES[f"{switch}={choice}"])
    own = engines()[engine].switches.get(switch) if engine in engines() else None
    if own is None:
        return
    mine: list[Target] = parse_flags(own.flags.get(choice, ""))
    names = {name for name, _ in mine}
    others: list[Target] = [
        (name, None) for other, text in own.flags.items() if other != choice
        for name, _ in parse_flags(text) if name not in names
    ]  # fmt: skip
    if mine or others:
        yield mine + list(dict.fromkeys(others))


_FLAG = re.compile(r"--[\w-]+")
_PAIR = re.compile(r"([\w.\"]+?)\s*[=:]\s*(\S.*?)(?=,\s*[\w.\"]+\s*[=:]|\s+[\w.]+=|$)")


def parse_flags(text: str) -> list[Target]:
    """``--a b --c`` and ``a.b: c, d=e`` as targets; words around them say nothing.

    >>> parse_flags("--moe-token-dispatcher-type flex --moe-flex-dispatcher-backend deepep")
    [('--moe-token-dispatcher-type', 'flex'), ('--moe-flex-dispatcher-backend', 'deepep')]
    >>> parse_flags("zero_optimization.overlap_comm: true")
    [('zero_optimization.overlap_comm', 'true')]
    """
    text = re.sub(r"\(.*?\)", "", text).strip()
    if text.startswith("--"):
        found: list[Target] = []
        for piece in re.split(r"\s+(?=--)", text):
            flag, _, value = piece.strip(" ,").partition(" ")
            if _FLAG.fullmatch(flag):
                found.append((flag, value.strip()))
        return found
    return [(m[1].strip('"'), m[2].strip(" ,")) for m in _PAIR.finditer(text)]


def _recompute(engine: str, word: str, context: Mapping[str, int]) -> Iterator[list[Target]]:
    layers = context.get("rlayers", 0)
    if engine in MEGATRON:
        yield from _megatron_recompute(engine, word, layers)
    elif engine == "megatron-bridge":
        granularity = {"none": "null", "full": "full"}.get(word, "selective")
        method = ("uniform", "1") if word == "full" else (None, None)
        modules = {"modules": "[layernorm,moe_act]", "attention": "[core_attn]"}.get(word)
        yield [
            ("model.recompute_granularity", granularity), ("model.recompute_method", method[0]),
            ("model.recompute_num_layers", method[1]), ("model.recompute_modules", modules),
        ]  # fmt: skip
    if engine == FSDP2 and word in ("none", "full"):
        yield [("parallel.recompute", "True" if word == "full" else "False")]
    if engine == "torchtitan":
        mode = "selective" if word == "modules" else word
        way: list[Target] = [("activation_checkpoint.mode", f'"{mode}"')]
        if word == "modules":
            way.append(("activation_checkpoint.selective_ac_option", '"op"'))
        yield [] if word == "attention" else way
    elif engine == "mindformers" and word != "attention":
        whole, some = str(word == "full"), str(word == "modules")
        yield [("recompute_config.recompute", whole), ("recompute_config.select_recompute", some)]
    if engine == "maxtext" and word != "attention":
        policy = {"full": "full", "modules": "save_dot_except_mlp", "none": "minimal"}
        yield [("remat_policy", policy.get(word, word))]
    elif engine in ("deepspeed", "fsdp") and word in ("none", "full"):
        yield [("gradient_checkpointing", "true" if word == "full" else "false")]
        yield [("activation_checkpointing", "true" if word == "full" else "false")]


_AWAY: tuple[Target, ...] = (
    ("--recompute-method", None), ("--recompute-num-layers", None), ("--recompute-modules", None),
    ("--recompute-activations", None), ("--recompute-activation-function", None),
    ("--recompute-norm", None), ("--checkpoint-activations", None),
)  # fmt: skip


def _megatron_recompute(engine: str, word: str, layers: int) -> Iterator[list[Target]]:
    if word == "none":
        yield [("--recompute-granularity", None), *_AWAY]
    elif word == "full" and layers:
        yield [("--recompute-granularity", "full"), ("--recompute-method", "block"),
               ("--recompute-num-layers", str(layers)), *_AWAY[2:]]  # fmt: skip
    elif word == "full":
        yield [("--recompute-granularity", "full"), ("--recompute-method", "uniform"),
               ("--recompute-num-layers", "1"), *_AWAY[2:]]  # fmt: skip
    elif word == "modules" and engine == "mindspeed-llm":
        yield [("--recompute-granularity", None), *_AWAY[:4],
               ("--recompute-activation-function", ""), ("--recompute-norm", "")]  # fmt: skip
    elif word == "modules":
        yield [("--recompute-granularity", "selective"), *_AWAY[:2], _AWAY[3],
               ("--recompute-modules", "layernorm moe_act")]  # fmt: skip
        yield [("--recompute-granularity", "selective"), *_AWAY[:2], _AWAY[3],
               ("--recompute-modules", "layernorm")]  # fmt: skip
    elif word == "attention":
        yield [("--recompute-granularity", "selective"), *_AWAY]


def _chunks(vpp: int, context: Mapping[str, int]) -> Iterator[list[Target]]:
    per_stage, per_rank = ("--num-layers-per-virtual-pipeline-stage",
                           "--num-virtual-stages-per-pipeline-rank")  # fmt: skip
    chunks = context["pp"] * vpp
    if vpp == 1:
        yield [(per_stage, None), (per_rank, None)]
    elif context["layers"] % chunks == 0:
        yield [(per_stage, str(context["layers"] // chunks)), (per_rank, None)]
        yield [(per_rank, str(vpp)), (per_stage, None)]


def _zero(engine: str, stage: int) -> Iterator[list[Target]]:
    if engine in MEGATRON:
        if stage <= 1:
            yield [("--use-distributed-optimizer", "" if stage else None),
                   ("--use-megatron-fsdp", None), ("--use-torch-fsdp2", None),
                   ("--data-parallel-sharding-strategy", None)]  # fmt: skip
        else:
            word = "optim_grads" if stage == 2 else "optim_grads_params"
            yield [("--use-megatron-fsdp", ""), ("--use-distributed-optimizer", ""),
                   ("--data-parallel-sharding-strategy", word),
                   ("--no-gradient-accumulation-fusion", "")]  # fmt: skip
            if stage == 3:
                yield [("--use-torch-fsdp2", "")]
    elif engine == "other" and stage <= 1:  # nanotron
        yield [("optimizer.zero_stage", str(stage))]
    elif engine == "torchtitan" and stage in (2, 3):
        word = "always" if stage == 3 else "never"
        yield [("parallelism.fsdp_reshard_after_forward", f'"{word}"')]


def words_of(way: list[Target]) -> str:
    """A way in one line, as people write it."""
    shown = []
    for name, value in way:
        if value is None:
            shown.append(f"without {name}")
        elif name.startswith("--"):
            shown.append(f"{name} {value}".strip())
        else:
            shown.append(f"{name} = {value}")
    return ", ".join(shown)
