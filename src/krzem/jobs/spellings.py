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
_MAXTEXT = {
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
    "megatron-lm": (_MEGATRON,), "mindspeed-llm": (_MEGATRON,), "primus": (_MEGATRON, _TITAN),
    "megatron-deepspeed": (_MEGATRON, _DEEPSPEED), "megatron-bridge": (_BRIDGE,),
    "torchtitan": (_TITAN,), "deepspeed": (_TRAINER, _DEEPSPEED), "fsdp": (_TRAINER,),
    "maxtext": (_MAXTEXT,), "mindformers": (_MINDFORMERS,), "other": (_NANOTRON,),
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
    megatron = engine in ("megatron-lm", "mindspeed-llm", "primus", "megatron-deepspeed")
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
    for table in NUMBERS.get(engine, ()):
        if name in table:
            yield [(table[name], str(value))]


def _switch(engine: str, switch: str, choice: str) -> Iterator[list[Target]]:
    """From the engine's description; choices that are only the default take the others away."""
    if engine == "torchtitan" and f"{switch}={choice}" in TITAN_SWITCHES:
        yield list(TITAN_SWITCHES[f"{switch}={choice}"])
    own = engines()[engine].switches.get(switch)
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
    if engine in ("megatron-lm", "mindspeed-llm", "primus", "megatron-deepspeed"):
        yield from _megatron_recompute(engine, word, layers)
    elif engine == "megatron-bridge":
        granularity = {"none": "null", "full": "full"}.get(word, "selective")
        method = ("uniform", "1") if word == "full" else (None, None)
        modules = {"modules": "[layernorm,moe_act]", "attention": "[core_attn]"}.get(word)
        yield [
            ("model.recompute_granularity", granularity), ("model.recompute_method", method[0]),
            ("model.recompute_num_layers", method[1]), ("model.recompute_modules", modules),
        ]  # fmt: skip
    if engine in ("torchtitan", "primus"):
        mode = "selective" if word == "modules" else word
        way: list[Target] = [("activation_checkpoint.mode", f'"{mode}"')]
        if word == "modules":
            way.append(("activation_checkpoint.selective_ac_option", '"op"'))
        yield [] if word == "attention" else way
    elif engine == "mindformers" and word != "attention":
        whole, some = str(word == "full"), str(word == "modules")
        yield [("recompute_config.recompute", whole), ("recompute_config.select_recompute", some)]
    elif engine == "maxtext" and word != "attention":
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
    if engine in ("megatron-lm", "mindspeed-llm", "primus", "megatron-deepspeed"):
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
