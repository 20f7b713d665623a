"""What torchtitan's settings mean, in every generation of their names.

Names moved from ``[training]`` and ``[experimental]`` (2024) to ``[parallelism]`` (2025) and into
Python dataclasses (2026); each is listed where it stood.  Source: ``config_manager.py``,
``job_config.py`` and ``config/configs.py`` of the repository's history.
"""

from __future__ import annotations

import math

from krzem.jobs.job import JobBuilder
from krzem.jobs.priced import LLAMA
from krzem.jobs.tree import (
    KEPT,
    Found,
    Read,
    Table,
    Tree,
    UnclearError,
    count,
    listed,
    names_of,
    number,
    positive,
    size_of,
    switch,
    truth,
    when_true,
    word,
    word_of,
    words,
    yes_no,
)

SCHEDULES = {
    "1f1b": "1f1b", "interleaved1f1b": "interleaved", "zbvzerobubble": "zb-v",
    "dualpipev": "dualpipev",
}  # fmt: skip
LOOPED = ("interleaved", "zb-v", "dualpipev")
"""Schedules with two stages on a rank unless the file says more."""
OTHER_SCHEDULES = {"gpipe": 1, "interleavedzerobubble": 2, "loopedbfs": 2, "zbvschedule": 2}
"""Schedules that a job may name and that are no field's word, with their stages on a rank."""


def _precision(value: object) -> Found:
    kind = word(value).rpartition(".")[2].lower()
    known = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}
    if kind not in known:
        raise UnclearError(f"{kind!r} is none of {', '.join(known)}")
    return {"precision": known[kind]}


def _stored(value: object) -> Found:
    """``training.dtype``: in bfloat16 all that training keeps is in bfloat16."""
    kind = word(value).rpartition(".")[2].lower()
    if kind == "bfloat16":
        return {"state.weight": 2, "state.gradient": 2, "state.master": 0, "state.moments": 4}
    if kind == "float32":
        return {}
    raise UnclearError(f"{kind!r} is neither float32 nor bfloat16")


def _compile_parts(value: object) -> Found:
    return {} if "model" in listed(value) else {"switch.compile": "off"}


_STATES = ("state.weight", "state.gradient", "state.master", "state.moments")
_DISPATCH = {"standard": "alltoall", "deepep": "deepep", "hybridep": "hybridep"}
_CONTEXT = {"allgather": "allgather", "alltoall": "ring"}
_OPTIMIZERS = {"adamw": "adamw", "adam": "adamw", "muon": "muon", "distmuon": "muon"}
_BALANCED = when_true({"switch.routing": "balanced"})

_TRAINING = {
    "training.seq_len": count("seq"),
    "training.max_context_length": count("seq"),
    "training.steps": count("train_steps"),
    "training.batch_size": KEPT,
    "training.local_batch_size": KEPT,
    "training.global_batch_size": positive("global_batch"),
    "training.num_tokens_per_microbatch_per_dp_rank": KEPT,
    "training.num_tokens_per_train_step": KEPT,
    "training.gradient_accumulation_steps": count("accumulation"),
    "training.mixed_precision_param": Read(("precision",), _precision),
    "training.dtype": Read(_STATES, _stored),
    "training.enable_cpu_offload": yes_no("offload"),
    "training.compile": switch("compile"),
    "training.fp8_linear": KEPT,
    "training.enable_fp8_linear": KEPT,
    "training.disable_cuda_graphs": Read(
        ("switch.cuda-graphs",), lambda v: {"switch.cuda-graphs": "none" if truth(v) else "full"}
    ),
    "training.debug_moe_force_load_balance": _BALANCED,
    "debug.moe_force_load_balance": _BALANCED,
    "training.data_parallel_type": KEPT,
    "training.data_parallel_degree": KEPT,
}
_DEGREES = {
    "data_parallel_replicate_degree": KEPT,
    "data_parallel_shard_degree": KEPT,
    "tensor_parallel_degree": count("tp"),
    "sequence_parallel_degree": count("tp"),
    "enable_sequence_parallel": KEPT,
    "pipeline_parallel_degree": count("pp"),
    "context_parallel_degree": count("cp"),
    "expert_parallel_degree": count("ep"),
    "expert_tensor_parallel_degree": count("etp"),
    "context_parallel_rotate_method": words("cpkind", _CONTEXT),
    "expert_parallel_comm_backend": words("switch.dispatcher", _DISPATCH),
    "enable_async_tensor_parallel": switch("overlap-tp"),
    "fsdp_reshard_after_forward": KEPT,
    "pipeline_parallel_schedule": KEPT,
    "pipeline_parallel_microbatches": KEPT,
    "pipeline_parallel_microbatch_size": KEPT,
    "num_pp_microbatches": KEPT,
    "pipeline_parallel_split_points": KEPT,
    "pipeline_parallel_layers_per_stage": KEPT,
    "pipeline_parallel_first_stage_less_layers": KEPT,
    "pipeline_parallel_last_stage_less_layers": KEPT,
    "module_fqns_per_model_part": KEPT,
    "module_fqns_per_model_part.0": KEPT,
    "pipeline_parallel_schedule_csv": KEPT,
    "pipeline_parallel_expert_parallel_overlap": switch("overlap-a2a"),
}
SECTIONS = ("parallelism", "training", "experimental")
"""Tables in which the degrees stood, the newest first."""

