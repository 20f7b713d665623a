"""KempnerForge: a TOML file for a trainer on FSDP2."""

from __future__ import annotations

import re
from collections.abc import Mapping

from krzem.errors import DataError, InputError
from krzem.jobs import (
    automodel,
    bridge_jobs,
    maxtext_jobs,
    mindformers,
    nanotron,
    nemo_jobs,
    neox,
    primus,
    titan_jobs,
    trainer_jobs,
)
from krzem.jobs import registry as native
from krzem.jobs.documents import toml_tree
from krzem.jobs.interpolation import literal
from krzem.jobs.job import JobBuilder
from krzem.jobs.launch import at
from krzem.jobs.launches import starts_of, state_machine
from krzem.jobs.nemo import read_settings
from krzem.jobs.priced import LLAMA, read_shape
from krzem.jobs.primus import fill_from
from krzem.jobs.registry import Claim, Reader, Sources, describe
from krzem.jobs.shell_words import ShellWord
from krzem.jobs.titan_jobs import compose, has_defaults
from krzem.jobs.tree import (
    KEPT,
    Defaults,
    Entry,
    Table,
    Tree,
    apply,
    count,
    fall_back,
    integer,
    number,
    positive,
    settle,
    switch,
    truth_of,
    words,
)

ENGINE = "other"
_PRECISIONS = {"bf16": "bf16", "fp8": "fp8", "fp32": "fp32", "fp16": "fp16", "bfloat16": "bf16"}
_RECOMPUTE = {"none": "none", "full": "full", "selective": "modules"}

_TABLE = Table(
    keys={
        **{f"model.{name}": KEPT for name in LLAMA},
        "train.batch_size": count("mbs"),
        "train.seq_len": count("seq"),
        "train.max_steps": positive("train_steps"),
        "train.grad_accum_steps": count("accumulation"),
        "train.compile_model": switch("compile"),
        "train.mixed_precision": words("precision", _PRECISIONS),
        "train.activation_checkpointing": words("recompute", _RECOMPUTE),
        "optimizer.name": words("optimizer", {"adamw": "adamw", "muon": "muon", "lion": "lion"}),
        "distributed.dp_shard": KEPT,
        "distributed.dp_replicate": KEPT,
        "distributed.tp": count("tp"),
        "distributed.pp": count("pp"),
        "distributed.cp": count("cp"),
        "distributed.ep": count("ep"),
        "distributed.pp_schedule": words(
            "schedule", {"1f1b": "1f1b", "interleaved_1f1b": "interleaved"}
        ),
        "model.rope_theta": KEPT,
        "model.activation": KEPT,
        "model.norm_type": KEPT,
        "model.max_seq_len": KEPT,
    },
    ignored=(
        r"(optimizer|scheduler|data|checkpoint|metrics|profiling|eval|tokenizer|logging)(\..*)?",
        r"train\.(grad_clip_norm|seed|loss_fn|z_loss.*|shutdown.*|nccl.*)",
        r"distributed\.(nccl_timeout_sec|backend|.*timeout.*)",
        r"model\.(norm_eps|init_std|max_position.*|.*eps|moe_(aux|router|loss|capacity).*)",
    ),
)  # fmt: skip

_DEFAULTS: Defaults = {
    "tp": (1, "tp is 1"),
    "cp": (1, "cp is 1"),
    "pp": (1, "pp is 1"),
    "accumulation": (1, "grad_accum_steps is 1"),
    "precision": ("bf16", "mixed_precision is bf16"),
    "recompute": ("none", "activation_checkpointing is none"),
    "optimizer": ("adamw", "the optimizer is AdamW"),
    "finetune": ("none", "all weights are trained"),
    "offload": (False, "states stay on the device"),
    "model.tied": (False, "tie_embeddings is false"),
    "model.qk_norm": (False, "qk_norm is false"),
    "switch.attention": ("fused", "scaled_dot_product_attention"),
    "switch.compile": ("off", "compile_model is false"),
}


def claim(sources: Sources) -> Claim | None:
    """Its own pair of tables."""
    for name, text in sources.with_suffix(".toml").items():
        try:
            tree = toml_tree(text, name)
        except DataError:
            continue
        own = tree.has("train.grad_accum_steps", "train.compile_model", "train.mixed_precision")
        if own and tree.has("distributed") and tree.has("model.dim"):
            return Claim(engine=ENGINE, strength=80, why=f"KempnerForge's tables in {name}")
    return None


