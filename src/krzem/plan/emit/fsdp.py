"""PyTorch's FSDP2 by Accelerate under Hugging Face's Trainer.

Keys are those of Accelerate 1.15.0 (``facts/engine_flags/accelerate-1.15.0.csv``).
"""

from __future__ import annotations

from collections.abc import Iterator

from krzem.errors import GoalError, LayoutError
from krzem.layout.layout import ContextParallel, Precision, Recompute
from krzem.plan.emit import hugging_face as trainer
from krzem.plan.emit.launch import (
    Choices,
    Flag,
    Installed,
    Launch,
    Part,
    Request,
    Section,
    ask,
    chosen,
    section,
)
from krzem.plan.emit.parts import keys_of, known, literal, merged, python_package, quoted

VERSION = "1.15.0"
TABLE = f"accelerate-{VERSION}"
ENGINE = f"FSDP2 (Accelerate {VERSION})"
FILE = "krzem_accelerate.yaml"
_ROTATIONS = {ContextParallel.ALL_GATHER: "allgather", ContextParallel.RING: "alltoall"}
_PRECISIONS = {
    Precision.BF16: "bf16",
    Precision.FP16: "fp16",
    Precision.FP32: "no",
    Precision.FP8: "fp8",
}


def launch(request: Request) -> Launch:
    """Everything FSDP2 needs; see :func:`krzem.plan.emit.emit` for the errors."""
    trainer.check(request, ENGINE)
    _check(request)
    flags = tuple(chosen(ENGINE, request.switches, _choices(request)))
    own = [flag for flag in flags if flag.name in keys_of(TABLE)]
    theirs = [flag for flag in flags if flag.name not in keys_of(TABLE)]
    states = request.goal.states
    half = states.weight == 2 and states.master == 0
    return Launch(
        engine="fsdp",
        version=f"2 by Accelerate {VERSION} under transformers 5.23",
        sections=(),
        parts=(
            Part(path=FILE, syntax="yaml", sections=_sections(request, own)),
            trainer.arguments(request, (), theirs),
            trainer.program(request, "torch.bfloat16" if half else "torch.float32"),
        ),
        environment=tuple(trainer.environment()),
        command=(
            f"accelerate launch --config_file {FILE}{_rank(request)} {trainer.PROGRAM}"
            f" {trainer.ARGUMENTS}"
        ),
        installed=(
            Installed(name="Accelerate", command=python_package("accelerate"), version="1.15"),
            trainer.INSTALLED,
        ),
        notes=tuple(_notes(request)),
    )


def _nodes(request: Request) -> int:
    x = request.layout
    return x.devices // min(request.cluster.devices_per_node, x.devices)


def _rank(request: Request) -> str:
    if _nodes(request) == 1:
        return ""
    return f' --machine_rank "{ask("NODE_RANK", "number of this node, from 0")}"'


def _sections(request: Request, switches: list[Flag]) -> tuple[Section, ...]:
    sections = (
        section("Processes", known(_processes(request), TABLE)),
        section("Sharding", known(merged(_sharding(request), over=switches), TABLE)),
        section("Parallelism", known(_parallel(request), TABLE)),
        section("Precision", known(merged(_precision(request), over=switches), TABLE)),
        section("Switches that were priced", known(merged(switches), TABLE)),
    )
    return tuple(part for part in sections if part.flags)


def _processes(request: Request) -> Iterator[Flag]:
    nodes = _nodes(request)
    yield Flag("compute_environment", '"LOCAL_MACHINE"', "no cloud service")
    yield Flag("distributed_type", '"FSDP"', "how ranks share the model")
    yield Flag("num_machines", str(nodes), "nodes")
    yield Flag("num_processes", str(request.layout.devices), "ranks of all nodes")
    yield Flag("main_training_function", '"main"', "of the program")
    yield Flag("use_cpu", "false", "accelerators")
    if nodes > 1:
        yield Flag("main_process_ip", quoted(ask("MASTER_ADDR", "host of the first node")), "first")
        yield Flag("main_process_port", "29500", "its port")
        yield Flag("rdzv_backend", '"static"', "ranks by the number of their node")


def _sharding(request: Request) -> Iterator[Flag]:
    x = request.layout
    place = "fsdp_config."
    yield Flag(f"{place}fsdp_version", "2", "fully_shard")
    yield Flag(f"{place}fsdp_reshard_after_forward", "true" if x.zero == 3 else "false",
               "weights are dropped after forward (ZeRO 3)" if x.zero == 3
               else "weights stay whole from forward to backward (ZeRO 2)")  # fmt: skip
    yield Flag(f"{place}fsdp_auto_wrap_policy", '"TRANSFORMER_BASED_WRAP"', "a unit per layer")
    yield Flag(f"{place}fsdp_activation_checkpointing",
               "true" if x.recompute is Recompute.FULL else "false",
               "whether layers are computed again")  # fmt: skip
    yield Flag(f"{place}fsdp_offload_params", "true" if x.offload_optimizer else "false",
               "weights, gradients and states in host memory")  # fmt: skip
    yield Flag(f"{place}fsdp_state_dict_type", '"SHARDED_STATE_DICT"', "checkpoints by rank")
    yield Flag(f"{place}fsdp_cpu_ram_efficient_loading", "false", "nothing is loaded")