_OTHERS = {
    "model.name": KEPT,
    "model.flavor": KEPT,
    "model.converters": KEPT,
    "optimizer.name": words("optimizer", _OPTIMIZERS),
    "optimizer._target_": KEPT,
    "compile.enable": KEPT,
    "compile.components": KEPT,
    "compile.enable_async_tensor_parallel": switch("overlap-tp"),
    "activation_checkpoint": KEPT,
    "activation_checkpoint._target_": KEPT,
    "activation_checkpoint.mode": KEPT,
    "activation_checkpoint.selective_ac_option": KEPT,
    "activation_checkpoint.selective_ac_freq": KEPT,
    "loss._target_": KEPT,
    "model_spec._target_": KEPT,
    "model_spec.0": KEPT,
    "model_spec.flavor": KEPT,
    "model_spec.converters": KEPT,
    "model_spec.moe_comm_backend": words("switch.dispatcher", _DISPATCH),
    "model_spec.num_mtp_layers": positive("model.mtp"),
    "model_converters.converters": KEPT,
    "_target_": KEPT,
    "memory_estimation.enable": KEPT,
}
_FLOAT8 = {
    f"{where}.{name}": KEPT
    for where in ("float8", "quantize.linear.float8", "quantize.dense.float8")
    for name in ("enable_fsdp_float8_all_gather", "recipe_name", "enable_float8_linear",
                 "scaling_type_input", "scaling_type_weight", "scaling_type_grad_output")
}  # fmt: skip

TABLE = Table(
    keys={
        **_TRAINING,
        **{f"{section}.{name}": read for section in SECTIONS for name, read in _DEGREES.items()},
        **{f"model.{name}": KEPT for name in LLAMA},
        **_OTHERS,
        **_FLOAT8,
    },
    ignored=(
        r"(job|primus_turbo|profiling|profiler|metrics|checkpoint|comm|lr_scheduler|fault_tolerance|validation"
        r"|validator|logging|lm_eval|benchmarks|parameter_logging|infra|tokenizer|data|dataset|dataloader|debug|override)(\..*)?",
        r"optimizer\..*",
        r"(model\.)?(tokenizer_path|hf_assets_path|norm_type|print_after_conversion|tokenizer"
        r"|fold|dump_folder|seed)",
        r"(sink_level|file_sink_level|stderr_sink_level|dump_folder|description|print_config|save_config_file|seed)",
        r"training\.(dataset.*|mock_data|data_.*|warmup_steps|max_norm|gc_.*|seed|deterministic"
        r"|mixed_precision_reduce|enable_opus_backend|disable_loss_parallel|enable_loss_parallel|tokenizer.*"
        r"|loss_parallel.*|log_.*|num_workers.*)",
        r"(parallelism|experimental|training)\.(disable_loss_parallel|enable_loss_parallel"
        r"|enable_compiled_autograd|custom_.*|pipeline_parallel_split_mode|spmd_backend"
        r"|context_parallel_load_balancer|context_parallel_ptrr_mask_key|enable_fsdp_symm_mem"
        r"|hybridep_.*)",
        r"(float8|quantize\.[a-z_]+\.[a-z0-9]+|mx)\.(filter_fqns|fqns|moe_fqns.*|emulate|recipe_name"
        r"|precompute_.*|force_recompute_.*|mxfp8_.*|cast_.*|.*kernel.*)",
        r"activation_checkpoint\.(early_stop|preserve_rng_state|determinism_check|debug"
        r"|per_op_.*|visualize_.*|memory_budget)",
        r"compile\.(backend|model_backend_override|mode|fullgraph|precompile.*)",
        r"loss(\..*)?",
        r"model_spec\.attn_(backend|type)",
        r"(.*\.)?_target_",
        r"memory_estimation\..*",
    ),
)

# torchtitan's pipeline stages and batches
# ----------------------------------------


def section_keys(name: str) -> tuple[str, ...]:
    """A setting in each table in which it stood, the newest first."""
    return tuple(f"{section}.{name}" for section in SECTIONS)


def read_pipeline(tree: Tree, job: JobBuilder, complete: bool) -> None:
    """Schedule, stages and the layers of the end stages."""
    pp = job.number("pp")
    if pp is None or pp == 1:
        return
    key = section_keys("pipeline_parallel_schedule")
    said, place = word_of(tree, *key), tree.place(*key)
    kind = SCHEDULES.get((said or "1f1b").lower())
    looped = kind in LOOPED
    if said is not None and kind is None:
        looped = OTHER_SCHEDULES.get(said.lower(), 1) > 1
        job.not_understood(place, f"schedule {said} is none of {', '.join(SCHEDULES)}")
        job.ask("schedule", f"the file names {said}", "say the nearest schedule")
    elif said is not None and kind is not None:
        job.state("schedule", kind, place, override=True)
    elif complete:
        job.default("schedule", "1f1b", "the schedule is 1F1B unless set")
    _stages(tree, job, pp, looped)