def read(sources: Sources, job: JobBuilder) -> None:
    """The first TOML file; the trainer is one that krzem has no description of."""
    tree = Tree()
    for name, text in sources.with_suffix(".toml").items():
        tree.update(toml_tree(text, name))
    job.note("the engine is KempnerForge, a trainer on PyTorch's FSDP2")
    apply(tree, _TABLE, job)
    read_shape(tree.sub("model"), job)
    _experts(tree, job)
    _shards(tree, job)
    if job.get("precision") == "fp8":
        job.default("switch.fp8-scaling", "tensor", "torchao's float8 scales by tensor")
    fall_back(job, _DEFAULTS)
    state_machine(job, next(iter(starts_of(sources).find(r"train\.py$")), None), sources)
    describe(sources, job)


def _experts(tree: Tree, job: JobBuilder) -> None:
    """Experts have the width of a dense layer, and drop nothing without a capacity."""
    if job.number("model.experts") is None:
        return
    top, width = number(tree, "model.moe_top_k"), job.number("model.ffn")
    if top:
        job.state("model.top_k", top, tree.place("model.moe_top_k"))
    if width and not tree.has("model.moe_expert_ffn_multiplier"):
        job.default("model.moe_ffn", width, "moe_expert_ffn_multiplier is 1")
    factor = tree.value("model.moe_capacity_factor")
    if isinstance(factor, int | float) and not isinstance(factor, bool):
        choice = "capacity" if factor > 0 else "real"
        job.state("switch.routing", choice, tree.place("model.moe_capacity_factor"))


def _shards(tree: Tree, job: JobBuilder) -> None:
    shard = number(tree, "distributed.dp_shard")
    copies = number(tree, "distributed.dp_replicate") or 1
    place = tree.place("distributed.dp_shard")
    if shard == 1:
        job.derive("zero", 0, "dp_shard is 1: weights are copied", place)
    else:
        job.derive("zero", 3, "FSDP2 drops weights after forward", place)
    if shard is not None and shard > 0:
        job.derive("dp", shard * copies, f"dp_replicate {copies} * dp_shard {shard}", place)
        job.same_data = job.number("ep") or 1
        if copies * job.same_data > 1 and shard > 1:
            job.derive("shard", shard, "dp_shard", place)


READERS = (Reader(kind="KempnerForge", engines=(ENGINE,), claim=claim, read=read),)

# Experiments of OpenEuroLLM's templates that run Megatron-LM: Hydra over ``backend.megat...
# ------------------------------------------------------------------------------------------

AUTOEXP_ENGINE = "megatron-lm"
_BACKEND = re.compile(r"^backend:\s*$|^\s*-\s*/backend(/megatron)?:\s", re.M)


def autoexp_claim(sources: Sources) -> Claim | None:
    """An experiment that composes a Megatron backend."""
    main = _main(sources)
    if main is None:
        return None
    text = sources.files[main]
    if re.search(r"^\s{2}megatron:\s*$|/backend:\s*megatron", text, re.M):
        return Claim(engine=AUTOEXP_ENGINE, strength=80, why=f"{main} composes a Megatron backend")
    return None


def _main(sources: Sources) -> str | None:
    """The experiment: a file with a defaults list and a backend."""
    for name, text in sources.with_suffix(".yaml", ".yml").items():
        if has_defaults(text) and _BACKEND.search(text):
            return name
    return None


def autoexp_read(sources: Sources, job: JobBuilder) -> None:
    """The composed experiment; files of its defaults list that are not given are named."""
    main = _main(sources)
    if main is None:
        raise InputError("no given file is an experiment with a defaults list and a backend")
    made = compose(sources.with_suffix(".yaml", ".yml"), main)
    if made.missing:
        job.note(f"not among the files: {', '.join(made.missing[:8])}")
    for key, name in (("nnodes", "nodes"), ("nproc_per_node", "devices_per_node")):
        entry = made.tree.entries.get(f"backend.torchrun_args.{key}")
        if entry is not None:
            settle(entry, count(name), job)
    own = made.tree.sub("backend.megatron")
    for key in [k for k in own.entries if k.startswith("aux.") or k == "aux"]:
        del own.entries[key]
    fill_from(own, job)
    describe(sources, job)


AUTOEXP_READERS = (
    Reader(
        kind="OpenEuroLLM's templates",
        engines=(AUTOEXP_ENGINE,),
        claim=autoexp_claim,
        read=autoexp_read,
    ),
)

# The shell files of settings that NeMo's MLPerf benchmarks are submitted with
# ----------------------------------------------------------------------------

