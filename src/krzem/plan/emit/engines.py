"""The engines a plan can be emitted for; DeepSpeed and krzem's own plan file are written here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from types import MappingProxyType

from krzem.engine.legal import layout_judge
from krzem.engine.setup import Setup
from krzem.engine.switches import MIXERS, parts_of, problem_values
from krzem.errors import GoalError, LayoutError, ModelError, UnknownNameError
from krzem.hardware.cluster import Cluster
from krzem.layout.layout import Layout, Precision, Recompute
from krzem.layout.rules import Problem
from krzem.model.architecture import Architecture
from krzem.plan.emit import (
    bridge,
    fsdp,
    maxtext,
    megatron,
    mindformers,
    mindspeed,
    primus,
    torchtitan,
)
from krzem.plan.emit import hugging_face as trainer
from krzem.plan.emit.launch import (
    MEANS,
    Choices,
    Flag,
    Installed,
    Launch,
    Part,
    Request,
    Section,
    chosen,
    section,
    torchrun,
)
from krzem.plan.emit.parts import keys_of, known, merged, python_package
from krzem.plan.goal import Goal

# DeepSpeed under Hugging Face's Trainer: its JSON, the Trainer's arguments and a program
# ---------------------------------------------------------------------------------------

VERSION = "0.19.6"
TABLE = f"deepspeed-{VERSION}"
ENGINE = f"DeepSpeed {VERSION}"
FILE = "krzem_deepspeed.json"


def launch(request: Request) -> Launch:
    """Everything DeepSpeed needs; see :func:`krzem.plan.emit.emit` for the errors."""
    trainer.check(request, ENGINE)
    _check(request)
    flags = tuple(chosen(ENGINE, request.switches, _choices(request)))
    own = [flag for flag in flags if flag.name in keys_of(TABLE)]
    theirs = [flag for flag in flags if flag.name not in keys_of(TABLE)]
    extra = (
        Flag("deepspeed", f'"{FILE}"', "DeepSpeed's own file"),
        Flag("activation_checkpointing", _whether(request.layout.recompute is Recompute.FULL),
             "whether layers are computed again"),
    )  # fmt: skip
    return Launch(
        engine="deepspeed",
        version=f"{VERSION} under transformers 5.23",
        sections=(),
        parts=(
            Part(path=FILE, syntax="json", sections=_sections(request, own)),
            trainer.arguments(request, extra, theirs),
            trainer.program(request, "torch.float32"),
        ),
        environment=tuple(trainer.environment()),
        command=torchrun(request, f"{trainer.PROGRAM} {trainer.ARGUMENTS}"),
        installed=(
            Installed(name="DeepSpeed", command=python_package("deepspeed"), version="0.19."),
            trainer.INSTALLED,
        ),
        notes=tuple(trainer.notes(request)),
    )


def _whether(value: bool) -> str:
    return "true" if value else "false"


def _sections(request: Request, switches: list[Flag]) -> tuple[Section, ...]:
    sections = (
        section("Batch", known(_batch(request), TABLE)),
        section("Precision", known(_precision(request), TABLE)),
        section("ZeRO", known(merged(_zero(request), over=switches), TABLE)),
        section("Switches that were priced", known(merged(switches), TABLE)),
    )
    return tuple(part for part in sections if part.flags)


def _batch(request: Request) -> Iterator[Flag]:
    x, goal = request.layout, request.goal
    yield Flag("train_batch_size", str(goal.global_batch), "sequences per step")
    yield Flag("train_micro_batch_size_per_gpu", str(x.micro_batch), "sequences per pass and rank")
    yield Flag("gradient_accumulation_steps", str(request.micro_batches),
               f"passes of a step on dp = {x.dp} ranks")  # fmt: skip


def _precision(request: Request) -> Iterator[Flag]:
    kind, states = request.goal.precision, request.goal.states
    yield Flag("bf16.enabled", _whether(kind is Precision.BF16), "products of 16 bits")
    yield Flag("fp16.enabled", _whether(kind is Precision.FP16), "the older 16 bits")
    if kind is Precision.BF16 and states.moments == 4:
        yield Flag("bf16.bf16_master_weights_and_grads", "true", "no fp32 copy of the weights")
        yield Flag("bf16.bf16_optimizer_states", "true", "moments of 2 bytes")
    elif kind is Precision.BF16:
        width = "bf16" if states.gradient <= 2 else "fp32"
        yield Flag("data_types.grad_accum_dtype", f'"{width}"', "gradients between passes")


def _zero(request: Request) -> Iterator[Flag]:
    x = request.layout
    yield Flag("zero_optimization.stage", str(x.zero), "what is sharded")
    if x.offload_optimizer:
        yield Flag("zero_optimization.offload_optimizer.device", '"cpu"', "states in host memory")
        yield Flag("zero_optimization.offload_optimizer.pin_memory", "true", "for quick copies")
    if x.zero == 3:
        yield Flag("zero_optimization.stage3_gather_16bit_weights_on_model_save", "true",
                   "a model can be saved whole")  # fmt: skip


def _choices(request: Request) -> Choices:
    x = request.layout
    overlap = "zero_optimization.overlap_comm"
    off, on = ((overlap, "false"),), ((overlap, "true"),)
    ahead = "zero_optimization.stage3_prefetch_bucket_size"
    gather: Choices = {
        "overlap-param-gather": {"off": ((ahead, "0"),), "on": ((ahead, "50000000"),)}
        if x.zero == 3
        else {"off": ()}
    }
    native = {"every": ()} if x.zero >= 2 else {"last": ()}
    return {
        **trainer.trainer_choices(),
        "overlap-grad-reduce": {"off": off, "on": on},
        **gather,
        "grad-sync": {"every": (), "last": ()} if request.micro_batches == 1 else native,
        "fp8-params": {"off": ()},
        "partition-activations": {
            "off": (("activation_checkpointing.partition_activations", "false"),),
        },
    }


def _check(request: Request) -> None:
    x, goal = request.layout, request.goal
    if x.cp > 1:
        raise LayoutError(
            f"{ENGINE} cannot run this layout: cp = {x.cp}: its Ulysses sequence parallelism is not"
            " emitted; plan with cp=1"
        )
    if 0 < x.shard < x.dp:
        raise LayoutError(
            f"{ENGINE} cannot run this layout: shard = {x.shard}: the Trainer initialises for all"
            f" ranks; plan with shard=0"
        )
    if x.offload_optimizer and x.zero == 0:
        raise LayoutError(
            f"{ENGINE} cannot run this layout: offload=1 with zero = 0; plan with zero=1"
        )
    if goal.precision not in (Precision.BF16, Precision.FP16, Precision.FP32):
        raise GoalError(f"{ENGINE} has no {goal.precision} here; choose bf16, fp16 or fp32")
    half = goal.precision is Precision.BF16 and x.zero > 0 and goal.states.master <= 2
    if goal.states.moments != 8 and not (half and goal.states.moments == 4):
        raise GoalError(
            f"{ENGINE} keeps moments of 8 bytes beside an fp32 copy of the weights, or 4 bytes"
            f" with master=2 under bf16 and ZeRO, not {goal.states.moments:g} with"
            f" master={goal.states.master:g}"
        )


# The plan as the TOML that krzem's own tools read back
# -----------------------------------------------------

SCHEMA = "plan file, schema 1"
TODAY = 9999.0
"""The trainer that this krzem comes with."""


def native_launch(request: Request) -> Launch:
    """Tables ``model``, ``layout``, ``goal`` and ``cluster``; a note where the trainer refuses."""
    return Launch(
        engine="krzem",
        version=SCHEMA,
        notes=_notes(request),
        sections=(
            section("model", _model(request)),
            section("layout", _layout(request)),
            section("goal", _goal(request)),
            Section(title="cluster", flags=_cluster(request)),
            Section(title="switches", flags=tuple(_switches(request))),
        ),
    )


def _notes(request: Request) -> tuple[str, ...]:
    """What krzem's own trainer does not run of a layout; a plan file may hold any."""
    setup = Setup(engine="krzem", year=TODAY, precision=request.goal.precision)
    problem = Problem(
        architecture=request.arch,
        devices=request.cluster.devices,
        sequence=request.goal.sequence,
        global_batch=request.goal.global_batch,
    )
    device = request.cluster.device
    values = {**problem_values(problem), "family": device.family, "stack": device.software,
              "nodes": request.cluster.nodes, "node": request.cluster.devices_per_node,
              "domain": request.cluster.scale_up_domain}  # fmt: skip
    reasons = layout_judge(setup, values, problem).reasons(request.layout)
    again = "plan with --engine krzem, which searches what it runs"
    return tuple(f"krzem train does not run this: {reason}; {again}" for reason in reasons)


