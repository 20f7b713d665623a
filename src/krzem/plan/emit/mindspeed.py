"""MindSpeed-LLM: Megatron-LM for Ascend, with its own words for some things.

MindSpeed-LLM 26.1.0 patches Megatron core_v0.12.1, so what describes the model is Megatron-LM's;
pipeline schedules, context parallelism, recomputation, offload and DeepSeek V4 are its own.  Names
are those of its features, of MindSpeed's and of Megatron's parser
(``facts/engine_flags/mindspeed-llm-26.1.0.csv``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from krzem.errors import GoalError, LayoutError, ModelError
from krzem.layout.layout import ContextParallel, Layout, Optimizer, Precision, Recompute, Schedule
from krzem.model.architecture import AttentionKind, RouterKind
from krzem.plan.emit import megatron as model
from krzem.plan.emit import megatron_run as run
from krzem.plan.emit import model_shape as v4
from krzem.plan.emit.launch import (
    Flag,
    Installed,
    Launch,
    Request,
    Section,
    ask,
    governed,
    section,
    switch_flags,
    torchrun,
)
from krzem.plan.emit.megatron import common_notes
from krzem.plan.emit.megatron_run import stage_layers
from krzem.plan.emit.model_shape import Shape, is_v4, shape_of, stand_in

VERSION = "26.1.0 (Megatron core_v0.12.1)"
ENGINE = "MindSpeed-LLM"
FACTS = "mindspeed-llm"
_INSTALLED = Installed(
    name=ENGINE,
    command="test -e mindspeed_llm/features_manager/transformer/mhc_feature.py && echo 26.1",
    version="26.1",
)

_CONTEXT = {
    ContextParallel.RING: ("megatron_cp_algo", "keys and values travel round a ring"),
    ContextParallel.ALL_TO_ALL: ("ulysses_cp_algo", "all-to-all turns sequence into head shards"),
    ContextParallel.ALL_GATHER: ("kvallgather_cp_algo", "keys and values are gathered whole"),
}
_SUBSTITUTES = {
    Schedule.DUALPIPE: Schedule.DUALPIPE_V,
    Schedule.ZB_V: Schedule.INTERLEAVED,
    Schedule.ZB_H1: Schedule.ONE_F_ONE_B,
}


def launch(request: Request) -> Launch:
    """Everything MindSpeed-LLM needs; see :func:`krzem.plan.emit.emit` for the errors."""
    compressed = is_v4(request.arch)
    arch = request.arch
    shape = stand_in(arch, ENGINE) if compressed else shape_of(arch, ENGINE, sandwich=True)
    layout = _emitted(request.layout)
    if not compressed:
        _check_model(shape)
    _check(replace(request, layout=layout), shape)
    start = "pretrain_deepseek4.py" if compressed else "pretrain_gpt.py"
    return Launch(
        engine="mindspeed-llm",
        version=VERSION,
        sections=_switched(replace(request, layout=layout), shape),
        environment=tuple(_environment()),
        command=torchrun(request, f'{start} "${{args[@]}}" --distributed-backend nccl'),
        notes=tuple(_notes(request, layout)),
        installed=(_INSTALLED,),
    )


def _switched(request: Request, shape: Shape) -> tuple[Section, ...]:
    """All sections; flags of switches that were priced stand in one of their own."""
    left = governed(FACTS, request.switches)
    kept = (
        replace(part, flags=tuple(flag for flag in part.flags if flag.name not in left))
        for part in _sections(request, shape)
    )
    priced = section("Switches that were priced", switch_flags(FACTS, request.switches))
    return tuple(part for part in (*kept, priced) if part.flags)


def _emitted(layout: Layout) -> Layout:
    """The layout with a schedule that MindSpeed-LLM has."""
    schedule = _SUBSTITUTES.get(layout.schedule, layout.schedule)
    if layout.pp == 1 or schedule is layout.schedule:
        return layout
    chunks = 1 if schedule is Schedule.ONE_F_ONE_B else 2
    return replace(layout, schedule=schedule, vpp=chunks)


def _sections(request: Request, shape: Shape) -> tuple[Section, ...]:
    padded, noops = _padding(shape.arch.layers, request.layout)
    if is_v4(shape.arch):
        size: Iterator[Flag] = v4.size(request, padded)
        attention, moe = v4.attention(request, noops), v4.experts(request)
    else:
        size = (
            replace(flag, value=str(padded)) if flag.name == "--num-layers" else flag
            for flag in model.size(request, shape)
        )
        attention = _attention(shape)
        moe = _experts(request, shape) if shape.experts is not None else iter(())
    sections = (
        section("Model", chain(_base(), size)),
        section("Vocabulary", model.vocabulary(request, shape)),
        section("Attention", attention),
        section("Mixture of experts", moe),
        section("Multi-token prediction", model.prediction(shape)),
        section("Parallelism", _parallel(request, shape)),
        section("Pipeline", _pipeline(request, shape, noops)),
        section("Data parallelism", _data_parallel(request)),
        section("Recomputation", _recompute(request, shape)),
        section("Precision", run.precision(request)),
        section("Batch", run.batch(request)),
        section("Optimizer", _optimizer(request)),
        section("Data and checkpoints", chain(_tokenizer(), run.storage(request))),
    )
    return tuple(part for part in sections if part.flags)


def _base() -> Iterator[Flag]:
    yield Flag("--use-mcore-models", "", "models of Megatron core")
    yield Flag("--transformer-impl", "local", "MindSpeed's modules in place of Transformer Engine")
    yield Flag("--use-flash-attn", "", "fused attention")
    yield Flag("--use-fused-rmsnorm", "", "fused norm")
    yield Flag("--use-fused-swiglu", "", "fused activation")
    yield Flag("--use-fused-rotary-pos-emb", "", "fused rotary positions")
    yield Flag("--no-masked-softmax-fusion", "", "a CUDA kernel that is absent here")
    yield Flag("--attention-softmax-in-fp32", "", "softmax in fp32")


def _attention(shape: Shape) -> Iterator[Flag]:
    a = shape.attention
    for flag in model.attention(shape):
        if not flag.name.startswith(("--dsa-", "--experimental-")):
            yield flag
    if a.kind is AttentionKind.LATENT:
        yield Flag("--spec", "mindspeed_llm.tasks.models.spec.deepseek_spec layer_spec",
                   "layers with latent attention")  # fmt: skip
        yield Flag("--mla-fa-without-pad", "", "value heads are not padded to the query width")
    if _sandwich(shape):
        yield Flag("--post-norm", "", "norms after attention and network too (sandwich norms)")
        yield Flag("--spec", "mindspeed_llm.tasks.models.spec.gemma2_spec layer_spec",
                   "layers with such norms")  # fmt: skip
    if a.indexer is not None:
        yield Flag("--enable-dsa-indexer", "", "sparse attention with an indexer")
        yield Flag("--index-n-heads", str(a.indexer.heads), "heads of the indexer")
        yield Flag("--index-head-dim", str(a.indexer.head_dim), "width of an indexer head")
        yield Flag("--index-topk", str(a.indexer.topk), "keys kept per query")


def _sandwich(shape: Shape) -> bool:
    return any(layer.norms == 4 for layer, _ in shape.arch.kinds())


def _experts(request: Request, shape: Shape) -> Iterator[Flag]:
    leading = shape.moe_layers.index(True)
    for flag in model.experts(request, shape):
        if flag.name == "--moe-shared-expert-gate":
            yield replace(flag, name="--shared-expert-gate")
        elif flag.name == "--moe-layer-freq" and all(shape.moe_layers[leading:]):
            yield Flag("--first-k-dense-replace", str(leading), "leading dense layers")
            yield Flag("--moe-layer-freq", "1", "then experts in every layer")
        else:
            yield flag


def _parallel(request: Request, shape: Shape) -> Iterator[Flag]:
    kind, why = _CONTEXT[request.layout.context_parallel]
    for flag in run.parallel(request, shape):
        yield Flag("--context-parallel-algo", kind, why) if flag.name == "--cp-comm-type" else flag


def _stacked(layout: Layout) -> bool:
    """Whether every rank holds several chunks, which must then be equally deep."""
    return layout.pp > 1 and (layout.vpp > 1 or layout.schedule is Schedule.DUALPIPE_V)


def _padding(layers: int, layout: Layout) -> tuple[int, tuple[int, ...]]:
    """Layers with empty ones added so that chunks are equal, and which of them are empty."""
    if not _stacked(layout):
        return layers, ()
    stages = stage_layers(layers, layout)
    deep = max(stages)
    noops = [
        index * deep + place
        for index, count in enumerate(stages)
        for place in range(count, deep)
    ]  # fmt: skip
    return deep * len(stages), tuple(noops)


def _pipeline(request: Request, shape: Shape, noops: tuple[int, ...]) -> Iterator[Flag]:
    x = request.layout
    yield Flag("--pipeline-model-parallel-size", str(x.pp), "pipeline stages")
    if x.pp == 1:
        return
    stages = stage_layers(shape.arch.layers, x)
    if x.schedule is Schedule.DUALPIPE_V:
        yield Flag("--schedules-method", "dualpipev", "two chunks per rank, folded into a V")
    elif x.vpp > 1:
        yield Flag("--num-layers-per-virtual-pipeline-stage", str(max(stages)),
                   f"{x.vpp} model chunks on every rank (interleaved 1F1B)")  # fmt: skip
    elif len(set(stages)) > 1:
        yield Flag("--num-layer-list", ",".join(map(str, stages)), "layers per stage")
    if noops:
        yield Flag("--noop-layers", ",".join(map(str, noops)),
                   f"empty layers, so that {shape.arch.layers} fill equal chunks")  # fmt: skip
    if _overlaps(x):
        yield Flag("--moe-fb-overlap", "",
                   "one micro-batch's all-to-all behind another's compute")  # fmt: skip


def _overlaps(x: Layout) -> bool:
    return x.schedule is Schedule.DUALPIPE_V and x.ep > 1 and x.etp == 1


def _data_parallel(request: Request) -> Iterator[Flag]:
    """DualPipeV and its overlap exclude the overlapped gradient reduction."""
    x = request.layout
    dual = x.schedule is Schedule.DUALPIPE_V and x.pp > 1
    for flag in run.data_parallel(request):
        if not (dual and flag.name.startswith("--overlap")):
            yield flag


def _recompute(request: Request, shape: Shape) -> Iterator[Flag]:
    x = request.layout
    if x.recompute is Recompute.MODULES:
        yield Flag("--recompute-norm", "", "norms are computed again")
        yield Flag("--recompute-activation-function", "", "so are activation functions")
        if shape.attention.kind is AttentionKind.LATENT:
            yield Flag("--recompute-mla-up-proj", "", "and latent up-projections")
        return
    for flag in run.recompute(request, shape):
        if flag.name == "--recompute-num-layers" and x.recompute_layers is not None:
            yield replace(flag, value=str(x.recompute_layers), why="layers per rank")
            yield Flag("--enable-recompute-layers-per-pp-rank", "", "counted per rank, not chunk")
        elif flag.name != "--recompute-modules":
            yield flag


def _optimizer(request: Request) -> Iterator[Flag]:
    adam = request.goal.optimizer is Optimizer.ADAMW
    yield Flag("--optimizer", "adam" if adam else "muon", "AdamW" if adam else "Muon")
    yield Flag("--lr", ask("LR", "peak learning rate"), "belongs to the recipe")
    if request.layout.offload_optimizer:
        yield Flag("--swap-optimizer", "", "states live in host memory")


def _tokenizer() -> Iterator[Flag]:
    yield Flag("--tokenizer-type", "PretrainedFromHF", "tokenizer of the model")
    yield Flag("--tokenizer-name-or-path", ask("TOKENIZER", "name or folder"), "which")


def _environment() -> Iterator[Flag]:
    yield Flag("CUDA_DEVICE_MAX_CONNECTIONS", "1", "one queue keeps collectives in order")
    yield Flag("TASK_QUEUE_ENABLE", "2", "the host prepares operators ahead")
    yield Flag("CPU_AFFINITY_CONF", "1", "processes stay on the cores near their device")
    yield Flag("PYTORCH_NPU_ALLOC_CONF", "expandable_segments:True", "less fragmentation")
    yield Flag("HCCL_CONNECT_TIMEOUT", "3600", "seconds to wait while a large job gathers")


def _check_model(shape: Shape) -> None:
    a, moe = shape.attention, shape.experts
    faults = [
        text
        for bad, text in (
            (a.sinks, "sinks in the softmax"),
            (_sandwich(shape) and (a.kind is AttentionKind.LATENT or moe is not None),
             "sandwich norms (--post-norm) with latent attention or experts"),
            (a.window is not None, "sliding windows"),
            (moe is not None and moe.router is RouterKind.SQRT_SOFTPLUS, "square-root scores"),
            (moe is not None and moe.router_bias and moe.router is not RouterKind.SIGMOID,
             "a balancing bias without sigmoid scores"),
        )
        if bad
    ]  # fmt: skip
    if faults:
        raise ModelError(
            f"{ENGINE} {VERSION} has no arguments known here for {shape.arch.name}:"
            f" {'; '.join(faults)}. See whether its examples have a script for this model"
        )


def _check(request: Request, shape: Shape) -> None:
    x, goal = request.layout, request.goal
    dual = x.schedule is Schedule.DUALPIPE_V and x.pp > 1
    least = 2 * x.pp - 1
    gathers = x.cp > 1 and x.context_parallel is ContextParallel.ALL_GATHER
    on = request.switches
    faults = (
        (x.zero >= 2, f"zero = {x.zero}: only the sharded optimizer is emitted; plan with zero=1"),
        (0 < x.shard < x.dp * x.cp, f"shard = {x.shard}: shards span all data-parallel ranks"),
        (dual and x.cp > 1, f"DualPipeV with cp = {x.cp}; plan with cp=1"),
        (dual and request.arch.tied_embeddings, "DualPipeV with tied embeddings"),
        (dual and request.micro_batches < least,
         f"DualPipeV with {request.micro_batches} micro-batches, fewer than 2 * pp - 1 = {least}"),
        (gathers and shape.attention.indexer is None,
         "cpkind=allgather, which it has for sparse attention only; plan with ring or a2a"),
        (x.cp > 1 and not gathers and shape.attention.indexer is not None
         and x.context_parallel is ContextParallel.RING,
         "cpkind=ring with an indexer; plan with cpkind=allgather or a2a"),
        (is_v4(request.arch) and request.arch.is_moe and x.etp != 1,
         f"etp = {x.etp} for DeepSeek V4; plan with etp=1"),
        (is_v4(request.arch) and dual, "DualPipeV for DeepSeek V4; plan with interleaved or 1f1b"),
    )  # fmt: skip
    for bad, text in faults:
        if bad:
            raise LayoutError(f"{ENGINE} cannot run this layout: {text}")
    if on.get("grad-sync") == "every":
        raise GoalError(f"{ENGINE} has no flag for grad-sync=every here: FSDP2 is not emitted")
    if on.get("overlap-a2a") == "on" and on.get("overlap-grad-reduce") == "on":
        raise GoalError(f"{ENGINE} refuses overlap-a2a=on with overlap-grad-reduce=on")
    if on.get("overlap-param-gather") == "on" and on.get("overlap-grad-reduce") == "off":
        raise GoalError(f"{ENGINE} refuses overlap-param-gather=on with overlap-grad-reduce=off")
    moments = 8.0 if goal.optimizer is Optimizer.ADAMW else 4.0
    if goal.states.moments != moments:
        raise GoalError(
            f"{ENGINE} keeps moments of {moments:g} bytes per parameter here, not"
            f" {goal.states.moments:g}"
        )
    if goal.precision in (Precision.FP8_BLOCK, Precision.NVFP4):
        raise GoalError(
            f"{ENGINE} on Megatron core_v0.12.1 has no {goal.precision} recipe; choose bf16, fp16,"
            " fp8 or mxfp8"
        )


def _notes(request: Request, emitted: Layout) -> Iterator[str]:
    x = request.layout
    if emitted.schedule is not x.schedule:
        yield (
            f"{ENGINE} has no {x.schedule} schedule. Emitted instead: {emitted.schedule} with"
            f" {emitted.vpp} chunk(s) per rank; its bubble and memory differ, so explain the plan"
            f" again with schedule={emitted.schedule},vpp={emitted.vpp}"
        )
    if request.goal.precision in (Precision.FP8, Precision.MXFP8):
        yield "8-bit matrix products need Ascend 950 or later; 910B and 910C have none"
    if request.goal.optimizer is Optimizer.MUON:
        yield "Muon came to MindSpeed in 2026; check that your branch has --optimizer muon"
    if is_v4(request.arch) and request.arch.mtp_layers:
        yield "the prediction module takes the compression of the first layer of the last stage"
    yield (
        "overlapped gradient reduction and weight gathering are a known source of NaN on NPUs:"
        " take --overlap-grad-reduce and --overlap-param-gather out first if you see one"
    )
    yield from common_notes(request)
