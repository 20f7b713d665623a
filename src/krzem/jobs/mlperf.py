"""The shell files of settings that NeMo's MLPerf benchmarks are submitted with.

``config_*.sh`` exports variables and sources files of common ones; the program's own YAML takes
``${oc.env:NAME}`` of them.  Where that YAML is among the files it is read (:mod:`nemo_jobs`); here
the variables speak for themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

from krzem.jobs.hydra import literal
from krzem.jobs.job import JobBuilder
from krzem.jobs.launch import at
from krzem.jobs.launches import starts_of
from krzem.jobs.nemo import read_settings
from krzem.jobs.registry import Claim, Reader, Sources
from krzem.jobs.shell_words import ShellWord
from krzem.jobs.surroundings import describe
from krzem.jobs.tree import Entry, Tree, integer, truth_of

ENGINE = "megatron-bridge"
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


def claim(sources: Sources) -> Claim | None:
    """A file that sets the benchmark's variables, and no program that is started with them."""
    found = _variables(sources)
    if sum(name in found for name in _SHOWS) < _ENOUGH:
        return None
    return Claim(engine=ENGINE, strength=45, why="variables of NeMo's MLPerf benchmark are set")


def _variables(sources: Sources) -> Mapping[str, ShellWord]:
    return starts_of(sources).variables


def read(sources: Sources, job: JobBuilder) -> None:
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


READERS = (Reader(kind="MLPerf settings", engines=(ENGINE,), claim=claim, read=read),)
