"""Megatron-LM's arguments that say how the work is cut, stored and computed; layers by stage."""

from __future__ import annotations

from collections.abc import Iterator

from krzem.errors import GoalError, LayoutError
from krzem.layout.layout import (
    V_SHAPED,
    ContextParallel,
    Layout,
    Optimizer,
    Precision,
    Recompute,
    Schedule,
    chunks_per_rank,
)
from krzem.model.architecture import AttentionKind
from krzem.plan.emit.launch import Flag, Request, ask
from krzem.plan.emit.model_shape import Shape

# Which layers sit on which pipeline stage, in the order the forward pass meets them
# ----------------------------------------------------------------------------------


def rank_layers(layers: int, layout: Layout) -> tuple[int, ...]:
    """Layers per pipeline rank, shape (pp,).

    Without wishes as even as whole layers allow: the ranks that get one less are the last (it
    holds the output matrix), the first, then the middle ones from the end.

    Raises LayoutError where the wishes for the first and last rank do not add up.
    """
    pp = layout.pp
    if pp == 1:
        return (layers,)
    even, spare = -(-layers // pp), -layers % pp
    if layout.first_stage_layers is None and layout.last_stage_layers is None:
        short = [pp - 1, 0, *range(pp - 2, 0, -1)][:spare]
        return tuple(even - (rank in short) for rank in range(pp))
    first, last = layout.first_stage_layers, layout.last_stage_layers
    if first is None:
        first = layers - (last or 0) if pp == 2 else even - (spare >= 2)
    if last is None:
        last = layers - first if pp == 2 else even - (spare >= 1)
    rest, ranks = layers - first - last, pp - 2
    if rest < 0 or (rest > 0) != (ranks > 0):
        raise LayoutError(
            f"{first} layers on the first and {last} on the last of pp = {pp} ranks leave"
            f" {layers} - {first} - {last} = {rest} layers for {ranks} ranks between"
        )
    middle = [rest // ranks + (rank < rest % ranks) for rank in range(ranks)]
    return (first, *middle, last)


def stage_layers(layers: int, layout: Layout) -> tuple[int, ...]:
    """Layers per stage, shape (pp * chunks,), in forward order.

    A rank splits its layers over its chunks as evenly as it can.  Earlier chunks get more, but on
    the first rank of a looped schedule the later ones do: the very first stage has the embedding,
    the very last the output matrix, and either may hold nothing else.
    """
    ranks = rank_layers(layers, layout)
    chunks = chunks_per_rank(layout)
    folded = layout.schedule in V_SHAPED
    stages: list[int] = []
    for chunk in range(chunks):
        share = [n // chunks + (chunk < n % chunks) for n in ranks]
        if not folded:
            share[0] = ranks[0] // chunks + (chunks - 1 - chunk < ranks[0] % chunks)
        stages += reversed(share) if chunk % 2 and folded else share
    return tuple(stages)


def check_filled(layers: int, stages: tuple[int, ...], engine: str) -> None:
    """Only the first and the last stage may do without layers.

    Raises LayoutError with the number of layers that are missing.
    """
    empty = sum(count < 1 for count in stages[1:-1])
    if len(stages) > 1 and empty:
        raise LayoutError(
            f"{engine} cannot run this layout: {layers} layers on {len(stages)} stages leave"
            f" {empty} of the stages between the first and the last empty; plan with fewer chunks"
            " or pipeline ranks"
        )


# Megatron-LM's arguments that say how the work is cut, stored and computed
# -------------------------------------------------------------------------

_CONTEXT = {
    ContextParallel.RING: ("p2p", "keys and values travel round a ring"),
    ContextParallel.ALL_TO_ALL: ("a2a", "all-to-all turns sequence shards into head shards"),
    ContextParallel.ALL_GATHER: ("allgather", "keys and values are gathered whole"),
}
_STATE_TYPES = {4.0: "fp32", 2.0: "bf16", 1.0: "fp8"}


def parallel(request: Request, shape: Shape) -> Iterator[Flag]:
    """Tensor, context, expert parallel degrees."""
    x = request.layout
    yield Flag("--tensor-model-parallel-size", str(x.tp), "ranks that cut every matrix")
    if x.tp > 1 and x.sequence_parallel:
        yield Flag("--sequence-parallel", "", "norms and residuals cut over the tensor ranks")
    yield Flag("--context-parallel-size", str(x.cp), "ranks that cut a sequence")
    if x.cp > 1:
        kind, why = _CONTEXT[x.context_parallel]
        yield Flag("--cp-comm-type", kind, why)
    if shape.experts is not None:
        yield Flag("--expert-model-parallel-size", str(x.ep), "ranks that share the experts")
        yield Flag("--expert-tensor-parallel-size", str(x.etp),
                   "ranks that cut one expert (the default is the tensor degree)")  # fmt: skip


def substituted(layout: Layout) -> Schedule:
    """The schedule Megatron-LM runs where it has not the one of the layout."""
    if layout.schedule in (Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED):
        return layout.schedule
    return Schedule.ONE_F_ONE_B if chunks(layout) == 1 else Schedule.INTERLEAVED


def chunks(layout: Layout) -> int:
    """Model chunks per rank; DualPipe's two directions become two chunks."""
    return 2 if layout.schedule is Schedule.DUALPIPE else chunks_per_rank(layout)


def pipeline(request: Request, shape: Shape) -> Iterator[Flag]:
    """Pipeline degree and, where stages are uneven, what each one holds."""
    x, arch = request.layout, shape.arch
    yield Flag("--pipeline-model-parallel-size", str(x.pp), "pipeline stages")
    if x.pp == 1:
        return
    # Megatron-LM's interleaved schedule loops, also where the layout asked for a V.
    looped = Layout(pp=x.pp, vpp=chunks(x), first_stage_layers=x.first_stage_layers,
                    last_stage_layers=x.last_stage_layers)  # fmt: skip
    stages = stage_layers(arch.layers, looped)
    check_filled(arch.layers, stages, "Megatron-LM")
    even = len(set(stages)) == 1
    if even and looped.vpp > 1:
        yield Flag("--num-layers-per-virtual-pipeline-stage", str(stages[0]),
                   f"{looped.vpp} model chunks on every rank (interleaved 1F1B)")  # fmt: skip
    elif not even:
        mtp = arch.mtp_layers if predicts(shape) else 0
        yield Flag("--pipeline-model-parallel-layout", stage_text(stages, mtp),
                   f"{arch.layers} layers on {len(stages)} stages: E embedding, t layer,"
                   " m multi-token prediction, L loss")  # fmt: skip
    if overlaps_experts(request):
        yield Flag(
            "--overlap-moe-expert-parallel-comm",
            "",
            "one micro-batch's all-to-all behind another's compute, as DualPipe does",
        )
        if request.switches.get("cuda-graphs") != "partial":
            yield Flag("--delay-wgrad-compute", "",
                       "weight gradients are computed later, to fill the waiting")  # fmt: skip


def predicts(shape: Shape) -> bool:
    """Whether multi-token prediction is built: not along with sparse attention."""
    return shape.arch.mtp_layers > 0 and shape.attention.indexer is None


def stage_text(stages: tuple[int, ...], mtp: int) -> str:
    """``Ettt|(tt|)*29,tmL``: the stages in forward order as Megatron-LM reads them."""
    texts = ["t" * count for count in stages]
    texts[0] = f"E{texts[0]}"
    texts[-1] = f"{texts[-1]}{'m' * mtp}L"
    parts: list[str] = []
    index = 0
    while index < len(texts) - 1:
        run = index
        while run < len(texts) - 1 and texts[run] == texts[index]:
            run += 1
        count = run - index
        parts.append(f"({texts[index]}|)*{count}" if count > 1 else f"{texts[index]}|")
        index = run
    return "".join((*parts, texts[-1]))


def overlaps_experts(request: Request) -> bool:
    """Whether the all-to-all of experts runs beside another micro-batch's computation."""
    x = request.layout
    stated = request.switches.get("overlap-a2a")
    if stated is not None:
        return stated == "on"
    dual = x.schedule in (Schedule.DUALPIPE, Schedule.DUALPIPE_V)
    return dual and x.ep > 1 and x.recompute is not Recompute.FULL


def data_parallel(request: Request) -> Iterator[Flag]:
    """ZeRO stage, sharding group, overlap of its collectives."""
    x = request.layout
    if x.zero >= 2:
        kept = "optim_grads" if x.zero == 2 else "optim_grads_params"
        yield Flag("--use-megatron-fsdp", "", f"ZeRO stage {x.zero}")
        yield Flag("--data-parallel-sharding-strategy", kept, "what is sharded")
        yield Flag("--ckpt-format", "fsdp_dtensor", "the checkpoint format of Megatron-FSDP")
        yield Flag("--no-gradient-accumulation-fusion", "", "sharded gradients are not fused")
    if x.zero >= 1:
        yield Flag("--use-distributed-optimizer", "", "optimizer states sharded (ZeRO stage 1)")
        group = x.shard or x.dp * x.cp
        if x.dp * x.cp % group:
            raise LayoutError(
                f"shard = {group} does not divide the dp * cp = {x.dp} * {x.cp} ranks it splits"
            )
        if group < x.dp * x.cp:
            yield Flag("--num-distributed-optimizer-instances", str(x.dp * x.cp // group),
                       f"shards stay within groups of {group} ranks")  # fmt: skip
    if x.dp * x.cp > 1:
        yield Flag("--overlap-grad-reduce", "", "gradients are reduced during backward")
        if x.zero >= 1:
            yield Flag("--overlap-param-gather", "", "weights are gathered during forward")


def recompute(request: Request, shape: Shape) -> Iterator[Flag]:
    """Activation recomputation."""
    x = request.layout
    if x.recompute is Recompute.NONE:
        return
    if x.recompute is Recompute.FULL:
        yield Flag("--recompute-granularity", "full", "whole layers are computed again")
        if x.recompute_layers is None:
            yield Flag("--recompute-method", "uniform", "every layer")
            yield Flag("--recompute-num-layers", "1", "one layer is kept open at a time")
        else:
            each = -(-x.recompute_layers // chunks(x))
            yield Flag("--recompute-method", "block", "the first layers of every chunk")
            yield Flag("--recompute-num-layers", str(each),
                       f"{x.recompute_layers} per rank in {chunks(x)} chunks")  # fmt: skip
        return
    modules = ["core_attn"]
    if x.recompute is Recompute.MODULES:
        latent = shape.attention.kind is AttentionKind.LATENT
        modules = ["layernorm", *["mla_up_proj"] * latent, *["moe_act"] * bool(shape.experts)]
    yield Flag("--recompute-granularity", "selective", "parts of a layer are computed again")
    yield Flag("--recompute-modules", " ".join(modules), "which parts")


def precision(request: Request) -> Iterator[Flag]:
    """Arithmetic of the matrix products, width of gradients."""
    kind, states = request.goal.precision, request.goal.states
    if kind is not Precision.FP32:
        name = "--fp16" if kind is Precision.FP16 else "--bf16"
        yield Flag(name, "", "weights and activations of 2 bytes")
    recipes = {
        Precision.FP8: ("hybrid", "tensorwise", "one current scale per tensor"),
        Precision.FP8_BLOCK: ("e4m3", "blockwise", "scales per 1x128 and 128x128 block"),
        Precision.MXFP8: ("e4m3", "mxfp8", "a shared exponent per 32 values"),
    }
    if kind in recipes:
        form, recipe, why = recipes[kind]
        yield Flag("--fp8-format", form, "matrix products in 8 bits")
        yield Flag("--fp8-recipe", recipe, why)
        if states.weight < 2:
            yield Flag("--fp8-param-gather", "", "weights are kept and gathered in 8 bits")
    elif kind is Precision.NVFP4:
        yield Flag("--fp4-format", "e2m1", "matrix products in 4 bits")
        yield Flag("--fp4-recipe", "nvfp4", "a scale per 16 values")
    if states.gradient <= 2:
        yield Flag("--grad-reduce-in-bf16", "", "gradients of 2 bytes")
    elif kind is Precision.FP16:
        yield Flag("--accumulate-allreduce-grads-in-fp32", "", "gradients of 4 bytes")


def check_states(request: Request) -> None:
    """States that are not of 4 bytes each, or lie on the host, are those of sharded Adam.

    Raises GoalError and LayoutError.
    """
    goal, x = request.goal, request.layout
    adam = goal.optimizer is Optimizer.ADAMW
    narrow = goal.states.moments != (8.0 if adam else 4.0)
    if not adam and x.offload_optimizer:
        raise LayoutError(
            f"Megatron-LM cannot run this layout: offload=1 with {goal.optimizer}: on the host it"
            " has Adam alone; plan with offload=0"
        )
    if narrow and not adam:
        raise GoalError(
            f"Megatron-LM keeps Muon's moment in 4 bytes, not {goal.states.moments:g};"
            " choose 4 bytes, or AdamW"
        )
    if narrow and x.zero == 0:
        raise LayoutError(
            f"Megatron-LM cannot run this layout: zero = 0 with moments of {goal.states.moments:g}"
            " bytes: the optimizer that keeps them so is the sharded one; plan with zero=1"
        )


def states(request: Request) -> Iterator[Flag]:
    """Precision of the optimizer's moments, where it is not the default of 4 bytes each.

    Raises GoalError for a width that has no argument.
    """
    goal, x = request.goal, request.layout
    count = 2 if goal.optimizer is Optimizer.ADAMW else 1
    each = goal.states.moments / count
    if each == 4.0 and not x.offload_optimizer:
        return
    if each not in _STATE_TYPES:
        raise GoalError(
            f"moments of {goal.states.moments:g} bytes for {count} of them are {each:g} bytes each;"
            f" choose from {', '.join(f'{width:g}' for width in _STATE_TYPES)}"
        )
    yield Flag("--use-precision-aware-optimizer", "", "states need not be fp32")
    yield Flag("--exp-avg-dtype", _STATE_TYPES[each], "first moment")
    if count == 2:
        yield Flag("--exp-avg-sq-dtype", _STATE_TYPES[each], "second moment")


def batch(request: Request) -> Iterator[Flag]:
    """Sequence, batches, length of the run."""
    goal, x = request.goal, request.layout
    yield Flag("--seq-length", str(goal.sequence), "tokens per sequence")
    yield Flag("--micro-batch-size", str(x.micro_batch), "sequences per micro-batch and rank")
    yield Flag("--global-batch-size", str(goal.global_batch),
               f"sequences per step: {x.micro_batch} x dp {x.dp} x {request.micro_batches}"
               " micro-batches")  # fmt: skip
    yield Flag("--train-samples", str(request.steps * goal.global_batch),
               f"{request.steps} steps, {goal.tokens:.4g} tokens")  # fmt: skip


def optimizer(request: Request) -> Iterator[Flag]:
    """The optimizer; its hyperparameters belong to the recipe."""
    adam = request.goal.optimizer is Optimizer.ADAMW
    yield Flag(
        "--optimizer",
        "adam" if adam else "muon",
        "AdamW (weight decay is decoupled)" if adam else "Muon, AdamW on vectors",
    )
    yield Flag("--lr", ask("LR", "peak learning rate"), "belongs to the recipe")
    if request.layout.offload_optimizer:
        yield Flag("--optimizer-cpu-offload", "", "states and update live in host memory")
        yield Flag("--overlap-cpu-optimizer-d2h-h2d", "", "copies behind the update")


def storage(request: Request) -> Iterator[Flag]:
    """Data and checkpoints: paths only the user knows."""
    folder = ask("CHECKPOINTS", "folder for checkpoints")
    yield Flag("--data-path", ask("DATA", "prefix of the tokenised data"), "training data")
    yield Flag("--save", folder, "where checkpoints go")
    yield Flag("--load", folder, "and where a restart looks")
    steps = request.save_steps
    yield Flag("--save-interval",
               ask("SAVE_STEPS", "steps between checkpoints") if steps is None else str(steps),
               "steps between checkpoints, as the plan forecasts")  # fmt: skip


def tokenizer() -> Iterator[Flag]:
    """The model's own tokenizer."""
    yield Flag("--tokenizer-type", "HuggingFaceTokenizer", "tokenizer of the model")
    yield Flag("--tokenizer-model", ask("TOKENIZER", "name or folder of the tokenizer"), "which")