def _stages(tree: Tree, job: JobBuilder, pp: int, looped: bool) -> None:
    job.uneven = "the first and last stage hold fewer layers"
    counts = _layers_of_parts(tree)
    names = ("module_fqns_per_model_part", "module_fqns_per_model_part.0",
             "pipeline_parallel_split_points")  # fmt: skip
    place = tree.place(*(k for name in names for k in section_keys(name)))
    points = names_of(tree, *section_keys("pipeline_parallel_split_points"))
    parts = len(counts) if counts else 0
    if not parts and points:
        parts = len(points) + 1
    layers = job.number("model.layers")
    per_stage = size_of(tree, *section_keys("pipeline_parallel_layers_per_stage"))
    if not parts and layers and per_stage:
        ends = [number(tree, *section_keys(f"pipeline_parallel_{end}_stage_less_layers"))
                for end in ("first", "last")]  # fmt: skip
        parts = math.ceil((layers + sum(1 if n is None else n for n in ends)) / per_stage)
    if parts and parts % pp == 0:
        job.derive("vpp", parts // pp, f"{parts} stages on pp = {pp} ranks", place)
    elif per_stage is None and not parts:
        job.derive("vpp", 2 if looped else 1, "stages on a rank of this schedule", place)
    if counts and len(counts) % pp == 0:
        folded = len(counts) == 2 * pp and job.get("schedule") in ("zb-v", "dualpipev")
        ranks = [sum(counts[rank::pp]) for rank in range(pp)]
        if folded:
            ranks = [counts[rank] + counts[-1 - rank] for rank in range(pp)]
        if len(set(ranks)) > 1 or len(counts) == pp:
            job.derive("first", ranks[0], "layers of the first rank's stages", place)
            job.derive("last", ranks[-1], "layers of the last rank's stages", place)


def _layers_of_parts(tree: Tree) -> list[int]:
    """Layers of each stage, from lists of module names or a list of counts."""
    counts = tree.value(*section_keys("module_fqns_per_model_part.0"))
    if isinstance(counts, list) and all(type(n) is int for n in counts):
        return counts
    parts = tree.value(*section_keys("module_fqns_per_model_part"))
    if not isinstance(parts, list) or not all(isinstance(part, list) for part in parts):
        return []
    return [sum(str(name).startswith("layers.") for name in part) for part in parts]


def read_batch(tree: Tree, job: JobBuilder, complete: bool) -> None:
    """Sequences of a micro-batch and micro-batches of a step."""
    keys = ("training.local_batch_size", "training.batch_size")
    local, place = size_of(tree, *keys), tree.place(*keys)
    if tree.has("training.num_tokens_per_microbatch_per_dp_rank"):
        _token_batch(tree, job)
        return
    if local is None or local < 1:
        return
    pp = job.number("pp")
    if pp is None:
        return
    if pp == 1:
        job.state("mbs", local, place, override=True)
        passes = 1
    else:
        size = _micro_batch(tree, job, local, pp)
        if size is None:
            return
        at = tree.place(*section_keys("pipeline_parallel_microbatch_size"),
                        *section_keys("pipeline_parallel_microbatches"))  # fmt: skip
        job.derive("mbs", size, f"{local} sequences of a rank in {local // size} micro-batches", at)
        passes = local // size
    if job.number("global_batch") is None and complete and job.number("accumulation") is None:
        job.derive("accumulation", passes, "no global batch size: one pass over the local batch")


def _micro_batch(tree: Tree, job: JobBuilder, local: int, pp: int) -> int | None:
    """Sequences of a pipeline's micro-batch."""
    pieces = number(tree, *section_keys("pipeline_parallel_microbatches"))
    size = number(tree, *section_keys("pipeline_parallel_microbatch_size"))
    if size is not None and size > 0:
        return size
    if pieces is None and tree.has("training.batch_size"):
        if (job.number("vpp") or 1) > 1:
            job.ask("mbs", "the number of pipeline micro-batches is not set and its default"
                    " changed from stages to ranks between releases", "give sequences")  # fmt: skip
            return None
        pieces = pp
    if pieces is not None and pieces > 0:
        return local // pieces if local % pieces == 0 else None
    return 1


def _token_batch(tree: Tree, job: JobBuilder) -> None:
    """Since the summer of 2026 batches are counted in tokens."""
    key, whole = (
        "training.num_tokens_per_microbatch_per_dp_rank",
        "training.num_tokens_per_train_step",
    )
    tokens, seq, total = size_of(tree, key), job.number("seq"), number(tree, whole)
    if tokens and seq and tokens % seq == 0:
        job.derive("mbs", tokens // seq, f"{tokens} tokens / {seq}", tree.place(key))
    if total and total > 0 and seq and total % seq == 0:
        job.derive("global_batch", total // seq, f"{total} tokens / {seq}", tree.place(whole))
    elif total is None or total < 0:
        pieces = size_of(tree, *section_keys("num_pp_microbatches")) or 1
        pp = job.number("pp")
        if pp is not None:
            job.derive("accumulation", pieces if pp > 1 else 1, "no tokens per step: one pass")
