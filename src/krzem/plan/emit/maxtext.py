"""MaxText: a YAML over its base.yml, for TPUs and for GPUs.

Keys and types are the fields of MaxText 0.2.4's configuration (``src/maxtext/configs/types.py``,
``facts/engine_flags/maxtext-0.2.4.csv``), and so is what its validation refuses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from krzem.errors import GoalError, LayoutError
from krzem.layout.layout import ContextParallel, Layout, Optimizer, Recompute, Schedule
from krzem.plan.emit.launch import (
    Flag,
    Installed,
    Launch,
    Part,
    Request,
    Section,
    ask,
    is_tpu,
    rope_scaling,
    section,
)
from krzem.plan.emit.maxtext_model import (
    arithmetic,
    block_of,
    is_sparse,
    model,
    states,
    switches,
    xla_flags,
)
from krzem.plan.emit.parts import known, literal, merged, python_package, quoted

VERSION = "0.2.4"
TABLE = f"maxtext-{VERSION}"
ENGINE = "MaxText"
FILE = "krzem_maxtext.yml"

_STRATEGIES = {
    ContextParallel.RING: "ring",
    ContextParallel.ALL_TO_ALL: "ulysses",
    ContextParallel.ALL_GATHER: "all_gather",
}
_NO_RING = ("deepseek", "deepseek4", "gpt_oss")
_MUON = ("llama2", "qwen3", "deepseek", "deepseek4")
_POLICIES = {
    Recompute.NONE: ("none", "all activations are kept"),
    Recompute.ATTENTION: ("minimal", "outputs of products are kept, attention is done again"),
    Recompute.MODULES: ("minimal_with_context", "outputs of products and of attention are kept"),
    Recompute.FULL: ("full", "whole layers are computed again"),
}


def launch(request: Request) -> Launch:
    """Everything MaxText needs; see :func:`krzem.plan.emit.emit` for the errors."""
    _check(request)
    return Launch(
        engine="maxtext",
        version=VERSION,
        sections=(),
        parts=(Part(path=FILE, syntax="yaml", sections=_sections(request)),),
        environment=tuple(_environment(request)),
        command=f'python3 -m maxtext.trainers.pre_train.train "$PWD/{FILE}"',
        installed=(
            Installed(
                name=ENGINE,
                command=python_package("maxtext"),
                version=VERSION,
            ),
        ),
        notes=tuple(_notes(request)),
    )


def _sections(request: Request) -> tuple[Section, ...]:
    extra = tuple(switches(request))

    def part(title: str, flags: Iterable[Flag]) -> Section:
        return section(title, known(merged(flags, over=extra), TABLE))

    sections = (
        part("Run", _run(request)),
        part("Model", model(request)),
        part("Mesh: inside a slice or node (ici), across them (dcn)", _mesh(request)),
        part("Pipeline", _pipeline(request)),
        part("Recomputation", _recompute(request)),
        part("Precision", (*arithmetic(request), *states(request))),
        part("Batch", _batch(request)),
        part("Optimizer", _optimizer(request)),
        part("Data and checkpoints", _storage(request)),
        section("Switches that were priced", known(merged(extra), TABLE)),
    )
    return tuple(part for part in sections if part.flags)


def _run(request: Request) -> Iterator[Flag]:
    yield Flag("base_config", '"base.yml"', "MaxText's own defaults")
    yield Flag("run_name", quoted(ask("RUN_NAME", "name of the run, kept for a restart")),
               "folder of the results")  # fmt: skip
    yield Flag("hardware", '"tpu"' if is_tpu(request) else '"gpu"', "kind of accelerator")
    yield Flag("scan_layers", "true", "equal layers are compiled once")


def shards(x: Layout) -> int:
    """Data-parallel ranks that share one copy of what ZeRO shards; context ranks shard along."""
    return max(1, (x.shard or x.dp * x.cp) // x.cp)


def axes(x: Layout) -> dict[str, int]:
    """Degrees of the mesh's axes, innermost first; their product is the number of devices."""
    fsdp = max(1, shards(x) // x.ep) if x.zero == 3 else 1
    tensor = "tensor_sequence" if x.sequence_parallel and x.tp > 1 else "tensor"
    return {
        tensor: x.tp,
        "context": x.cp,
        "expert": x.ep,
        "fsdp": fsdp,
        "data": x.dp // (x.ep * fsdp),
        "pipeline": x.pp,
    }


def slice_devices(request: Request) -> int:
    """Devices joined by the fast links: of a TPU slice, of a GPU node."""
    cluster, devices = request.cluster, request.layout.devices
    domain = cluster.scale_up_domain if is_tpu(request) else cluster.devices_per_node
    return min(domain, devices)


def split(x: Layout, inside: int) -> tuple[dict[str, int], dict[str, int]]:
    """Each axis cut into a part inside slices of ``inside`` devices and a part across them.

    Raises LayoutError where no such cut fills the slices.
    """
    near, far, left = {}, {}, inside
    for name, degree in axes(x).items():
        near[name] = math.gcd(degree, left)
        far[name] = degree // near[name]
        left //= near[name]
    if left != 1 or x.devices % inside:
        shape = ", ".join(f"{name} {degree}" for name, degree in axes(x).items() if degree > 1)
        raise LayoutError(
            f"{ENGINE} cannot run this layout: a mesh of {shape or '1 device'} does not fill slices"
            f" of {inside} devices ({left} are left over); choose degrees that divide {inside}"
        )
    return near, far


def _mesh(request: Request) -> Iterator[Flag]:
    x = request.layout
    inside = slice_devices(request)
    near, far = split(x, inside)
    yield Flag("num_slices", str(x.devices // inside), f"slices or nodes of {inside} devices")
    for scope, found in (("ici", near), ("dcn", far)):
        for name in ("data", "fsdp", "expert", "context", "tensor", "tensor_sequence", "pipeline"):
            yield Flag(f"{scope}_{name}_parallelism", str(found.get(name, 1)),
                       f"{name} ranks {'inside' if scope == 'ici' else 'across'}")  # fmt: skip
    if x.cp > 1:
        kind = _STRATEGIES[x.context_parallel]
        yield Flag("context_parallel_strategy", literal(kind), "how keys and values travel")
        yield Flag("context_parallel_load_balance", "true" if kind != "ulysses" else "false",
                   "each rank gets an early and a late piece")  # fmt: skip
    if is_tpu(request) and x.cp > 1 and x.context_parallel is not ContextParallel.ALL_GATHER:
        yield Flag("attention", '"flash"', "the kernels that this strategy needs")
        yield Flag("use_tokamax_splash", "true", "the kernel that this strategy needs")
    yield Flag("shard_optimizer_over_data", "true" if x.zero == 1 else "false",
               f"ZeRO stage {x.zero}")  # fmt: skip


def _pipeline(request: Request) -> Iterator[Flag]:
    x, layers = request.layout, request.arch.layers
    if x.pp == 1:
        return
    yield Flag("num_pipeline_repeats", str(x.vpp), "chunks per rank")
    yield Flag("num_layers_per_pipeline_stage", str(layers // (x.pp * x.vpp)), "layers per chunk")
    yield Flag("num_pipeline_microbatches", str(request.micro_batches), "micro-batches of a step")
    yield Flag("scan_layers_per_stage", "true", "layers of a chunk are compiled once")


def _recompute(request: Request) -> Iterator[Flag]:
    policy, why = _POLICIES[request.layout.recompute]
    yield Flag("remat_policy", literal(policy), why)


def _batch(request: Request) -> Iterator[Flag]:
    x, goal = request.layout, request.goal
    steps = 1 if x.pp > 1 else request.micro_batches
    each = goal.global_batch / (x.devices * steps)
    yield Flag("max_target_length", str(goal.sequence), "tokens per sequence")
    yield Flag("per_device_batch_size", literal(each),
               f"sequences of a device and pass: {goal.global_batch} /"
               f" ({x.devices} devices x {steps} passes)")  # fmt: skip
    yield Flag("gradient_accumulation_steps", str(steps), "passes of a step")
    yield Flag("steps", str(request.steps), f"{goal.tokens:.4g} tokens")


def _optimizer(request: Request) -> Iterator[Flag]:
    name = "adamw" if request.goal.optimizer.value == "adamw" else "muon"
    yield Flag("opt_type", literal(name), "optimizer")
    yield Flag("learning_rate", ask("LR", "peak learning rate"), "belongs to the recipe")
    yield Flag("optimizer_memory_host_offload",
               "true" if request.layout.offload_optimizer else "false",
               "whether states live in host memory")  # fmt: skip


def _storage(request: Request) -> Iterator[Flag]:
    steps = request.save_steps
    yield Flag("base_output_directory",
               quoted(ask("CHECKPOINTS", "folder for checkpoints, gs://")), "results")  # fmt: skip
    yield Flag("enable_checkpointing", "true", "save checkpoints, resume from the last")
    yield Flag("checkpoint_period",
               ask("SAVE_STEPS", "steps between checkpoints") if steps is None else str(steps),
               "steps between checkpoints, as the plan forecasts")  # fmt: skip
    yield Flag("dataset_type", '"grain"', "input pipeline that resumes where it stopped")
    yield Flag("grain_train_files", quoted(ask("DATA", "pattern of the training files")), "data")
    yield Flag("grain_file_type", '"arrayrecord"', "their format")
    yield Flag("tokenizer_type", '"huggingface"', "tokenizer of the model")
    yield Flag("tokenizer_path", quoted(ask("TOKENIZER", "name or folder of the tokenizer")),
               "which")  # fmt: skip


def _environment(request: Request) -> Iterator[Flag]:
    x = request.layout
    if not is_tpu(request):
        nodes = x.devices // min(request.cluster.devices_per_node, x.devices)
        if nodes > 1:
            yield Flag("NNODES", str(nodes), "processes, one a node")
            yield Flag("NODE_RANK", ask("NODE_RANK", "number of this node, from 0"), "this node")
            yield Flag("JAX_COORDINATOR_IP", ask("MASTER_ADDR", "host of the first node"), "first")
            yield Flag("JAX_COORDINATOR_PORT", "29500", "its port")
    flags = xla_flags(request)
    if flags:
        yield Flag("XLA_FLAGS", flags, "switches of the compiler that were priced")


def _check(request: Request) -> None:
    x, goal, arch = request.layout, request.goal, request.arch
    block_of(arch)
    tpu, ring = is_tpu(request), x.context_parallel is ContextParallel.RING
    layers = arch.layers
    chunks = x.pp * x.vpp
    odd = x.first_stage_layers is not None or x.last_stage_layers is not None
    tail = request.micro_batches % x.pp
    faults = (
        (x.zero == 2, "zero = 2: gradients are not sharded alone; plan with zero=1 or zero=3"),
        (x.zero == 1 and 0 < x.shard < x.dp * x.cp, f"shard = {x.shard} with zero = 1"),
        (x.zero == 3 and (x.shard or x.dp * x.cp) % (x.cp * x.ep) != 0,
         f"shards of {x.shard or x.dp * x.cp} ranks do not divide by cp * ep = {x.cp * x.ep}"),
        (x.dp % (x.ep * (max(1, shards(x) // x.ep) if x.zero == 3 else 1)) != 0,
         f"ep = {x.ep}: the expert axis is one of its own, inside dp = {x.dp}"),
        (arch.is_moe and x.etp != x.tp,
         f"etp = {x.etp} with tp = {x.tp}: experts are cut over the tensor axis; plan with"
         f" etp={x.tp}"),
        (x.pp > 1 and x.schedule not in (Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED),
         f"schedule={x.schedule}: its pipeline is circular; plan with interleaved or 1f1b"),
        (x.pp > 1 and (layers % chunks != 0 or odd),
         f"{layers} layers on pp * vpp = {chunks} equal chunks"),
        (x.pp > 1 and tail != 0,
         f"{request.micro_batches} micro-batches are no multiple of pp = {x.pp}"),
        (x.pp > 1 and arch.is_moe and len(arch.kinds()) > 1,
         "a pipeline over layers of several kinds; plan with pp=1"),
        (x.cp > 1 and tpu and ring and (goal.sequence % (x.cp * x.cp) != 0 or x.cp % 2 != 0),
         f"cp = {x.cp}: ring attention wants an even cp whose square divides {goal.sequence}"),
        (x.cp > 1 and tpu and ring and arch.mtp_layers > 0,
         "ring attention with multi-token prediction; plan with cpkind=allgather"),
        (x.cp > 1 and tpu and ring and block_of(arch) in _NO_RING,
         f"ring attention with block {block_of(arch)}; plan with cpkind=allgather"),
        (x.cp > 1 and not tpu and x.context_parallel is ContextParallel.ALL_TO_ALL,
         "cpkind=a2a on GPUs; plan with ring or allgather"),
        (x.cp > 1 and x.context_parallel is ContextParallel.ALL_TO_ALL and _latent(request),
         "cpkind=a2a with latent or sparse attention; plan with allgather"),
        (x.cp > 1 and not tpu and goal.sequence % (2 * x.cp) != 0,
         f"cp = {x.cp}: {goal.sequence} tokens do not divide by 2 * cp"),
    )  # fmt: skip
    for bad, text in faults:
        if bad:
            raise LayoutError(f"{ENGINE} cannot run this layout: {text}")
    if goal.optimizer is Optimizer.MUON and block_of(arch) not in _MUON:
        raise GoalError(
            f"{ENGINE} has Muon for the blocks {', '.join(_MUON)}, not for {block_of(arch)}"
        )


def _latent(request: Request) -> bool:
    return block_of(request.arch) in ("deepseek", "deepseek4")


def _notes(request: Request) -> Iterator[str]:
    x = request.layout
    if x.pp > 1:
        yield (
            "its pipeline runs all micro-batches forward, then all backward: the bubble is that of"
            " 1F1B, activations of every micro-batch wait; recompute=full keeps them small"
        )
    if x.zero != 3 and (x.ep > 1 or x.cp > 1):
        yield "dense weights are sharded over the expert and context axes too, as FSDP would"
    if x.recompute is Recompute.FULL and x.recompute_layers is not None:
        yield f"full recomputation is for all layers, not {x.recompute_layers} per rank"
    if block_of(request.arch) == "deepseek4" and request.arch.mtp_layers:
        yield "multi-token prediction is left out: the block of DeepSeek V4 does not support it"
    if is_sparse(request.arch) and not is_tpu(request):
        yield "sparse or compressed attention goes through memory on GPUs (dot_product)"
    if request.goal.states.master:
        yield (
            "weights are kept in fp32 and cast for the products: there is no second copy as the"
            f" plan's {request.goal.states.weight:g} + {request.goal.states.master:g} bytes assume"
        )
    if rope_scaling(request.config) is not None:
        yield "rotary positions are those of pre-training at the original length, without scaling"
    yield (
        "learning-rate schedule, warm-up, weight decay, clipping and initialisation belong to the"
        " recipe and are left at base.yml's values"
    )
