"""Megatron-LM: ``torchrun pretrain_gpt.py`` with its arguments.

Names, choices and what excludes what are those of the arguments of megatron-core 0.19.2
(``megatron/training/arguments.py`` and the dataclasses it reads).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from krzem.errors import LayoutError
from krzem.layout.layout import ContextParallel, Recompute, Schedule
from krzem.model.architecture import AttentionKind
from krzem.plan.emit import megatron_model as model
from krzem.plan.emit import megatron_run as run
from krzem.plan.emit.fill import rope_scaling
from krzem.plan.emit.launch import Flag, Installed, Launch, Request, Section, section, torchrun
from krzem.plan.emit.model_shape import Shape, shape_of
from krzem.plan.emit.switches import governed, switch_flags
from krzem.plan.goal import Optimizer

VERSION = "core 0.19.2"
ENGINE = "Megatron-LM"
FACTS = "megatron-lm"
INSTALLED = Installed(
    name="megatron-core",
    command="python3 -c 'import megatron.core; print(megatron.core.__version__)'",
    version="0.19.2",
)


def launch(request: Request) -> Launch:
    """Everything Megatron-LM needs; see :func:`krzem.plan.emit.emit` for the errors."""
    shape = shape_of(request.arch, ENGINE)
    _check(request, shape)
    return Launch(
        engine=FACTS,
        version=VERSION,
        sections=_switched(request, shape),
        environment=tuple(_environment(request)),
        command=torchrun(request, 'pretrain_gpt.py "${args[@]}"'),
        notes=tuple(_notes(request, shape)),
        installed=(INSTALLED,),
    )


def _switched(request: Request, shape: Shape) -> tuple[Section, ...]:
    """All sections; flags of switches that were priced stand in one of their own."""
    left = governed(FACTS, request.switches)
    if request.switches.get("overlap-grad-reduce") == "off":
        left |= {"--overlap-param-gather"}  # only along with the other
    priced = section("Switches that were priced", _fitting(request))
    said = {flag.name for flag in priced.flags}
    kept = (
        replace(part, flags=tuple(flag for flag in part.flags if flag.name not in left | said))
        for part in _sections(request, shape)
    )
    return tuple(part for part in (*kept, priced) if part.flags)


def _fitting(request: Request) -> Iterator[Flag]:
    """The flags of all switches; a dense model has no router to record."""
    for flag in switch_flags(FACTS, request.switches):
        dense = flag.name == "--cuda-graph-modules" and not request.arch.is_moe
        yield replace(flag, value="attn mlp") if dense else flag
    chosen = request.switches
    if chosen.get("offload-activations") == "on" and chosen.get("cuda-graphs") == "full":
        yield Flag("--fine-grained-offloading-max-inflight-offloads", "1",
                   "recorded graphs need a bound on copies under way")  # fmt: skip


def _sections(request: Request, shape: Shape) -> tuple[Section, ...]:
    attention = [*model.attention(shape)]
    if shape.attention.kind is AttentionKind.LATENT:
        attention += model.latent_rope()
    moe = model.experts(request, shape) if shape.experts is not None else iter(())
    predicted = model.prediction(shape) if run.predicts(shape) else iter(())
    return (
        section("Model", chain(model.size(request, shape), _unfused(shape))),
        section("Vocabulary", model.vocabulary(request, shape)),
        section("Attention", iter(attention)),
        section("Mixture of experts", moe),
        section("Multi-token prediction", predicted),
        section("Parallelism", run.parallel(request, shape)),
        section("Pipeline", run.pipeline(request, shape)),
        section("Data parallelism", run.data_parallel(request)),
        section("Recomputation", run.recompute(request, shape)),
        section("Precision", run.precision(request)),
        section("Batch", run.batch(request)),
        section("Optimizer", chain(run.optimizer(request), run.states(request))),
        section("Data and checkpoints", chain(run.tokenizer(), run.storage(request))),
    )


def _unfused(shape: Shape) -> Iterator[Flag]:
    if shape.experts is not None and shape.experts.bias:
        yield Flag("--no-bias-dropout-fusion", "", "grouped experts with bias have none")


def _check(request: Request, shape: Shape) -> None:
    """What Megatron-LM refuses and nothing near it stands in for."""
    x = request.layout
    faults = (
        (
            x.cp > 1
            and shape.attention.indexer is not None
            and x.context_parallel is not ContextParallel.ALL_GATHER,
            f"cp = {x.cp} by {x.context_parallel}: sparse attention with an indexer gathers keys"
            " and values; plan with cpkind=allgather",
        ),
        (x.zero >= 2 and x.pp > 1,
         f"zero = {x.zero} with pp = {x.pp}: Megatron-FSDP is emitted without pipeline stages"
         " only; plan with zero=1 or pp=1"),
        (x.zero >= 2 and request.goal.optimizer is Optimizer.MUON,
         f"zero = {x.zero} with Muon: Megatron-FSDP knows Adam and SGD; plan with zero=1"),
        (x.offload_optimizer and x.zero == 0,
         "offload=1 with zero = 0: its optimizer on the host is the sharded one; plan with zero=1"),
        (x.etp > 1 and shape.experts is not None and shape.experts.bias,
         f"etp = {x.etp}: experts with bias are not cut; plan with etp=1"),
        (x.cp > 1 and request.goal.sequence % (2 * x.cp) != 0,
         f"cp = {x.cp}: a sequence of {request.goal.sequence} tokens does not divide by"
         f" 2 * cp = {2 * x.cp}"),
    )  # fmt: skip
    for bad, text in faults:
        if bad:
            raise LayoutError(f"{ENGINE} cannot run this layout: {text}")
    run.check_states(request)


def _environment(request: Request) -> Iterator[Flag]:
    yield from _queues(request)
    if request.switches.get("offload-activations") == "on":
        yield Flag("NVTE_CPU_OFFLOAD_V1", "1", "activations are offloaded, weights are not")


def _queues(request: Request) -> Iterator[Flag]:
    x = request.layout
    blackwell = request.cluster.device.family.startswith(
        ("nvidia-blackwell", "nvidia-gb", "nvidia-rubin")
    )
    if x.zero >= 2 or blackwell:
        return
    if run.overlaps_experts(request):
        yield Flag("CUDA_DEVICE_MAX_CONNECTIONS", "32",
                   "several queues, so that all-to-all runs beside compute")  # fmt: skip
    elif x.tp > 1 or x.cp > 1:
        yield Flag("CUDA_DEVICE_MAX_CONNECTIONS", "1",
                   "one queue keeps collectives ahead of the kernels that hide them")  # fmt: skip


def _notes(request: Request, shape: Shape) -> Iterator[str]:
    x = request.layout
    emitted = run.substituted(x)
    if x.pp > 1 and emitted is not x.schedule:
        yield (
            f"{ENGINE} has no {x.schedule} schedule. Emitted instead: {emitted} with"
            f" {run.chunks(x)} chunk(s) per rank; its bubble and memory differ, so explain the plan"
            f" again with schedule={emitted},vpp={run.chunks(x)}"
        )
    if x.schedule in (Schedule.DUALPIPE, Schedule.DUALPIPE_V) and x.recompute is Recompute.FULL:
        yield "overlap of the expert all-to-all is left out: it excludes full recomputation"
    if shape.arch.mtp_layers and not run.predicts(shape):
        yield "multi-token prediction is left out: the engine builds it without an indexer only"
    if x.recompute is Recompute.MODULES and shape.dense is not None:
        yield f"{ENGINE} recomputes activation functions in experts only, not in dense networks"
    if x.zero >= 2 and (x.tp > 1 or x.cp > 1):
        yield (
            "Megatron-FSDP and tensor or context parallelism want different values of"
            " CUDA_DEVICE_MAX_CONNECTIONS; it is left unset"
        )
    yield from common_notes(request)


def common_notes(request: Request) -> Iterator[str]:
    """What no plan knows: said for every Megatron-like engine."""
    scaling = rope_scaling(request.config)
    if scaling is not None:
        yield (
            f"config.json scales rotary positions ({scaling}) for long contexts; the flags here are"
            " those of pre-training at the original length, without scaling"
        )
    yield (
        "learning-rate schedule, warm-up, weight decay, clipping and initialisation belong to the"
        " recipe and are left at the engine's defaults"
    )