def _model(request: Request) -> Iterator[Flag]:
    arch = request.arch
    yield Flag("name", json.dumps(arch.name), "built-in name, or the folder of its config.json")
    yield Flag("source", json.dumps(arch.source), "where its config comes from")


def _layout(request: Request) -> Iterator[Flag]:
    layout = request.layout
    yield Flag("text", json.dumps(str(layout)), "the layout as the --layout option reads it")
    yield Flag("devices", str(layout.devices), "tp * cp * pp * dp")


def _goal(request: Request) -> Iterator[Flag]:
    goal = request.goal
    yield Flag("tokens", repr(float(goal.tokens)), "tokens of the whole run")
    yield Flag("sequence", str(goal.sequence), "tokens per sequence")
    yield Flag("global_batch", str(goal.global_batch), "sequences per optimizer step")
    yield Flag("precision", json.dumps(goal.precision.value), "arithmetic of matrix products")
    yield Flag("optimizer", json.dumps(goal.optimizer.value), "optimizer")
    states = ", ".join(f"{f.name} = {getattr(goal.states, f.name)!r}" for f in fields(goal.states))
    yield Flag("states", f"{{ {states} }}", "bytes per parameter that training keeps")
    if goal.deadline_days is not None:
        yield Flag("deadline_days", repr(goal.deadline_days), "days from the first step")
    if goal.budget_usd is not None:
        yield Flag("budget_usd", repr(goal.budget_usd), "money for device-hours")