def shards(request: Request) -> int:
    """Data-parallel ranks of one copy of the weights; context ranks shard along with them."""
    x = request.layout
    return max(1, (x.shard or x.dp * x.cp) // x.cp)


def _parallel(request: Request) -> Iterator[Flag]:
    x = request.layout
    place = "parallelism_config.parallelism_config_"
    yield Flag(f"{place}dp_replicate_size", str(x.dp // shards(request)), "copies of the shards")
    yield Flag(f"{place}dp_shard_size", str(shards(request)), "ranks that share one copy")
    yield Flag(f"{place}tp_size", "1", "no tensor parallelism")
    yield Flag(f"{place}cp_size", str(x.cp), "ranks that cut a sequence")
    if x.cp > 1:
        yield Flag(f"{place}cp_comm_strategy", literal(_ROTATIONS[x.context_parallel]),
                   "how keys and values travel")  # fmt: skip


def _precision(request: Request) -> Iterator[Flag]:
    kind = request.goal.precision
    yield Flag("mixed_precision", literal(_PRECISIONS[kind]), "arithmetic of products")
    if kind is Precision.FP8:
        yield Flag("fp8_config.fp8_backend", '"ao"', "torchao's 8-bit products")
        yield Flag("fp8_config.fp8_enable_fsdp_float8_all_gather", "false", "gathered in 16 bits")


def _choices(request: Request) -> Choices:
    sync = "accelerator_config"
    moved = "fsdp_config.fsdp_activation_checkpointing_offload"
    gathered = "fp8_config.fp8_enable_fsdp_float8_all_gather"
    scales: Choices = (
        {
            "fp8-scaling": {
                "tensor": (("fp8_config.fp8_backend", '"ao"'),),
                "delayed": (("fp8_config.fp8_backend", '"te"'),),
            },
            "fp8-params": {"off": ((gathered, "false"),), "on": ((gathered, "true"),)},
        }
        if request.goal.precision is Precision.FP8
        else {"fp8-params": {"off": ()}}
    )
    return {
        **trainer.trainer_choices(),
        # fully_shard reduces and gathers on its own streams; there is no key to stop it.
        "overlap-grad-reduce": {"on": ()},
        "overlap-param-gather": {"on": ()},
        "grad-sync": {
            "every": ((sync, '{"gradient_accumulation_kwargs": {"sync_each_batch": true}}'),),
            "last": ((sync, '{"gradient_accumulation_kwargs": {"sync_each_batch": false}}'),),
        },
        **scales,
        "offload-activations": {"off": ((moved, "false"),), "on": ((moved, "true"),)},
        "partition-activations": {"off": ()},
    }


def _check(request: Request) -> None:
    x, goal = request.layout, request.goal
    each = min(request.cluster.devices_per_node, x.devices)
    group = x.shard or x.dp * x.cp
    faults = (
        (x.zero < 2, f"zero = {x.zero}: gradients are always sharded; plan with zero=2 or zero=3"),
        (x.devices % each != 0, f"{x.devices} devices are no whole number of nodes of {each}"),
        (group % x.cp != 0 or (x.dp * x.cp) % group != 0,
         f"shard = {group} is no multiple of cp = {x.cp} that divides dp * cp = {x.dp * x.cp}"),
        (shards(request) == 1 and x.dp * x.cp > 1, "shards of one rank each"),
        (x.cp > 1 and x.context_parallel not in _ROTATIONS,
         f"cpkind={x.context_parallel}: PyTorch gathers or rotates; plan with allgather or ring"),
        (x.cp > 1 and goal.sequence % (2 * x.cp) != 0,
         f"cp = {x.cp}: {goal.sequence} tokens do not divide by 2 * cp"),
        (x.cp > 1 and any(a.attention.window or a.attention.sinks for a, _ in request.arch.kinds()),
         "cp > 1 with windows or sinks: its kernels are plain causal attention; plan with cp=1"),
    )  # fmt: skip
    for bad, text in faults:
        if bad:
            raise LayoutError(f"{ENGINE} cannot run this layout: {text}")
    if goal.precision not in _PRECISIONS:
        raise GoalError(f"{ENGINE} has no {goal.precision}; choose bf16, fp16, fp8 or fp32")
    if request.switches.get("offload-activations") == "on" and x.recompute is not Recompute.FULL:
        raise GoalError(
            f"{ENGINE} moves what layers that are computed again start from:"
            " offload-activations=on needs recompute=full"
        )
    half = goal.states.weight == 2 and goal.states.master == 0
    if goal.states.moments != (4 if half else 8):
        raise GoalError(
            f"{ENGINE} keeps moments in the type of the weights: 8 bytes with an fp32 copy, 4 with"
            f" weight=2,master=0, not {goal.states.moments:g}"
        )


def _notes(request: Request) -> Iterator[str]:
    states = request.goal.states
    if states.master:
        yield (
            "weights are kept sharded in fp32 and gathered in bf16: there is no second copy as the"
            f" plan's {states.weight:g} + {states.master:g} bytes per parameter assume"
        )
    if states.gradient <= 2 and states.master:
        yield "sharded gradients have the type of the weights, 4 bytes per parameter"
    if request.layout.cp > 1:
        yield "attention under cp > 1 must be causal without padding, as packed rows are"
    yield from trainer.notes(request)