MLPERF_ENGINE = "megatron-bridge"
_KEYS: Mapping[str, str] = {
    "TENSOR_MODEL_PARALLEL": "model.tensor_model_parallel_size",
    "PIPELINE_MODEL_PARALLEL": "model.pipeline_model_parallel_size",
    "INTERLEAVED_PIPELINE": "model.virtual_pipeline_model_parallel_size",
    "CONTEXT_PARALLEL": "model.context_parallel_size",
    "EXPERT_PARALLEL": "model.expert_model_parallel_size",
    "SEQ_PARALLEL": "model.sequence_parallel",
    "MICRO_BATCH_SIZE": "model.micro_batch_size",
    "DGXNGPU": "trainer.devices",
    "DGXNNODES": "trainer.num_nodes",
    "MAX_STEPS": "trainer.max_steps",
    "OVERWRITTEN_NUM_LAYERS": "model.overwritten_attributes.num_layers",
    "FP8": "model.fp8",
    "FP8_RECIPE": "model.fp8_recipe",
    "FP8_PARAM_GATHER": "model.optim.fp8_param_gather",
    "FP8_PARAMS": "model.optim.fp8_params",
    "FP4": "model.fp4",
    "TP_COMM_OVERLAP": "model.ub_tp_comm_overlap",
    "OVERLAP_GRAD_REDUCE": "model.optim.overlap_grad_reduce",
    "OVERLAP_PARAM_GATHER": "model.optim.overlap_param_gather",
    "USE_DIST_OPTIMIZER": "model.optim.use_distributed_optimizer",
    "MCORE_CUDA_GRAPH": "model.enable_cuda_graph",
    "LAYER_CUDA_GRAPH": "model.external_cuda_graph",
    "ACT_CKPT_GRANULARITY": "model.activations_checkpoint_granularity",
    "ACT_CKPT_METHOD": "model.activations_checkpoint_method",
    "ACT_CKPT_NUM_LAYERS": "model.activations_checkpoint_num_layers",
    "GRADIENT_ACCUMULATION_FUSION": "model.gradient_accumulation_fusion",
}
"""Variables of the benchmark and the setting that its YAML gives each of them."""
_SHOWS = ("TENSOR_MODEL_PARALLEL", "PIPELINE_MODEL_PARALLEL", "DGXNNODES", "DGXNGPU", "MINIBS")
_ENOUGH = 4


def mlperf_claim(sources: Sources) -> Claim | None:
    """A file that sets the benchmark's variables, and no program that is started with them."""
    found = _variables(sources)
    if sum(name in found for name in _SHOWS) < _ENOUGH:
        return None
    return Claim(
        engine=MLPERF_ENGINE, strength=45, why="variables of NeMo's MLPerf benchmark are set"
    )


def _variables(sources: Sources) -> Mapping[str, ShellWord]:
    return starts_of(sources).variables


def mlperf_read(sources: Sources, job: JobBuilder) -> None:
    """Each variable as the setting it stands for."""
    found, tree = _variables(sources), Tree()
    for name, key in _KEYS.items():
        word = found.get(name)
        if word is not None and word.known:
            place = at(word.origin, sources.files)
            tree.put(Entry(key=key, value=literal(word.text), place=place))
    read_settings(tree, job)
    _eight_bit_copies(tree, job)
    _batch(found, sources, job)
    fused = found.get("CE_FUSION_IMPL")
    if fused is not None and fused.known and fused.text in ("te", "native"):
        job.state("switch.loss", "fused", at(fused.origin, sources.files))
    describe(sources, job)


def _eight_bit_copies(tree: Tree, job: JobBuilder) -> None:
    """With 4-bit products too, weights are gathered in 8 bits or they are not."""
    keys = ("model.optim.fp8_param_gather", "model.optim.fp8_params")
    said = truth_of(tree, *keys)
    if said is not None:
        place = tree.place(*keys)
        job.state("switch.fp8-params", "on" if said else "off", place, override=True)


def _batch(found: Mapping[str, ShellWord], sources: Sources, job: JobBuilder) -> None:
    """MINIBS is the sequences of a step on each data-parallel rank."""
    word, micro = found.get("MINIBS"), job.number("mbs")
    if word is None or not word.known or not word.text.isdigit() or not micro:
        return
    each = integer(word.text)
    if each and each % micro == 0:
        why = f"MINIBS = {each} sequences of a rank / {micro}"
        job.derive("accumulation", each // micro, why, at(word.origin, sources.files))


MLPERF_READERS = (
    Reader(kind="MLPerf settings", engines=(MLPERF_ENGINE,), claim=mlperf_claim, read=mlperf_read),
)

# Readers of engines whose jobs are configuration files
# -----------------------------------------------------

FILE_READERS = (
    *AUTOEXP_READERS,
    *automodel.READERS,
    *bridge_jobs.READERS,
    *READERS,
    *maxtext_jobs.READERS,
    *mindformers.READERS,
    *MLPERF_READERS,
    *nanotron.READERS,
    *native.READERS,
    *nemo_jobs.READERS,
    *neox.READERS,
    *primus.READERS,
    *titan_jobs.READERS,
    *trainer_jobs.READERS,
)