def _switches(request: Request) -> Iterator[Flag]:
    for name, choice in request.switches.items():
        yield Flag(name, json.dumps(choice), MEANS.get(name, "as priced"))


def _cluster(request: Request) -> tuple[Flag, ...]:
    cluster = request.cluster
    return (
        Flag("device", json.dumps(cluster.device.id), "catalogue id"),
        Flag("devices", str(cluster.devices), cluster.device.device_is),
        Flag("devices_per_node", str(cluster.devices_per_node), "devices of one server"),
    )


# The engines a plan can be emitted for
# -------------------------------------

ENGINES: Mapping[str, Callable[[Request], Launch]] = MappingProxyType(
    {
        "megatron-lm": megatron.launch,
        "mindspeed-llm": mindspeed.launch,
        "torchtitan": torchtitan.launch,
        "primus": primus.launch,
        "megatron-bridge": bridge.launch,
        "maxtext": maxtext.launch,
        "mindformers": mindformers.launch,
        "deepspeed": launch,
        "fsdp": fsdp.launch,
        "krzem": native_launch,
    }
)
"""Emitters by the name of their engine."""


def emit(
    engine: str,
    layout: Layout,
    goal: Goal,
    arch: Architecture,
    cluster: Cluster,
    config: Mapping[str, object] | None = None,
    save_steps: int | None = None,
    switches: Mapping[str, str] = MappingProxyType({}),
) -> Launch:
    """The launch of ``arch`` with ``layout`` on ``engine``.

    ``config`` is the model's ``config.json`` as a dictionary; what it would answer (rotary base,
    norm epsilon, router scaling) is otherwise asked of the user when the script starts.
    ``save_steps`` is the checkpoint interval of the forecast; ``switches`` are the choices that
    were priced, each written as the engine's flag, nothing for those that are absent.

    Raises UnknownNameError for an engine that is not in ``ENGINES``, LayoutError where the engine
    has no way to run the layout and nothing near it, ModelError where it cannot build the model,
    GoalError for a precision, an optimizer or a switch that it lacks.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES, f"Choose from {', '.join(ENGINES)}.")
    ranks = layout.micro_batch * layout.dp
    if goal.global_batch % ranks:
        raise LayoutError(
            f"a global batch of {goal.global_batch} sequences does not divide into micro-batches:"
            f" micro_batch * dp = {layout.micro_batch} * {layout.dp} = {ranks}"
        )
    _check_written(engine, arch)
    request = Request(
        layout=layout, goal=goal, arch=arch, cluster=cluster, config=config or {},
        save_steps=save_steps, switches=switches,
    )  # fmt: skip
    return replace(ENGINES[engine](request), model=arch.name, priced=tuple(_priced(request)))


BUILD_ANY = ("deepspeed", "fsdp")
"""Engines whose emitted loop builds the class of transformers, whatever the layers hold."""
UNWRITTEN = frozenset({*MIXERS.values(), "latent-experts", "output-gate", "chunked-attention"})
"""Parts that some engines run and that no configuration of this package spells out yet."""


def _check_written(engine: str, arch: Architecture) -> None:
    parts = sorted(parts_of(arch) & UNWRITTEN)
    if parts and engine not in BUILD_ANY:
        raise ModelError(
            f"no {engine} configuration is written for {', '.join(parts)}, which {arch.name} "
            f"needs; its step is priced all the same. Emit for {' or '.join(BUILD_ANY)}"
        )


def _priced(request: Request) -> Iterator[tuple[str, str]]:
    """Tokens of a sequence, prediction modules, switches and bytes of states, in one line each."""
    yield "Length", str(request.goal.sequence)
    yield "Prediction modules", str(request.arch.mtp_layers)
    if request.switches:
        yield "Switches", " ".join(f"{name}={choice}" for name, choice in request.switches.items())
    states = request.goal.states
    yield "States", " ".join(f"{f.name}={getattr(states, f.name):g}" for f in fields(states))
